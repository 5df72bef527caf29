import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align as torchvision_roi_align

from densesiam import ops, reference
from densesiam.ops import _backends
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.tolerance import assert_close, assert_within, tolerance


def rois(m: Maker, images: int, count: int, side: float, low: float = -0.2, high: float = 1.2):
    """(R, 5): boxes of any direction on maps of that side, reaching a little over the border."""
    corners = m.boxes(count, low, high) * side
    image = m.integers(images, count, 1).to(corners.dtype)
    return torch.cat([image, corners], dim=1)


def these(m: Maker, *boxes: list[float]):
    """(R, 5): those boxes."""
    return torch.tensor(boxes, dtype=torch.float32, device=m.device)


def upright(boxes):
    """The same boxes, not mirrored."""
    low, high = boxes[:, 1:3].minimum(boxes[:, 3:]), boxes[:, 1:3].maximum(boxes[:, 3:])
    return torch.cat([boxes[:, :1], low, high], dim=1)


def adaptive(m: Maker):
    return [m.features(3, 8, 11, 13), upright(rois(m, 3, 7, 12)), (3, 4)]


@functools.cache
def random_boxes(count: int, images: int, height: int, width: int):
    """Everywhere, of every size: inside, outside, empty, degenerate, mirrored, on whole pixels."""
    generator = torch.Generator().manual_seed(3)
    unit = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    boxes = torch.cat([torch.randint(images, (count, 1), generator=generator), unit], dim=1)
    corners = boxes[:, 1:]
    corners.mul_(1.8).sub_(0.4).mul_(torch.tensor([width, height, width, height]))
    corners[::7] = corners[::7].round()  # whole pixels
    corners[1::11, 2:] = corners[1::11, :2]  # empty
    corners[2::11, 2] = corners[2::11, 0]  # of no width
    corners[3::11] += 3 * max(height, width)  # outside
    corners[4::11, 2:] = corners[4::11, :2] + 1e-3
    corners[5::11] *= 4  # far larger than the map
    return boxes


