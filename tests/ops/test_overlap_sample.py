import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densesiam import ops, reference
from densesiam.ops import _backends
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.tolerance import about, assert_close, assert_within, tolerance


def flipped_halves(m: Maker):
    """The method's own case in small: crop, flip and resize of a whole map."""
    boxes = m.boxes(3, 0.0, 1.0)
    return [m.features(3, 8, 7, 9), boxes, (7, 9)]


def other_type(dtype: torch.dtype) -> torch.dtype:
    """The boxes' type that does not go with features of `dtype`: it is legal too."""
    return torch.float32 if dtype == torch.float64 else torch.float64


class TestOverlapSample(OpSuite):
    op = "overlap_sample"
    BOXES = (1,)
    CASES = {
        "map": Case(flipped_halves),
        "grid": Case(lambda m: [m.features(2, 3, 11, 6), m.boxes(2), 3]),
        "boxes of another type": Case(
            lambda m: [m.features(2, 3, 7, 6), m.boxes(2).to(other_type(m.dtype)), (4, 5)]
        ),
        "one pixel": Case(lambda m: [m.features(2, 16, 1, 1), m.boxes(2), (2, 3)]),
        "one channel": Case(lambda m: [m.features(2, 1, 4, 5), m.boxes(2), (3, 2)]),
        "tall": Case(lambda m: [m.features(1, 5, 13, 2), m.boxes(1, -2, 3), (4, 17)]),
        "zero size": Case(
            lambda m: [m.features(2, 4, 5, 6), m.boxes(2)[:, [0, 1, 0, 1]].contiguous(), (3, 2)]
        ),
        # Of a coarse grid CUDA's half types take two columns at once, with any number of cells.
        "zero size, coarse": Case(
            lambda m: [m.features(1, 5, 4, 18), m.boxes(1)[:, [0, 1, 0, 1]].contiguous(), (3, 8)]
        ),
        "more cells than pixels": Case(lambda m: [m.features(1, 2, 3, 4), m.boxes(1), (21, 18)]),
        # CUDA takes a group of narrow planes together; the last one is not full, and begins
        # anywhere in a pack.
        "narrow planes": Case(lambda m: [m.features(2, 37, 7, 7), m.boxes(2), 7]),
        "narrow planes, several groups": Case(
            lambda m: [m.features(2, 131, 3, 5), m.boxes(2), (11, 1)]
        ),
        "narrow planes, zero size": Case(
            lambda m: [m.features(2, 33, 5, 3), m.boxes(2)[:, [0, 1, 0, 1]].contiguous(), (1, 9)]
        ),
    }
    ERRORS = {
        "three dimensions": Error(
            lambda m: [m.features(2, 3, 4), m.boxes(2), 3],
            ValueError,
            "features must be (B, C, H, W), got shape (2, 3, 4)",
        ),
        "integers": Error(
            lambda m: [m.integers(5, 2, 3, 4, 4), m.boxes(2), 3],
            TypeError,
            "features must be float64, float32, float16 or bfloat16, got torch.int64",
        ),
        "half boxes": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(2).half(), 3],
            TypeError,
            "boxes must be float32 or float64, got torch.float16",
        ),
        "boxes of another batch": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(3), 3],
            ValueError,
            "boxes must have shape (B, 4) = (2, 4) for features of shape (2, 3, 4, 4), got (3, 4)",
        ),
        "NaN box": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(2) * torch.nan, 3],
            ValueError,
            "boxes must be finite, got [nan, nan, nan, nan] for sample 0",
        ),
        "no cells": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(2), (3, 0)],
            ValueError,
            "size must be positive, an int or (height, width), got (3, 0)",
        ),
        "fractional size": Error(
            lambda m: [m.features(2, 3, 4, 4), m.boxes(2), 2.5],
            TypeError,
            "size must be an int or (height, width), got 2.5",
        ),
        "no pixels": Error(
            lambda m: [m.features(2, 3, 0, 4), m.boxes(2), 3],
            ValueError,
            "features have no pixels, got shape (2, 3, 0, 4)",
        ),
    }

    def test_float64_boxes_are_not_cast_down(self, backend, device):
        # A box that float32 cannot tell from its neighbour, on a map wide enough to show it.
        features = torch.arange(2**20, dtype=torch.float64, device=device).view(1, 1, 1, -1)
        start = 0.5 + 2.0**-30
        boxes = torch.tensor([[start, 0.0, start, 1.0]], dtype=torch.float64, device=device)
        sample = ops.overlap_sample(features, boxes, 1).item()
        assert sample == about(start * 2**20 - 0.5, terms=8, dtype="float64")
        assert sample != about(0.5 * 2**20 - 0.5, terms=8, dtype="float64")

    def test_half_features_compute_coordinates_in_float32(self, backend, device):
        ramp = torch.arange(512.0, device=device).half().view(1, 1, 1, -1)
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
        assert torch.equal(ops.overlap_sample(ramp, boxes, (1, 512)), ramp)

    @pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 40, 5, 7)])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_an_unchecked_box_gives_nan_and_no_gradient(
        self, backend, device, bad, shape, monkeypatch
    ):
        if backend == "cpu":
            pytest.skip("its kernel looks at every box")
        monkeypatch.setattr("densesiam.ops._checks._CHECKED", set())
        for layout in ("contiguous", "channels_last"):
            m = Maker(torch.float32, layout, device)
            features = m.features(*shape).requires_grad_()
            boxes = m.boxes(2, 0, 1)
            boxes[1, 2] = bad
            result = ops.overlap_sample(features, boxes, 3)
            assert result[1].isnan().all()
            assert result[0].isfinite().all()
            (grad,) = torch.autograd.grad(result, features, torch.ones_like(result))
            assert grad[0].any()
            assert not grad[1].any()

    @pytest.mark.parametrize("shape", [(2, 17, 9, 20), (2, 33, 7, 9)])
    def test_infinities_stay_where_they_are(self, backend, device, dtype, shape):
        for layout in ("contiguous", "channels_last"):
            m = Maker(dtype, layout, device)
            features = m.features(*shape)
            features[0, 3], features[1, :, 2, 5] = -torch.inf, torch.inf
            whole = torch.tensor([[0.0, 0, 1, 1]], device=device).expand(2, 4)
            assert torch.equal(ops.overlap_sample(features, whole, shape[2:]), features)
            # Between pixels they spread, and do not turn into NaN.
            resized = ops.overlap_sample(features, whole, (11, 7))
            assert not resized.isnan().any()
            assert (resized[0, 3] == -torch.inf).all()
            leaf = m.features(*shape).requires_grad_()
            grad = torch.zeros_like(leaf)
            grad[0, 4, 6, 7] = torch.inf
            ops.overlap_sample(leaf, whole, shape[2:]).backward(grad)
            assert torch.equal(leaf.grad, grad)

    def test_narrow_planes_that_begin_in_the_middle_of_a_pack(self, backend, device, dtype):
        m = Maker(dtype, "contiguous", device)
        values, boxes = m.features(1, 40, 7, 5), m.boxes(1)
        samples, grads = [], []
        for offset in (0, 1):
            memory = torch.empty(values.numel() + offset, dtype=dtype, device=device)
            leaf = memory[offset:].view(values.shape).copy_(values).requires_grad_()
            result = ops.overlap_sample(leaf, boxes, (5, 7))
            cotangent = memory.new_empty(result.numel() + offset)[offset:].view(result.shape)
            cotangent.copy_(values.view(result.shape))
            samples.append(result)
            grads.extend(torch.autograd.grad(result, leaf, cotangent))
        assert_close(samples[1], samples[0], terms=4)
        assert_close(grads[1], grads[0], terms=4 * 35)

    def test_great_numbers_do_not_overflow(self, backend, device):
        greatest = torch.finfo(torch.float32).max
        checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], device=device) * greatest
        whole = torch.tensor([[0.0, 0, 1, 1]], device=device)
        assert ops.overlap_sample(checkers[None, None], whole, 5).isfinite().all()

    def test_a_weight_that_rounds_to_one_is_one(self, backend, device):
        # The second pixel's weight is 1 - 2e-9 in float64, as the boxes are, and 1 in float32.
        features = torch.tensor([torch.inf, 5.0], device=device).view(1, 1, 1, 2)
        near = 0.75 - 1e-9
        boxes = torch.tensor([[near, 0.0, near, 1.0]], dtype=torch.float64, device=device)
        assert ops.overlap_sample(features, boxes, 1).item() == 5

    def test_taps_are_the_same_bits_in_every_kernel(self, backend, device, dtype):
        if dtype not in (torch.float32, torch.float64):
            pytest.skip("half types would round the shares")
        # Of a map with a 1 in one pixel, a sample is that pixel's share; backward, the gradient of
        # one sample is its share in each pixel.
        generator = torch.Generator().manual_seed(3)
        interpreted = backend == "triton"  # which takes a minute and more for all of it
        sides = [(4, 6), (1, 3)]
        if not interpreted:
            sides += [(6, 18), (18, 6), (7, 80), (80, 7), (27, 56)]
        for pixels, cells in sides:
            edges = (
                torch.rand(2 if interpreted else 5, 2, generator=generator, dtype=torch.float64) * 3
                - 1
            )
            edges = torch.cat([torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64), edges])
            along = torch.eye(pixels, dtype=dtype).view(1, pixels, 1, pixels)
            for column in (True, False):
                for box_type in (torch.float32, torch.float64):
                    boxes = torch.zeros(len(edges), 4, dtype=torch.float64)
                    boxes[:, [0, 2] if column else [1, 3]] = edges
                    boxes = boxes.to(box_type)
                    layouts = ["contiguous", "channels_last"]
                    if interpreted:
                        del layouts[box_type == dtype]
                    for layout in layouts:
                        maps = (along if column else along.mT).repeat(len(edges), 1, 1, 1)
                        size = (1, cells) if column else (cells, 1)
                        samples = torch.eye(cells, dtype=dtype).view(1, cells, *size)
                        samples = samples.repeat(len(edges), 1, 1, 1)
                        memory = Maker(dtype, layout, device).arranged
                        with ops.use_backend("reference"):
                            expected = ops.overlap_sample(maps, boxes, size)
                        shares = ops.overlap_sample(memory(maps), boxes.to(device), size)
                        assert torch.equal(shares.cpu(), expected)
                        leaf = memory(torch.zeros(len(edges), cells, *maps.shape[2:]).to(dtype))
                        leaf.requires_grad_()
                        result = ops.overlap_sample(leaf, boxes.to(device), size)
                        (grad,) = torch.autograd.grad(result, leaf, memory(samples))
                        grad, expected = grad.cpu().flatten(2), expected.flatten(2)
                        assert torch.equal(grad, expected.mT)

    def test_identity(self, backend, device):
        features = torch.randn(2, 3, 6, 7, device=device)
        whole = torch.tensor([[0.0, 0, 1, 1]], device=device).expand(2, 4)
        # Eight steps to two coordinates of up to 7 pixels, times the difference of two of them.
        rounding = {"terms": 8, "rms": 7 * 2**0.5}
        assert_close(ops.overlap_sample(features, whole, (6, 7)), features, **rounding)
        mirrored = whole[:, [2, 1, 0, 3]]
        seen = ops.overlap_sample(features, mirrored, (6, 7))
        assert_close(seen, features.flip(3), **rounding)


