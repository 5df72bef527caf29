import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import roi_align

from densesiam.reference import overlap_sample
from tests.tolerance import about, assert_close

from .support import STEPS, box_kinds, library_sample, make_boxes, properties, randn, reach, seeds

shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4, 5, 8]), st.integers(1, 9)
)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 8))


@properties
@given(shapes, sizes, box_kinds, box_kinds, seeds)
def test_equals_grid_sample_forward_and_backward(shape, size, kind_x, kind_y, seed):
    features = randn(*shape, seed=seed).requires_grad_()
    boxes = make_boxes(kind_x, kind_y, shape[0], seed)
    samples, expected = overlap_sample(features, boxes, size), library_sample(features, boxes, size)
    # Also where a coordinate lies within rounding of a whole number and the two take different
    # cells: bilinear values, and the weights that are the gradient, are continuous there.
    assert_close(samples, expected, terms=STEPS, rms=reach(boxes, shape))
    upstream = randn(*samples.shape, seed=seed + 1)
    gradients = [torch.autograd.grad(s, features, upstream)[0] for s in (samples, expected)]
    # All samples may lie on one pixel.
    assert_close(*gradients, terms=STEPS * size[0] * size[1], rms=reach(boxes, shape))


@properties
@given(shapes, sizes, box_kinds, seeds)
def test_float32_error_is_that_of_its_coordinates(shape, size, kind, seed):
    features, boxes = randn(*shape, seed=seed), make_boxes(kind, kind, shape[0], seed)
    exact = overlap_sample(features, boxes.float().double(), size)
    samples = overlap_sample(features.float(), boxes.float(), size)
    assert_close(samples, exact, terms=STEPS, rms=reach(boxes, shape))


@properties
@given(shapes, sizes, seeds)
def test_equals_roi_align_inside_the_map(shape, size, seed):
    B, _, H, W = shape
    features, boxes = randn(*shape, seed=seed), make_boxes("inside", "inside", B, seed)
    pixels = boxes * torch.tensor([W, H, W, H])
    expected = roi_align(features, list(pixels.split(1)), size, sampling_ratio=1, aligned=True)
    assert_close(overlap_sample(features, boxes, size), expected, STEPS, reach(boxes, shape))


@properties
@given(shapes, sizes, box_kinds, box_kinds, seeds)
def test_mirrored_box_reads_backwards(shape, size, kind_x, kind_y, seed):
    features, boxes = randn(*shape, seed=seed), make_boxes(kind_x, kind_y, shape[0], seed)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    samples = overlap_sample(features, boxes, size)
    swapped = overlap_sample(features, torch.stack([x2, y1, x1, y2], dim=1), size)
    assert_close(swapped, samples.flip(-1), terms=STEPS, rms=reach(boxes, shape))
    flipped = overlap_sample(features.flip(-1), torch.stack([1 - x1, y1, 1 - x2, y2], dim=1), size)
    assert_close(flipped, samples, terms=STEPS, rms=reach(boxes, shape))


@properties
@given(sizes, st.integers(-2, 2), st.integers(-3, 3), seeds)
def test_follows_a_shift_by_whole_pixels(size, down, right, seed):
    H, W = 12, 15
    features = randn(2, 3, H, W, seed=seed)
    boxes = 0.3 + 0.4 * make_boxes("inside", "mirrored", 2, seed)  # at least 3 pixels from edges
    shift = torch.tensor([right / W, down / H] * 2, dtype=torch.float64)
    shifted = overlap_sample(features.roll((down, right), (2, 3)), boxes + shift, size)
    expected = overlap_sample(features, boxes, size)
    assert_close(shifted, expected, terms=STEPS, rms=reach(boxes, features.shape))


def test_whole_pixels_are_a_slice():
    features = randn(2, 3, 8, 16, dtype=torch.float32)
    boxes = torch.tensor([[4 / 16, 2 / 8, 12 / 16, 7 / 8], [12 / 16, 0, 4 / 16, 5 / 8]])
    samples = overlap_sample(features, boxes, (5, 8))
    # Powers of two: the coordinates, and so the samples, are exact.
    assert torch.equal(samples[0], features[0, :, 2:7, 4:12])
    assert torch.equal(samples[1], features[1, :, 0:5, 4:12].flip(-1))


def test_linear_function_is_sampled_exactly():
    W = 10
    ramp = ((torch.arange(W, dtype=torch.float64) + 0.5) / W).expand(1, 1, 4, W)
    box = torch.tensor([[0.83, 0.2, 0.11, 0.9]], dtype=torch.float64)
    row = overlap_sample(ramp, box, (1, 6))[0, 0, 0]
    expected = 0.83 + (torch.arange(6, dtype=torch.float64) + 0.5) / 6 * (0.11 - 0.83)
    assert_close(row, expected, terms=STEPS, rms=1)


def test_nine_points_of_grid_sample_lie_around_the_centre():
    # The paper's K = 3: fractions 1/6, 1/2, 5/6 of the overlap.
    W = 6
    ramp = torch.arange(W, dtype=torch.float64).expand(1, 1, W, W)
    row = overlap_sample(ramp, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 3)[0, 0, 0]
    assert row.tolist() == [0.5, 2.5, 4.5]


def test_zero_size_box_repeats_one_point_and_gathers_its_gradient():
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    centre = (1 + 0.5) / 4
    samples = overlap_sample(features, torch.tensor([[centre] * 4]), 5)
    samples.sum().backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[..., 1, 1] = 25
    assert torch.equal(features.grad, expected)