class TestRoiAlign(OpSuite):
    op = "roi_align"
    BOXES = (1,)
    CASES = {
        "adaptive": Case(adaptive, keywords={"aligned": True}),
        "as detection calls it": Case(
            lambda m: [m.features(2, 19, 13, 9), rois(m, 2, 5, 40), 7],
            keywords={"spatial_scale": 0.25, "sampling_ratio": 2},
        ),
        "one point": Case(
            lambda m: [m.features(2, 3, 8, 9), rois(m, 2, 4, 8), (2, 5)],
            keywords={"sampling_ratio": 1, "aligned": True},
        ),
        "at least a pixel": Case(lambda m: [m.features(2, 5, 6, 7), rois(m, 2, 5, 6), 3]),
        "one channel": Case(
            lambda m: [m.features(2, 1, 5, 7), upright(rois(m, 2, 4, 6)), 2],
            keywords={"aligned": True},
        ),
        "one pixel": Case(lambda m: [m.features(2, 16, 1, 1), rois(m, 2, 3, 2), (2, 1)]),
        "boxes of another type": Case(
            lambda m: [
                m.features(2, 3, 7, 6),
                upright(rois(m, 2, 3, 6)).to(
                    torch.float32 if m.dtype == torch.float64 else torch.float64
                ),
                2,
            ],
            keywords={"aligned": True},
        ),
        "far larger than the map": Case(
            lambda m: [m.features(1, 70, 5, 4), upright(rois(m, 1, 3, 30, -1, 2)), 3],
            keywords={"aligned": True},
        ),
        "lists": Case(
            lambda m: [m.features(2, 3, 7, 6), [rois(m, 2, n, 6)[:, 1:] for n in (3, 1)], 2],
            keywords={"sampling_ratio": 3},
        ),
    }
    ERRORS = {
        "three dimensions": Error(
            lambda m: [m.features(2, 3, 4), rois(m, 2, 2, 4), 3],
            ValueError,
            "features must be (B, C, H, W), got shape (2, 3, 4)",
        ),
        "integers": Error(
            lambda m: [m.integers(5, 2, 3, 4, 4), rois(m, 2, 2, 4), 3],
            TypeError,
            "features must be float64, float32, float16 or bfloat16, got torch.int64",
        ),
        "no pixels": Error(
            lambda m: [m.features(2, 3, 0, 4), rois(m, 2, 2, 4), 3],
            ValueError,
            "features have no pixels, got shape (2, 3, 0, 4)",
        ),
        "integer boxes": Error(
            lambda m: [m.features(2, 3, 4, 4), m.integers(2, 3, 5), 3],
            TypeError,
            "boxes must be float64, float32, float16 or bfloat16, got torch.int64",
        ),
        "boxes without an image": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(2), 3],
            ValueError,
            "boxes must be (R, 5): image, x1, y1, x2, y2, got shape (2, 4)",
        ),
        "lists of boxes with an image": Error(
            lambda m: [m.features(2, 3, 4, 4), [m.boxes(2), rois(m, 2, 2, 4)], 3],
            ValueError,
            "boxes[1] must be (L, 4): x1, y1, x2, y2, got shape (2, 5)",
        ),
        "too many lists": Error(
            lambda m: [m.features(2, 3, 4, 4), [m.boxes(1)] * 3, 3],
            ValueError,
            "a list of boxes must have one tensor for each of 2 images, got 3",
        ),
        "lists of two types": Error(
            lambda m: [m.features(2, 3, 4, 4), [m.boxes(1), m.boxes(1).double()], 3],
            TypeError,
            "all boxes must have one type, got torch.float32 and torch.float64",
        ),
        "no boxes": Error(
            lambda m: [m.features(2, 3, 4, 4), None, 3],
            TypeError,
            "boxes must be a tensor (R, 5) or a list of tensors (L, 4), got NoneType",
        ),
        "NaN box": Error(
            lambda m: [m.features(1, 3, 4, 4), these(m, [0, 1, 2, torch.nan, 3]), 3],
            ValueError,
            "boxes must be finite, got [0.0, 1.0, 2.0, nan, 3.0] for box 0",
        ),
        "an image that there is not": Error(
            lambda m: [m.features(2, 3, 4, 4), these(m, [0, 1, 1, 2, 2], [2, 1, 1, 2, 2]), 3],
            ValueError,
            "the first column of boxes must be an image from 0 to 1, got 2 for box 1",
        ),
        "an image below 0": Error(
            lambda m: [m.features(2, 3, 4, 4), these(m, [-1, 1, 1, 2, 2]), 3],
            ValueError,
            "the first column of boxes must be an image from 0 to 1, got -1 for box 0",
        ),
        "no cells": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), (3, 0)],
            ValueError,
            "size must be positive, an int or (height, width), got (3, 0)",
        ),
        "a word as scale": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), 3, "half"],
            TypeError,
            "spatial_scale must be a number, got 'half'",
        ),
        "an infinite scale": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), 3, float("inf")],
            ValueError,
            "spatial_scale must be finite, got inf",
        ),
        "half a point": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), 3, 1.0, 0.5],
            TypeError,
            "sampling_ratio must be an int, got 0.5",
        ),
        "too many points": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), 4, 1.0, 2**29],
            ValueError,
            "sampling_ratio times size must be at most 2147483647, got 536870912 for size 4",
        ),
        "a number as aligned": Error(
            lambda m: [m.features(2, 3, 4, 4), rois(m, 2, 2, 4), 3, 1.0, 2, 1],
            TypeError,
            "aligned must be True or False, got 1",
        ),
    }

    def test_a_mean_of_large_numbers_is_no_infinity(self, backend, dtype, layout, device):
        m = Maker(dtype, layout, device)
        large = torch.finfo(dtype).max / 2
        features = m.arranged(torch.full((1, 3, 5, 5), large, dtype=dtype))
        boxes = torch.tensor([[0.0, 0, 0, 4, 4]], device=device)
        result = ops.roi_align(features, boxes, 1, 1.0, 4)
        assert_close((result / large).cpu(), torch.ones(1, 3, 1, 1).double(), terms=16, rms=1)

    def test_empty_batch(self, case, backend, device):
        """No boxes, and no images either; boxes of no image are an error."""
        for images in (0, 2):
            m = Maker(torch.float32, "contiguous", device)
            features = m.features(images, 3, 4, 5).requires_grad_()
            boxes = rois(m, 1, 0, 4)
            result = ops.roi_align(features, boxes, (3, 2), **case.keywords)
            assert result.shape == (0, 3, 3, 2)
            (grad,) = torch.autograd.grad(result.sum(), features)
            assert grad.shape == features.shape
            assert not grad.any()
        assert ops.roi_align(features[:, :0], rois(m, 2, 2, 4), 3).shape == (2, 0, 3, 3)

    def test_half_boxes_are_cast_up(self, backend, device):
        m = Maker(torch.float32, "contiguous", device)
        features, boxes = m.features(2, 3, 7, 6), rois(m, 2, 4, 6).bfloat16()
        with pytest.raises(RuntimeError):  # torchvision wants one type
            torchvision_roi_align(features.cpu(), boxes.cpu(), 3)
        result = ops.roi_align(features, boxes, 3)
        assert torch.equal(result, ops.roi_align(features, boxes.float(), 3))

    def test_fractions_of_an_image_are_cut_off(self, backend, device):
        m = Maker(torch.float32, "contiguous", device)
        features, boxes = m.features(3, 3, 7, 6), rois(m, 3, 6, 6)
        expected = ops.roi_align(features, boxes, 3)
        boxes[:, 0] = boxes[:, 0].where(boxes[:, 0] > 0, -1) + 0.75
        assert torch.equal(ops.roi_align(features, boxes, 3), expected)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -1, 2, 1e30])
    def test_an_unchecked_box_gives_nan_and_no_gradient(self, backend, device, bad, monkeypatch):
        if backend == "cpu":
            pytest.skip("the CPU's kernel checks by itself")
        monkeypatch.setattr("densesiam.ops._checks._CHECKED", set())
        for column in (0,) if abs(bad) < torch.inf else (0, 3):
            for layout in ("contiguous", "channels_last"):
                m = Maker(torch.float32, layout, device)
                features = m.features(2, 4, 5, 6).requires_grad_()
                boxes = torch.tensor([[0, 1, 1, 4, 4], [1.0, 1, 1, 4, 4]], device=device)
                boxes[1, column] = bad
                result = ops.roi_align(features, boxes, 3)
                assert result[1].isnan().all()
                assert result[0].isfinite().all()
                (grad,) = torch.autograd.grad(result, features, torch.ones_like(result))
                assert grad[0].any()
                assert not grad[1].any()

    @pytest.mark.parametrize("ratio", [-1, 2])
    def test_boxes_that_scale_beyond_the_type_lie_off_the_map(self, backend, device, ratio):
        m = Maker(torch.float32, "contiguous", device)
        features = m.features(1, 3, 6, 7).requires_grad_()
        boxes = torch.tensor([[0, 1, 1, 5, 5], [0, -1, 1, 5, 5.0]], device=device)
        result = ops.roi_align(features, boxes, 3, 1e76, ratio, aligned=True)
        (grad,) = torch.autograd.grad(result.sum(), features)
        assert not result.any()
        assert not grad.any()

    def test_infinities_spread_to_the_cells_that_read_them(self, backend, device):
        for layout in ("contiguous", "channels_last"):
            m = Maker(torch.float32, layout, device)
            features = m.features(1, 9, 8, 8)
            boxes = torch.tensor([[0, 1, 1, 5, 5.0]], device=device)  # on the pixels' centres
            call = functools.partial(ops.roi_align, boxes=boxes, size=4, sampling_ratio=1)
            clean = call(features, aligned=True)
            for bad in (torch.nan, torch.inf, -torch.inf):
                features[0, 3, 2, 2] = bad
                result = call(features, aligned=True)
                wrong = torch.zeros(1, 9, 4, 4, dtype=torch.bool, device=device)
                wrong[0, 3, 1, 1] = True  # and no neighbour, though their points touch it with 0
                assert torch.equal(~result.isfinite(), wrong)
                assert torch.equal(result[~wrong], clean[~wrong])
                assert result[wrong].isnan() if bad != bad else result[wrong] == bad

    def test_the_last_bit_decides_as_it_does_for_torchvision(self, backend, device):
        # Widths of whole pixels, whose quotient decides how many points there are, and points on
        # both ends of [-1, W], where a sample begins to count.
        features = torch.ones(1, 1, 12, 12, device=device)
        edges = torch.arange(-3, 16, dtype=torch.float32)
        corners = torch.cartesian_prod(edges, edges)
        corners = corners[corners[:, 1] > corners[:, 0]]
        boxes = torch.zeros(len(corners), 5)
        boxes[:, 1], boxes[:, 2], boxes[:, 3], boxes[:, 4] = 2, corners[:, 0], 9, corners[:, 1]
        for scale, size, ratio, aligned in (
            (1.0, 7, -1, True),
            (1.0, 3, -1, False),
            (1 / 3, 7, 0, True),
            (0.1, 1, 3, False),
            (1.0, 1, 1, True),
        ):
            scaled = boxes / torch.tensor([1, scale, scale, scale, scale])
            expected = torchvision_roi_align(features.cpu(), scaled, size, scale, ratio, aligned)
            result = ops.roi_align(features, scaled.to(device), size, scale, ratio, aligned)
            # A cell is its share of points on the map: another number of them differs by far more.
            assert_close(result, expected.to(device), terms=64, rms=1.0)

    @pytest.mark.parametrize("aligned", [False, True])
    @pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_equals_torchvision_on_ten_thousand_boxes(
        self, memory_format, ratio, aligned, backend, device
    ):
        # Of each of 20 kinds: 10^4 in each memory format.
        count = 60 if backend == "emulator" else 1000
        images, height, width = 3, 9, 12
        boxes = random_boxes(count, images, height, width)
        if aligned and ratio <= 0:
            boxes = upright(boxes)  # others are refused by torchvision, on the CPU
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(images, 3, height, width, generator=generator, dtype=torch.float64)
        features = features.contiguous(memory_format=memory_format).to(device).requires_grad_()
        boxes = boxes / torch.tensor([1, 0.5, 0.5, 0.5, 0.5])
        arguments = ((3, 2), 0.5, ratio, aligned)
        exact = features.detach().cpu().requires_grad_()
        expected = torchvision_roi_align(exact, boxes, *arguments)
        result = ops.roi_align(features, boxes.to(device), *arguments)
        # Eight steps to each of two coordinates of up to 4 maps, times the difference of two normal
        # numbers; sums of at most 4 * 4 * 36 * 36 points of a mean round less.
        reach = 2**0.5 * 4 * 4 * max(height, width)
        assert_close(result, expected.to(device), terms=16, rms=reach)
        cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        (expected_grad,) = torch.autograd.grad(expected, exact, cotangent)
        (grad,) = torch.autograd.grad(result, features, cotangent.to(device))
        # Each pixel lies in no more than all cells of an image's boxes.
        assert_close(grad, expected_grad.to(device), terms=16 * 6 * count, rms=reach)

    def test_mirrored_adaptive_boxes_are_zero(self, backend, device):
        # torchvision raises on the CPU and gives this on a GPU.
        features = torch.randn(1, 2, 8, 8, device=device, requires_grad=True)
        boxes = torch.tensor([[0, 6, 1, 2, 7.0], [0, 1, 6, 5, 2], [0, 6, 6, 2, 2]], device=device)
        result = ops.roi_align(features, boxes, 3, aligned=True)
        assert not result.any()
        (grad,) = torch.autograd.grad(result, features, torch.ones_like(result))
        assert not grad.any()