@pytest.mark.skipif("overlap_sample" not in _backends.kernels("cpu"), reason="no compiled kernels")
class TestAgainstReferenceOnAnyBox:
    """Backward inverts the coordinate function: any box must give the reference's sums."""

    edge = st.one_of(
        st.floats(-3, 4, width=32),
        st.sampled_from([0.0, 1.0, 0.5, 1 / 3, -0.0]),
        st.integers(-4, 20).map(lambda n: n / 16),  # coordinates on floor() boundaries
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
            st.one_of(edge, st.sampled_from([0.0, 1e-7, -1e-7, 1e-30, 1e30])),
            st.one_of(edge, st.sampled_from([0.0, 1e-7, -1e-7])),
        ),
        pixels=st.tuples(st.integers(1, 12), st.integers(1, 40)),
        cells=st.tuples(st.integers(1, 9), st.integers(1, 40)),
        channels_last=st.booleans(),
    )
    def test_cpu(self, start, span, pixels, cells, channels_last):
        boxes = torch.tensor([[*start, start[0] + span[0], start[1] + span[1]]])
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, 3, *pixels, generator=generator)
        if channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        features.requires_grad_()
        results = []
        for module, backend in ((ops, "cpu"), (reference, "reference")):
            with ops.use_backend(backend):
                result = module.overlap_sample(features, boxes, cells)
            cotangent = torch.linspace(-1, 1, result.numel()).view(result.shape)
            results.append((result, *torch.autograd.grad(result, features, cotangent)))
        # A sample on a floor() boundary may fall in either cell; the other neighbour's share is
        # then a rounding error, so values and gradients agree all the same. Eight steps lead to the
        # two coordinates, at the size of the box and of the map, and weights are off as they are.
        reach = boxes.abs().clamp(1, 8).max().item() * max(pixels)
        (result, grad), (expected, expected_grad) = results
        assert_close(result, expected, terms=8, rms=2**0.5 * reach)
        # All samples may lie on one pixel: half their number is the most that a running sum can be.
        samples = cells[0] * cells[1]
        weights = tolerance(8 * samples, reach, torch.float32)
        sums = tolerance(samples, samples / 2, torch.float32)
        assert_within(grad, expected_grad, weights + sums)