def test_far_outside_is_the_border():
    features = randn(1, 2, 3, 4, dtype=torch.float32)
    for box, pixel in (
        ([2.0, 2.0, 3.0, 3.0], features[..., -1, -1]),
        ([-1.0, -2.0, -3.0, -2.0], features[..., 0, 0]),
        ([-1e38, 3e38, -3e38, 1e38], features[..., -1, 0]),
        ([-3e38, -3e38, 3e38, -3e38], None),  # the extent overflows: still no NaN, no stray read
    ):
        samples = overlap_sample(features, torch.tensor([box]), 2)
        assert samples.isfinite().all()
        if pixel is not None:
            assert torch.equal(samples, pixel[..., None, None].expand_as(samples))


@properties
@given(shapes, sizes, box_kinds, seeds)
def test_weights_of_a_sample_sum_to_one(shape, size, kind, seed):
    B, C = shape[:2]
    features = torch.full(shape, 3.0, requires_grad=True, dtype=torch.float64)
    samples = overlap_sample(features, make_boxes(kind, kind, B, seed), size)
    assert (samples == 3).all()  # interpolating between equals is exact
    (gradient,) = torch.autograd.grad(samples.sum(), features)
    total = torch.full((B, C), float(size[0] * size[1]), dtype=torch.float64)
    # Every weight is at most 1, and may add to a pixel that has all others.
    assert_close(gradient.sum(dim=(2, 3)), total, terms=4 * size[0] * size[1])


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_box_that_is_not_finite_gives_nan_and_no_gradient(position, value):
    features = randn(3, 2, 4, 5).requires_grad_()
    boxes = make_boxes("anywhere", "inside", 3)
    clean = overlap_sample(features, boxes, 3)
    boxes[1, position] = value
    samples = overlap_sample(features, boxes, 3)
    assert samples[1].isnan().all()
    assert torch.equal(samples[[0, 2]], clean[[0, 2]])
    (gradient,) = torch.autograd.grad(samples.sum(), features)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2]].sum(dim=(1, 2, 3)) > 0).all()


def test_gradient_is_continuous_across_a_cell_boundary_but_the_slope_is_not():
    # One pixel's value is 1, its neighbours' 0. On either side of its centre another pair of
    # pixels is read; the weights meet, so features and their gradient agree on both sides. The
    # slope along the coordinate jumps: one reason why boxes receive no gradient.
    features = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    features[..., 2] = 1
    features.requires_grad_()
    centre, step = 2.5 / 5, 1e-9
    values, gradients = [], []
    for u in (centre - 2 * step, centre - step, centre, centre + step, centre + 2 * step):
        sample = overlap_sample(features, torch.tensor([[u, 0, u, 1]], dtype=torch.float64), 1)
        values.append(sample.item())
        gradients.append(torch.autograd.grad(sample, features)[0])
    assert max(values) - min(values) < 3 * step * 5
    for gradient in gradients:
        assert (gradient - gradients[2]).abs().max() < 3 * step * 5
    left, right = (values[1] - values[0]) / step, (values[4] - values[3]) / step
    # Coordinates of up to 2.5 are rounded, and the differences of values divided by the step.
    assert left == about(5, terms=STEPS, rms=2.5 / step, dtype="float64")
    assert right == about(-5, terms=STEPS, rms=2.5 / step, dtype="float64")


def test_boxes_receive_no_gradient():
    boxes = make_boxes("inside", "inside", 2).requires_grad_()
    samples = overlap_sample(randn(2, 1, 4, 4).requires_grad_(), boxes, 2)
    samples.sum().backward()
    assert boxes.grad is None


def test_double_boxes_are_not_cast_down():
    # Alternating pixels show the coordinate's fraction, which float32 would lose at 2^13 pixels:
    # there its step is 2^-11 = 5e-4.
    W = 8192
    features = (torch.arange(W) % 2).float().view(1, 1, 1, W)
    u = (W - 2 + 0.5 + 0.12345) / W
    box = torch.tensor([[u, 0, u, 1]], dtype=torch.float64)
    value = overlap_sample(features, box, 1).item()
    assert value == about(0.12345, terms=1)
    value = overlap_sample(features.bfloat16(), box, 1).item()
    assert value == pytest.approx(0.12345, rel=2**-9)  # rounded once, to bfloat16


def test_half_gradients_accumulate_in_float32():
    # 1600 samples of one pixel: adding ones in bfloat16 would stop at 256.
    features = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    samples = overlap_sample(features, torch.tensor([[0.25] * 4]), 40)
    samples.sum().backward()
    assert features.grad[0, 0, 0, 0] == 1600


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(layout):
    features = randn(2, 3, 4, 5).contiguous(memory_format=layout)
    samples = overlap_sample(features, make_boxes("inside", "inside", 2), (3, 2))
    assert samples.is_contiguous(memory_format=layout)


def test_reads_other_strides_rightly():
    boxes = make_boxes("inside", "mirrored", 2)
    wide = randn(2, 6, 8, 10)
    for view in (wide[:, ::2, 1:6, ::3], wide.transpose(2, 3), wide[:, :1].expand(-1, 4, -1, -1)):
        expected = overlap_sample(view.clone(memory_format=torch.contiguous_format), boxes, 3)
        assert torch.equal(overlap_sample(view, boxes, 3), expected)


def test_one_number_is_a_square():
    features, boxes = randn(1, 2, 4, 5), make_boxes("inside", "inside", 1)
    assert torch.equal(overlap_sample(features, boxes, 3), overlap_sample(features, boxes, (3, 3)))
