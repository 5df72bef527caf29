import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from densesiam.geometry import aligned_boxes, frame_boxes, overlap_boxes
from densesiam.reference import overlap_sample
from tests.tolerance import assert_close, tolerance

# A box's ends are differences of pixels of up to 100, over a crop's side of 20 or more. A sample of
# a ramp takes a dozen steps from there: to a place in the box, in the view, in the source again.
STEPS, SIZE = 12, 100

# Derandomised: the same examples in every run. No deadline, and nothing is too slow: the first
# call of an op is slow, and so is a busy machine.
properties = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

seeds = st.integers(0, 2**32 - 1)
axes = st.sampled_from([1, 2])  # flips left to right alone, or top to bottom too
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
each = pytest.mark.parametrize("function", [overlap_boxes, frame_boxes, aligned_boxes])


def draw_crops(B: int, seed: int, axes: int = 1) -> tuple[Tensor, ...]:
    """Crops of an image of 100 x 100 pixels, often overlapping, and their flips."""
    generator = torch.Generator().manual_seed(seed)
    size = 20 + 80 * torch.rand(2, B, 2, generator=generator, dtype=torch.float64)
    start = (100 - size) * torch.rand(2, B, 2, generator=generator, dtype=torch.float64)
    crops = torch.cat([start, start + size], dim=2)
    flips = torch.rand(2, B, *[2] * (axes - 1), generator=generator) < 0.5
    return crops[0], crops[1], flips[0], flips[1]


def two_axes(flips: Tensor) -> Tensor:
    """Flips (B,) or (B, 2) as (B, 2): left to right, top to bottom."""
    return flips if flips.ndim == 2 else torch.stack([flips, torch.zeros_like(flips)], dim=1)


def coordinate_view(crop: Tensor, flips: list[bool], size: tuple[int, int]) -> Tensor:
    """A view (1, 2, H, W) whose pixels hold where in the source their centres lie: x, then y."""
    left, top, right, bottom = crop.tolist()
    H, W = size
    x = left + (torch.arange(W, dtype=torch.float64) + 0.5) / W * (right - left)
    y = top + (torch.arange(H, dtype=torch.float64) + 0.5) / H * (bottom - top)
    if flips[0]:
        x = x.flip(0)
    if flips[1]:
        y = y.flip(0)
    return torch.stack([x.expand(H, W), y[:, None].expand(H, W)])[None]


def between_pixel_centres(boxes: Tensor, size: tuple[int, int], K: tuple[int, int]) -> Tensor:
    """(B, Kh, Kw) bool: samples that the border does not clamp.

    Up to half a pixel from a view's edge there is no second pixel to interpolate with, and a
    sample there holds the border pixel's position instead of its own.
    """

    def inside(start, end, K, length):
        fraction = start[:, None] + (torch.arange(K) + 0.5) / K * (end - start)[:, None]
        return (fraction >= 0.5 / length) & (fraction <= 1 - 0.5 / length)

    x1, y1, x2, y2 = boxes.unbind(dim=1)
    columns, rows = inside(x1, x2, K[1], size[1]), inside(y1, y2, K[0], size[0])
    return rows[:, :, None] & columns[:, None, :]


@properties
@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), seeds, axes, axes)
def test_samples_of_both_views_are_the_same_source_points(K, seed, axes1, axes2):
    crops1, crops2, flips1, _ = draw_crops(4, seed, axes1)
    _, _, _, flips2 = draw_crops(4, seed, axes2)
    boxes1, boxes2, valid = overlap_boxes(crops1, crops2, flips1, flips2)
    sizes = (24, 20), (16, 33)  # views of any two resolutions
    for i in valid.nonzero().flatten().tolist():
        positions = [
            overlap_sample(
                coordinate_view(crops[i], two_axes(flips)[i].tolist(), size), boxes[i : i + 1], K
            )
            for crops, flips, size, boxes in (
                (crops1, flips1, sizes[0], boxes1),
                (crops2, flips2, sizes[1], boxes2),
            )
        ]
        overlap = torch.cat(
            [torch.maximum(crops1, crops2)[i, :2], torch.minimum(crops1, crops2)[i, 2:]]
        )
        # ... namely the centres of K x K cells of the overlap, in the source's directions.
        centres = coordinate_view(overlap, [False, False], K)
        for position, boxes, size in zip(positions, (boxes1, boxes2), sizes, strict=True):
            exact = between_pixel_centres(boxes[i : i + 1], size, K)[:, None].expand_as(centres)
            assert_close(position[exact], centres[exact], terms=STEPS, rms=SIZE)