@pytest.mark.skipif("roi_align" not in _backends.kernels("cpu"), reason="no compiled kernels")
class TestAgainstReferenceOnAnyBox:
    """Boxes of any size and place give the reference's means and sums."""

    edge = st.one_of(
        st.floats(-30, 60, width=32),
        st.sampled_from([0.0, -1.0, 0.5, 8.0, -0.0]),
        st.integers(-40, 200).map(lambda n: n / 8),
    )

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        start=st.tuples(edge, edge),
        span=st.tuples(
            st.one_of(edge, st.sampled_from([0.0, 1e-7, -1e-7, 1e-30, 1e4])),
            st.one_of(edge, st.sampled_from([0.0, 1e-7, -1e-7])),
        ),
        pixels=st.tuples(st.integers(1, 12), st.integers(1, 40)),
        cells=st.tuples(st.integers(1, 9), st.integers(1, 12)),
        channels=st.sampled_from([1, 3, 37]),
        ratio=st.integers(0, 4),
        aligned=st.booleans(),
        channels_last=st.booleans(),
    )
    def test_cpu(self, start, span, pixels, cells, channels, ratio, aligned, channels_last):
        boxes = torch.tensor([[0, *start, start[0] + span[0], start[1] + span[1]]])
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, channels, *pixels, generator=generator)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        features.requires_grad_()
        results = []
        for module, backend in ((ops, "cpu"), (reference, "reference")):
            with ops.use_backend(backend):
                result = module.roi_align(features, boxes, cells, 1.0, ratio, aligned)
            cotangent = torch.linspace(-1, 1, result.numel()).view(result.shape)
            results.append((result, *torch.autograd.grad(result, features, cotangent)))
        # Both take the same points. A share of a cell is the sum of those of up to `points` points,
        # each of them up to 1, and the result is the mean over rows and columns.
        points = 2 * max(pixels) + 5 + ratio
        (result, grad), (expected, expected_grad) = results
        assert_close(result, expected, terms=4 * points, rms=2**0.5 * 4)
        allowed = tolerance(4 * points * cells[0] * cells[1], cells[0] * cells[1], torch.float32)
        assert_within(grad, expected_grad, allowed)
