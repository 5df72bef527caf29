"""Kernels that sample compile for maps and grids of one row or column, in both layouts.

    python -m tests.kernels.small

Without a GPU, and not interpreted. Fewer numbers than threads in a block, and extents of 1, which
are constants to the compiler, take it where the method's own shapes do not.
"""

import itertools

import torch

from densesiam.ops import _triton
from tests.ops.suite import LAYOUTS, Maker
from tools.triton_kernels import catching_launches

EXTENTS = ((6, 1), (18, 1)), ((1, 6), (1, 18))  # map, grid


def main() -> None:
    """Compile them, or raise the compiler's error.

    Raises:
        RuntimeError: nothing was compiled.
    """
    label, sample, similarity = (
        _triton.load_module(name) for name in ("label_map", "overlap_sample", "overlap_similarity")
    )
    boxes = torch.empty(2, 4, dtype=torch.float64, device="meta")
    with catching_launches(90) as caught:
        for layout, (extent, cells) in itertools.product(LAYOUTS, EXTENTS):
            make = Maker(torch.float64, layout, "meta")
            values, size = make.features(2, 2, *extent), list(cells)
            label.label_map(values, size)
            sample.overlap_sample(values, boxes, size)
            grad = make.features(2, 2, *cells)
            sample.overlap_sample_backward(grad, boxes, list(extent), layout != "contiguous")
            call = values, values, boxes, boxes, size, "cosine", boxes[:, 0], "mean"
            loss, statistics = similarity.overlap_similarity(*call, False)
            similarity.overlap_similarity_backward(loss, *call, statistics)
    if not caught:
        raise RuntimeError("no kernel was launched: is TRITON_INTERPRET set? Unset it")
    print(len(caught), "launches,", len({kernel.hash for _, kernel in caught}), "kernels")


if __name__ == "__main__":
    main()