@properties
@given(seeds, axes)
def test_agrees_with_cropping_resizing_and_flipping_an_image(seed, axes):
    generator = torch.Generator().manual_seed(seed)
    source = coordinate_view(torch.tensor([0.0, 0, 100, 100]), [False, False], (100, 100))
    # Whole pixels, as image libraries crop; enlarged, as bilinear resizing keeps a ramp exact.
    starts = torch.randint(0, 30, (2, 2), generator=generator)
    ends = starts + torch.randint(35, 50, (2, 2), generator=generator)
    crops = torch.cat([starts, ends], dim=1).double()
    flips = torch.rand(2, *[2] * (axes - 1), generator=generator) < 0.5
    views = []
    for (left, top, right, bottom), (sideways, upside_down) in zip(
        crops.int().tolist(), two_axes(flips).tolist(), strict=True
    ):
        view = TF.resized_crop(
            source, top, left, bottom - top, right - left, [60, 70], antialias=False
        )
        view = TF.horizontal_flip(view) if sideways else view
        views.append(TF.vertical_flip(view) if upside_down else view)
    *boxes, valid = overlap_boxes(crops[:1], crops[1:], flips[:1], flips[1:])
    assert valid.all()
    first, second = (overlap_sample(v, b, 12) for v, b in zip(views, boxes, strict=True))
    # Resizing clamps half a source pixel at each edge, at most 1/70 of the view; a sample reads
    # pixels up to one away, 1/60. Half a pixel of 16, 1/32, keeps clear of both together.
    exact = (
        torch.stack([between_pixel_centres(b, (16, 16), (12, 12)) for b in boxes])
        .all(dim=0)[:, None]
        .expand_as(first)
    )
    assert exact.any()
    assert_close(first[exact], second[exact], terms=STEPS, rms=SIZE)


@properties
@given(seeds, axes)
def test_frame_box_aligns_features_of_view_2_with_view_1(seed, axes):
    _, crops2, flips1, flips2 = draw_crops(3, seed, axes)
    fractions = torch.tensor([0.2, 0.1, 0.7, 0.9], dtype=torch.float64)
    extent = (crops2[:, 2:] - crops2[:, :2]).repeat(1, 2)
    crops1 = crops2[:, :2].repeat(1, 2) + fractions * extent  # well inside crop 2
    boxes = frame_boxes(crops1, crops2, flips1, flips2)
    aligned, valid = aligned_boxes(crops1, crops2, flips1, flips2)
    assert torch.equal(aligned, boxes)
    assert valid.all()
    flips1, flips2 = two_axes(flips1), two_axes(flips2)
    for i in range(3):
        seen = overlap_sample(
            coordinate_view(crops2[i], flips2[i].tolist(), (20, 30)), boxes[i : i + 1], (9, 11)
        )
        own = coordinate_view(crops1[i], flips1[i].tolist(), (9, 11))
        assert_close(seen, own, terms=STEPS, rms=SIZE)


def test_overlap_by_hand():
    # View 1 is 40 x 20 pixels, view 2 is 20 x 20; they share x 30..40, y 15..20.
    crops1, crops2 = torch.tensor([[0.0, 0, 40, 20]]), torch.tensor([[30.0, 15, 50, 35]])
    plain, flipped = torch.tensor([False]), torch.tensor([True])
    boxes1, boxes2, valid = overlap_boxes(crops1, crops2, plain, flipped)
    assert boxes1.tolist() == [[0.75, 0.75, 1, 1]]
    assert boxes2.tolist() == [[1, 0, 0.5, 0.25]]  # read from right to left
    assert valid.tolist() == [True]


def test_frame_by_hand():
    # View 1 is the right half of view 2, and half as high again.
    crops1, crops2 = torch.tensor([[20.0, 0, 40, 30]]), torch.tensor([[0.0, 0, 40, 20]])
    plain, flipped = torch.tensor([False]), torch.tensor([True])
    expected = {
        (plain, plain): [[0.5, 0, 1, 1.5]],
        (flipped, plain): [[1, 0, 0.5, 1.5]],
        (plain, flipped): [[0.5, 0, 0, 1.5]],
        (flipped, flipped): [[0, 0, 0.5, 1.5]],
    }
    for (flips1, flips2), boxes in expected.items():
        assert frame_boxes(crops1, crops2, flips1, flips2).tolist() == boxes


