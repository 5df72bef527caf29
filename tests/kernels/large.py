"""No offset overflows: tensors of more than 2^31 elements, on the program that reads their end.

    python -m tests.kernels.large OP

A stray address ends the process, so each operation has one of its own (test_large.py).

Memory that is never touched costs nothing, and interpreted kernels run one program after the other:
so only the last program of each launch runs, on maps that are zero but for their last pixels. What
it computes must be what the whole kernel computes of these pixels alone. An offset that wrapped
around would read another number, or memory that is not there.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from densesiam.ops import _triton
from densesiam.ops._operations import OPERATIONS
from tests.ops.suite import Maker
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


def overlap_similarity(op: Any, maps: Maps) -> list[Tensor]:
    call = maps(), maps(), maps.corner(), maps.corner(), [1, END], "cosine", None, "none"
    loss, statistics = op.overlap_similarity(*call, False)
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
    counts = torch.arange(1.0, logits.shape[1] + 1)  # this call's own are those of all programs
    loss, *kept = op.pseudo_label_loss(logits, targets, "inverse", counts, "none", None)
    grad = op.pseudo_label_loss_backward(loss, logits, "none", None, *kept)
    return [loss, *kept[:2], grad]


def label_map(op: Any, maps: Maps) -> list[Tensor]:
    return [op.label_map(maps(), maps.size)]


def of_pixel_loss(name: str) -> Callable[[Any, Maps], list[Tensor]]:
    """A call of any pixel loss, of the kind that its exemplary call has."""
    kinds = [a for a in OPERATIONS[name].example(Maker(*FLOATS), 1, 1, 1, 1) if isinstance(a, str)]

    def call(op: Any, maps: Maps) -> list[Tensor]:
        arguments = maps().flatten(2), maps().flatten(2), *kinds, None, "none"
        loss, statistics = getattr(op, name)(*arguments)
        grad = getattr(op, f"{name}_backward")(loss, *arguments, statistics)
        return [loss, statistics, grad]

    return call


FLOATS = torch.float32, "contiguous", "cpu"
CALLS: dict[str, Callable[[Any, Maps], list[Tensor]]] = {
    call.__name__: call
    for call in (overlap_sample, overlap_similarity, region_pool, pseudo_label_loss, label_map)
}
"""Calls of all but pixel losses, which are all called alike."""


def end_of(result: Tensor) -> Tensor:
    """The last pixels of the last channels of the last image: what the last program wrote."""
    return result[-1].flatten(1)[-1:, -END:] if result.dim() > 2 else result[-1:, -END:]


def check(name: str, shape: str, channels_last: bool) -> None:
    """What the last program computes is what the whole kernel computes of the end alone."""
    op, call = _triton.load_module(name), CALLS.get(name) or of_pixel_loss(name)
    extents = SHAPES[shape]
    with pytest.MonkeyPatch.context() as patch:
        if name == "region_pool":
            # Fewer pixels of more channels, and shorter parts.
            extents = (extents[0], 8 * extents[1], extents[2] // 8, extents[3])
            patch.setattr(op, "WANTED_PROGRAMS", 2**14)
        expected = call(op, Maps(extents, channels_last, end=True))
        run_last_programs(patch)
        results = call(op, Maps(extents, channels_last, end=False))
    for i, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        # Of a single channel most losses are 0: there it is the addresses that count.
        assert end_of(wanted).any() or shape == "axis", f"result {i} shows nothing"
        # The same program on the same values: only a sum over all programs is another. A pixel loss
        # adds channels up in blocks, which are of another size for the end alone.
        terms = extents[1] if OPERATIONS[name].pixel_loss else 1
        assert_close(end_of(result), end_of(wanted), terms)


def main(name: str) -> None:
    """Every shape in both layouts."""
    for shape in SHAPES:
        if (name, shape) == ("region_pool", "axis"):
            continue  # a program sums a part of the image: too many steps for the interpreter
        for channels_last in (False, True):
            print(f"{name}, {shape}, channels_last={channels_last}", file=sys.stderr, flush=True)
            check(name, shape, channels_last)


if __name__ == "__main__":
    main(sys.argv[1])
