"""No offset overflows: tensors of more than 2^31 elements, on the program that reads their end.

Memory that is never touched costs nothing, and interpreted kernels run one program after the other:
so only the last program of each launch runs, on maps that are zero but for their last pixels. What
it computes must be what the whole kernel computes of these pixels alone. An offset that wrapped
around would read another number, or memory that is not there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from densesiam.ops import _backends, _triton

if _backends.missing("triton") is not None or torch.cuda.is_available():
    pytest.skip("runs in Triton's interpreter only", allow_module_level=True)

import triton.language as tl
from triton.runtime import interpreter

from tests.tolerance import assert_close
from tests.untouched import untouched

# (B, C, H, W), all with more than 2^31 elements. Offsets of images need 64 bits; those inside an
# image do as well; and an axis that 32 bits just hold.
SHAPES = {
    "batch": (3, 256, 2048, 2048),
    "image": (1, 256, 2048, 4160),
    "axis": (2, 1, 42966, 49981),  # 2^31 - 2 pixels
}
END = 4  # last columns of the last row that are not zero: of one block, whatever its size


def new_empty(
    like: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None, **options: Any
) -> Tensor:
    """Takes the place of Tensor.new_empty: sums over all programs count the others as zeros."""
    return untouched(shape if isinstance(shape, Sequence) else (shape,), dtype or like.dtype)


def run_last_programs(patch: pytest.MonkeyPatch) -> None:
    """Run only the last program of every launch, and leave its results where they are written."""
    builder = interpreter.interpreter_builder
    executor = interpreter.GridExecutor
    run, set_grid, set_index = executor.__call__, builder.set_grid_dim, builder.set_grid_idx

    def run_last(self: Any, *args: Any, **kwargs: Any) -> None:
        (programs,), self.grid = self.grid, (1,)
        patch.setattr(builder, "set_grid_dim", lambda *_: set_grid(programs, 1, 1))
        patch.setattr(builder, "set_grid_idx", lambda *_: set_index(programs - 1, 0, 0))
        run(self, *args, **kwargs)

    patch.setattr(executor, "__call__", run_last)
    patch.setattr(executor, "_restore_args_dev", lambda *_: None)
    patch.setattr(Tensor, "new_empty", new_empty)


class Maps:
    """The maps of one call: whole ones, or only their ends."""

    def __init__(self, shape: tuple[int, ...], channels_last: bool, end: bool):
        self.shape, self.channels_last, self.end = shape, channels_last, end
        self.seed = 0

    def __call__(self, channels: int | None = None) -> Tensor:
        """Zeros (B, C, H, W) but for the end; or the end, (1, C, 1, END)."""
        batch, height, width = self.shape[0], *self.shape[2:]
        channels = channels or self.shape[1]
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        end = torch.randn(1, channels, 1, END, generator=generator)
        if self.end:
            return end.movedim(1, -1).contiguous().movedim(-1, 1) if self.channels_last else end
        stored = (height, width, channels) if self.channels_last else (channels, height, width)
        whole = untouched((batch, *stored), torch.float32)
        whole = whole.movedim(-1, 1) if self.channels_last else whole
        whole[-1:, :, -1:, -END:] = end
        return whole

    def boxes(self) -> Tensor:
        """The whole map, in float64: the coordinates of so long axes are not exact in float32."""
        return torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).expand(
            1 if self.end else self.shape[0], 4
        )

    def corner(self) -> Tensor:
        """A box around the end."""
        if self.end:
            return self.boxes()
        box = [1 - END / self.shape[3], 1 - 1 / self.shape[2], 1, 1]
        return torch.tensor([box], dtype=torch.float64).expand(self.shape[0], 4)

    @property
    def size(self) -> list[int]:
        return [1, END] if self.end else list(self.shape[2:])


def overlap_sample(op: Any, maps: Maps) -> list[Tensor]:
    out = op.overlap_sample(maps(), maps.boxes(), maps.size)
    grad = op.overlap_sample_backward(maps(), maps.boxes(), maps.size, maps.channels_last)
    return [out, grad]


def pixel_similarity(op: Any, maps: Maps) -> list[Tensor]:
    p, z = maps().flatten(2), maps().flatten(2)
    loss, statistics = op.pixel_similarity(p, z, "cosine", None, "none")
    grad = op.pixel_similarity_backward(loss, p, z, "cosine", None, "none", statistics)
    return [loss, statistics, grad]


def overlap_similarity(op: Any, maps: Maps) -> list[Tensor]:
    call = maps(), maps(), maps.corner(), maps.corner(), [1, END], "cosine", None, "none"
    loss, statistics = op.overlap_similarity(*call)
    # Backward's launches are each one's last program: the others' sample gradients are zero.
    grad = op.overlap_similarity_backward(loss, *call, statistics)
    return [loss, statistics, grad]


def region_pool(op: Any, maps: Maps) -> list[Tensor]:
    features, logits = maps().flatten(2), maps(channels=2).flatten(2)
    out, _, log_sum = op.region_pool(features, logits)
    # Forward's last program has the last channels only and writes no logsumexp, and the last to add
    # the parts has the last region: backward is given that, and a gradient to all of them.
    log_sum[-1:, -END:] = logits[-1:, :, -END:].logsumexp(1)
    grad = torch.linspace(-1, 2, out[0].numel()).view(out[0].shape).expand(out.shape)
    grads = op.region_pool_backward(grad, None, features, logits, log_sum, True, True)
    return [out[:, -1:].movedim(1, 2), *grads]


def pseudo_label_loss(op: Any, maps: Maps) -> list[Tensor]:
    logits, targets = maps().flatten(2), maps().flatten(2)
    counts = torch.arange(1, logits.shape[1] + 1)  # this call's own are those of all programs
    loss, *kept = op.pseudo_label_loss(logits, targets, "inverse", counts, "none")
    grad = op.pseudo_label_loss_backward(loss, logits, "none", *kept)
    return [loss, *kept[:2], grad]


def label_map(op: Any, maps: Maps) -> list[Tensor]:
    return [op.label_map(maps(), maps.size)]


CALLS: dict[str, Callable[[Any, Maps], list[Tensor]]] = {
    call.__name__: call
    for call in (
        overlap_sample,
        pixel_similarity,
        overlap_similarity,
        region_pool,
        pseudo_label_loss,
        label_map,
    )
}


def end_of(result: Tensor) -> Tensor:
    """The last pixels of the last channels of the last image: what the last program wrote."""
    return result[-1].flatten(1)[-1:, -END:] if result.dim() > 2 else result[-1:, -END:]


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CALLS)
def test_the_end_is_read_and_written(name, shape, channels_last, monkeypatch):
    op = _triton.load_module(name)
    extents = SHAPES[shape]
    if name == "region_pool":
        if shape == "axis":
            pytest.skip("a program sums a part of the image: too many steps for the interpreter")
        # Fewer pixels of more channels, and shorter parts.
        extents = (extents[0], 8 * extents[1], extents[2] // 8, extents[3])
        monkeypatch.setattr(op, "WANTED_PROGRAMS", 2**14)
    expected = CALLS[name](op, Maps(extents, channels_last, end=True))
    with monkeypatch.context() as patch:
        run_last_programs(patch)
        results = CALLS[name](op, Maps(extents, channels_last, end=False))
    for i, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        # Of a single channel most losses are 0: there it is the addresses that count.
        assert end_of(wanted).any() or shape == "axis", f"result {i} shows nothing"
        # The same program on the same values: only a sum over all programs is another.
        assert_close(end_of(result), end_of(wanted), terms=1)


@pytest.mark.parametrize(
    ("shape", "wide"), [((2, 2**30), True), ((2, 2**30 - 64), False), ((1, 2**31 - 127), True)]
)
def test_offsets_are_as_wide_as_the_image(shape, wide):
    from densesiam.kernels.launch import index_type

    assert index_type((1, 1), shape) == (tl.int64 if wide else tl.int32)


def test_too_many_programs_are_an_error():
    from densesiam.kernels import launch

    kernel = _triton.load_module("pixel_loss")._forward
    with pytest.raises(ValueError, match=r"2147483647 programs are more .* split the batch"):
        launch.launch(kernel, 2**31 - 1, torch.zeros(1))