@properties
@given(seeds, axes)
def test_boxes_lie_inside_the_views_and_show_the_flips(seed, axes):
    crops1, crops2, flips1, flips2 = draw_crops(6, seed, axes)
    boxes1, boxes2, valid = overlap_boxes(crops1, crops2, flips1, flips2)
    for boxes, flips in ((boxes1, flips1), (boxes2, flips2)):
        near = tolerance(STEPS, SIZE / 20, torch.float64)
        assert (boxes >= -near).all()
        assert (boxes <= 1 + near).all()
        assert torch.equal((boxes[:, :2] > boxes[:, 2:])[valid], two_axes(flips)[valid])


@properties
@given(seeds)
def test_order_of_views_does_not_matter(seed):
    crops1, crops2, flips1, flips2 = draw_crops(6, seed)
    boxes1, boxes2, valid = overlap_boxes(crops1, crops2, flips1, flips2)
    swapped = overlap_boxes(crops2, crops1, flips2, flips1)
    for result, expected in zip(swapped, (boxes2, boxes1, valid), strict=True):
        assert torch.equal(result, expected)


@properties
@given(seeds, st.floats(0.1, 10), st.floats(-500, 500))
def test_moving_or_scaling_the_source_changes_nothing(seed, scale, shift):
    crops1, crops2, flips1, flips2 = draw_crops(4, seed)
    for function in (overlap_boxes, frame_boxes):
        expected = function(crops1, crops2, flips1, flips2)
        result = function(crops1 * scale + shift, crops2 * scale + shift, flips1, flips2)
        # The shift is up to 500, and crops may shrink to a tenth of what they are.
        assert_close(result, expected, terms=STEPS, rms=(SIZE + 500 / min(scale, 1)) / 20)


@properties
@given(seeds)
def test_mirroring_the_source_turns_the_reading_direction(seed):
    # Mirrored source, mirrored flips: the same views. Only the direction of reading changes.
    crops1, crops2, flips1, flips2 = draw_crops(4, seed)
    crops = [
        torch.stack([100 - c[:, 2], c[:, 1], 100 - c[:, 0], c[:, 3]], 1) for c in (crops1, crops2)
    ]
    boxes1, boxes2, valid = overlap_boxes(crops1, crops2, flips1, flips2)
    mirrored1, mirrored2, mirrored_valid = overlap_boxes(*crops, ~flips1, ~flips2)
    assert torch.equal(mirrored_valid, valid)
    backwards = [2, 1, 0, 3]
    assert_close(mirrored1, boxes1[:, backwards], terms=STEPS, rms=SIZE / 20)
    assert_close(mirrored2, boxes2[:, backwards], terms=STEPS, rms=SIZE / 20)
    # The frame of view 1 is read along view 1, wherever the source's left is.
    frames = frame_boxes(*crops, ~flips1, ~flips2), frame_boxes(crops1, crops2, flips1, flips2)
    assert_close(*frames, terms=STEPS, rms=SIZE / 20)


@properties
@given(seeds)
def test_frame_of_a_contained_crop_is_its_overlap(seed):
    crops2, _, flips1, flips2 = draw_crops(4, seed)
    crops1 = crops2 + torch.tensor([3.0, 2, -4, -5], dtype=torch.float64)
    _, boxes2, valid = overlap_boxes(crops1, crops2, flips1, flips2)
    assert valid.all()
    # The overlap is read along the source, the frame along view 1.
    along_view1 = torch.where(flips1[:, None], boxes2[:, [2, 1, 0, 3]], boxes2)
    frame = frame_boxes(crops1, crops2, flips1, flips2)
    assert_close(frame, along_view1, terms=STEPS, rms=SIZE / 20)


def test_a_pair_counts_where_view_1_lies_within_view_2():
    # A thousandth of view 2's sides, 0.04 by 0.1 pixels, is rounding.
    inside = [0.0, 0, 40, 100]
    crops1 = torch.tensor(
        [
            inside,
            [-0.03, -0.09, 40.03, 100.09],
            [-0.05, 0, 40, 100],
            [0, -0.11, 40, 100],
            [0, 0, 40.05, 100],
            [0, 0, 40, 100.11],
            [50, 0, 90, 100],
            [float("nan"), 0, 40, 100],
        ]
    )
    crops2 = torch.tensor([inside]).expand_as(crops1)
    for flipped in ([False, False], [True, False], [False, True]):
        flips1 = torch.tensor([flipped]).expand(len(crops1), 2)
        boxes, valid = aligned_boxes(crops1, crops2, flips1, flips1 & False)
        assert valid.tolist() == [True] * 2 + [False] * 6
        assert torch.equal(
            boxes[:2], frame_boxes(crops1[:2], crops2[:2], flips1[:2], flips1[:2] & False)
        )
        assert (boxes[2:] == 0.5).all()
    # A view without area holds nothing.
    flat = torch.tensor([[0.0, 0, 0, 100]])
    boxes, valid = aligned_boxes(flat, flat, *[torch.tensor([False])] * 2)
    assert valid.tolist() == [False]
    assert boxes.tolist() == [[0.5] * 4]


def test_frame_of_a_view_in_itself_is_the_whole():
    crops, _, flips, _ = draw_crops(5, 0)
    whole = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64).expand(5, 4)
    assert torch.equal(frame_boxes(crops, crops, flips, flips), whole)


@dtypes
@pytest.mark.parametrize(
    "other",
    [
        [50, 0, 90, 40],  # to the right
        [0, 50, 40, 90],  # below
        [50, 50, 90, 90],  # both
        [40, 0, 80, 40],  # they touch along an edge
        [40, 40, 80, 80],  # ... and in a corner
        [10, 10, 10, 30],  # a crop without width
        [10, 10, 30, 10],  # without height
        [30, 10, 20, 30],  # from right to left
        [float("nan"), 0, 20, 20],
    ],
)
def test_views_that_do_not_meet_have_finite_boxes_of_zero_size(other, dtype):
    crops1 = torch.tensor([[0.0, 0, 40, 40]], dtype=dtype)
    crops2 = torch.tensor([other], dtype=dtype)
    for flip in (False, True):
        flips = torch.tensor([flip])
        boxes1, boxes2, valid = overlap_boxes(crops1, crops2, flips, ~flips)
        assert valid.tolist() == [False]
        assert boxes1.tolist() == boxes2.tolist() == [[0.5] * 4]


@dtypes
def test_works_in_the_crops_type(dtype):
    crops1, crops2, flips1, flips2 = draw_crops(5, 1)
    expected = overlap_boxes(crops1, crops2, flips1, flips2)[:2]
    boxes = overlap_boxes(crops1.to(dtype), crops2.to(dtype), flips1, flips2)[:2]
    for result, exact in zip(boxes, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, exact, terms=STEPS, rms=SIZE / 20)
    assert frame_boxes(crops1.to(dtype), crops2.to(dtype), flips1, flips2).dtype == dtype


@each
def test_empty_batch(function):
    crops, flips = torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool)
    result = function(crops, crops, flips, flips)
    boxes = result[0] if isinstance(result, tuple) else result
    assert boxes.shape == (0, 4)


@each
def test_traced_as_one_graph(function):
    arguments = draw_crops(3, 2)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*arguments), function(*arguments), terms=0)


@each
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"crops1": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, r"crops1 .*int64.*float\(\)"),
        ({"crops2": torch.zeros(2, 4, dtype=torch.half)}, TypeError, r"crops2 must be float32 or"),
        ({"crops2": torch.zeros(2, 4).double()}, TypeError, "of one type, got .*32 and .*64"),
        ({"crops1": torch.zeros(2, 5)}, ValueError, r"crops1 must have shape \(B, 4\).*\(2, 5\)"),
        ({"crops2": torch.zeros(4)}, ValueError, r"crops2 must have shape \(B, 4\).*\(4,\)"),
        (
            {"crops2": torch.zeros(3, 4)},
            ValueError,
            "crops2 must have crops1's batch size 2, got 3",
        ),
        ({"flips1": torch.zeros(2)}, TypeError, "flips1 must be bool, got torch.float32"),
        ({"flips1": torch.zeros(2, 1).bool()}, ValueError, r"flips1 .* \(B,\).*\(B, 2\).*\(2, 1\)"),
        ({"flips2": torch.zeros(2, 2, 1).bool()}, ValueError, r"flips2 .* \(B,\).*\(2, 2, 1\)"),
        ({"flips2": torch.zeros(1).bool()}, ValueError, "flips2 must have crops1's batch size 2"),
        ({"flips2": torch.zeros(2, device="meta").bool()}, ValueError, "crops1's device cpu"),
    ],
)
def test_bad_input_says_what_is_wrong(function, change, error, message):
    flips = torch.zeros(2, dtype=torch.bool)
    good = {"crops1": torch.zeros(2, 4), "crops2": torch.zeros(2, 4)}
    good |= {"flips1": flips, "flips2": flips}
    with pytest.raises(error, match=f"{function.__name__}: .*{message}"):
        function(**(good | change))
