"""What is special to the compiled CPU kernels; tests/ops holds them to the shared contract."""

import math
from functools import cache

import pytest
import torch

from densesiam import ops, reference
from densesiam.ops import _backends
from tests.rounding import deviations, error_bound
from tests.tolerance import FACTOR, assert_within, tolerance
from tests.untouched import untouched

pytestmark = pytest.mark.skipif(
    "overlap_similarity" not in _backends.kernels("cpu"), reason="the CPU kernels were not built"
)

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def on_cpu():
    threads = torch.get_num_threads()
    with ops.use_backend("cpu"):
        yield
    torch.set_num_threads(threads)


def maps(*shape, layout="contiguous", dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values.to(dtype)
    if layout == "channels_last":
        values = values.contiguous(memory_format=torch.channels_last)
    return values


def boxes(batch):
    # In float64, so that coordinates are too: their rounding is not what is tested here.
    return torch.rand(batch, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rois(batch):
    """Many boxes, the last image without any."""
    corners = torch.rand(40, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.cat([torch.arange(40).remainder(batch - 1)[:, None], corners], dim=1)


def vectors(features):
    """The pixels of maps as images of their own, (B H W, C)."""
    return features.movedim(1, -1).flatten(0, 2)


# Several tiles, bands and groups of channels an image, the last of each cut short.
B, C, H, W = 3, 37, 53, 41
CALLS = {
    "overlap_sample": lambda m: ops.overlap_sample(m(0), boxes(B), (40, 33)),
    "roi_align": lambda m: ops.roi_align(m(0), rois(B), (9, 7), 45.0, aligned=True),
    "roi_align, few boxes": lambda m: ops.roi_align(m(0), rois(B)[:2], 3, 9.0, 2),
    "cosine": lambda m: ops.pixel_similarity(m(0), m(1)),
    "cross_entropy": lambda m: ops.pixel_similarity(m(0), m(1), "cross_entropy"),
    "cosine of vectors": lambda m: ops.pixel_similarity(*map(vectors, (m(0), m(1)))),
    "cross_entropy of vectors": lambda m: ops.pixel_similarity(
        *map(vectors, (m(0), m(1))), "cross_entropy"
    ),
    "overlap_similarity": lambda m: ops.overlap_similarity(m(0), m(1), boxes(B), None, (21, 30)),
    "wide overlap": lambda m: ops.overlap_similarity(m(0), m(1), None, boxes(B), (2, 300)),
    "region_pool": lambda m: ops.region_pool(m(0), m(1)),
    "normalized": lambda m: ops.region_pool(m(0), m(1), normalize=True),
    "pseudo_label_loss": lambda m: ops.pseudo_label_loss(m(0), m(1), "inverse"),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CALLS)
class TestManyTiles:
    def test_thread_count_does_not_change_a_bit(self, name, layout):
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            leaves = [maps(B, C, H, W, layout=layout, seed=i).requires_grad_() for i in (0, 1)]
            result = CALLS[name](leaves.__getitem__)
            grads = torch.autograd.grad(
                result.square().sum(), leaves, allow_unused=True, materialize_grads=True
            )
            results.append((result.detach(), *grads))
        for again in results[1:]:
            for a, b in zip(again, results[0], strict=True):
                assert torch.equal(a, b)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_matches_the_reference(self, name, layout, dtype):
        leaves = [maps(B, C, H, W, layout=layout, dtype=dtype, seed=i) for i in (0, 1)]
        found = results(name, leaves)
        with ops.use_backend("reference"):
            expected = results(name, [leaf.double() for leaf in leaves])
        for actual, right, steps, halves in zip(found, expected, *rounding(name), strict=True):
            assert_within(actual, right, error_bound(right, steps, halves, dtype, actual.dtype))


def results(name, leaves):
    """The result and its gradients, of zeros where there is none."""
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = CALLS[name](leaves.__getitem__)
    cotangent = torch.linspace(-1, 1, result.numel()).view(result.shape).to(result)
    grads = torch.autograd.grad(
        result, leaves, cotangent, allow_unused=True, materialize_grads=True
    )
    return [result.detach(), *grads]


@cache
def rounding(name):
    """What rounding of all steps, and of matrices to the inputs' type, does to each element."""
    leaves = [maps(B, C, H, W, dtype=torch.float64, seed=i) for i in (0, 1)]

    def program():
        return results(name, [leaf.detach() for leaf in leaves])

    with ops.use_backend("reference"):
        return deviations(program), deviations(program, step=0, half_step=1)


def test_exp_is_accurate_to_two_units_in_the_last_place():
    # Of two logits 0 and -t, t > 17, the log of the sum is 0 to float32: the gradient of the second
    # is exp(-t) itself.
    t = torch.linspace(17.5, 86.5, 100_003)
    logits = torch.stack([torch.zeros_like(t), -t]).view(1, 2, -1).requires_grad_()
    loss = ops.pseudo_label_loss(logits, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    exact = torch.exp(-t.double())
    error = ((grad[0, 1].double() - exact) / exact).abs().max().item()
    assert error <= EPS  # between one and two units in the last place
    # Into the subnormal numbers, and to 0 below them.
    for logit, expected in ((-95.0, math.exp(-95)), (-110.0, 0.0), (-math.inf, 0.0)):
        logits = torch.tensor([[[0.0], [logit]]], requires_grad=True)
        (grad,) = torch.autograd.grad(ops.pseudo_label_loss(logits), logits)
        assert grad[0, 1].item() == pytest.approx(expected, abs=2**-149)


def test_log_is_accurate_to_two_units_in_the_last_place():
    # K equal logits: the loss is log K, of an exact sum.
    for classes in [*range(1, 70), 127, 1000, 4095, 40_000]:
        loss = ops.pseudo_label_loss(torch.full((1, classes, 1), 3.25)).item()
        assert loss == pytest.approx(math.log(classes), rel=EPS, abs=0)


def test_sums_over_thousands_of_channels_stay_accurate():
    p, z = maps(2, 2048, 16, 16), maps(2, 2048, 16, 16, seed=1)
    p = p + z  # a similarity near 0.7, not near 0
    actual = ops.pixel_similarity(p, z, reduction="none").double()
    expected = reference.pixel_similarity(p.double(), z.double(), reduction="none")
    # Totals of 64 channels are added up: 32 running sums that grow to 0.7. One sum of 2048 would
    # round 8 times as much. This is the usual error, not the largest.
    usual = tolerance(32, 0.7 / 3**0.5, torch.float32) / FACTOR
    assert (actual - expected).square().mean().sqrt() <= usual


# By number of pixels and channels: vectors of pixels together, narrower ones, and the last that
# overlaps; channels beyond whole vectors, and beyond the first sum; images of one pixel.
SHAPES = [
    *((2, 70, *plane) for plane in [(11, 13), (17, 17), (7, 7), (5, 5), (3, 3), (1, 2)]),
    *((2, channels, 3, 2) for channels in (15, 16, 17, 31, 64, 300, 1030, 2061)),
    *((images, channels, 1, 1) for images, channels in [(300, 23), (300, 9), (37, 1030), (1, 16)]),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cosine_of_every_division_into_vectors(shape, layout, reduction):
    p, z = maps(*shape, layout=layout), maps(*shape, layout=layout, seed=1)
    p = (p + z).requires_grad_()  # a similarity near 0.7, not near 0
    exact = p.detach().double().requires_grad_()
    weight = torch.arange(shape[0]).sub(1).abs().add(0.5).float()
    weight[1:2] = 0
    if shape[0] > 1:
        with torch.no_grad():
            p[1] = torch.nan  # counts nowhere
    expected = reference.pixel_similarity(exact, z.double(), "cosine", weight, reduction)
    result = ops.pixel_similarity(p, z, "cosine", weight, reduction)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    (grad,) = torch.autograd.grad(result.sum(), p)
    # Three sums of products, each of which is up to 1 of the whole, and as much as the mean's.
    scale = weight if reduction == "none" else torch.tensor(1.0)
    pixels = shape[0] * shape[2] * shape[3]
    terms = 3 * shape[1] + (pixels if reduction == "mean" else 0)
    allowed = tolerance(terms, scale, result.dtype)
    assert_within(result, expected, allowed.view(-1, 1, 1) if reduction == "none" else allowed)
    # The gradient is a z - b p, both up to 1 / |p|.
    share = weight if reduction == "none" else weight / (weight.sum() * pixels / shape[0])
    lengths = torch.linalg.vector_norm(exact.detach(), dim=1, keepdim=True)
    allowed = tolerance(3 * shape[1] + 4, share.view(-1, 1, 1, 1) / lengths, grad.dtype)
    assert_within(grad, expected_grad, allowed.expand_as(grad), "gradient")


@pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
def test_no_pixels(kind):
    p = torch.zeros(2, 3, 0, requires_grad=True)
    loss = ops.pixel_similarity(p, torch.zeros(2, 3, 0), kind)
    (grad,) = torch.autograd.grad(loss, p)
    assert loss.item() == 0
    assert grad.shape == p.shape


def test_a_nan_counts_as_the_greatest_logit():
    logits = torch.tensor([1.0, math.nan, 5.0, math.nan]).view(1, 4, 1, 1)
    assert ops.label_map(logits, (2, 3)).eq(1).all()
    loss = ops.pseudo_label_loss(torch.zeros(1, 4, 1, 1), logits)
    assert loss.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("name", "value"), [("label", 7), ("prediction", -2)])
def test_confusion_matrix_names_values_out_of_range(name, value, compiled):
    prediction, label = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 255, 1])
    (label if name == "label" else prediction)[3] = value

    def call(prediction, label):
        return ops.confusion_matrix(prediction, label, 3, 3, 255)

    if compiled:
        call = torch.compile(call, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match=rf"confusion_matrix: every {name} .*got \[{value}\]"):
        call(prediction, label)


def test_an_operator_itself_refuses_what_does_not_fit():
    # A public function's arguments are checked in Python. Here the type is torch's choice: what C++
    # calls an invalid argument is a ValueError before torch 2.15, and a RuntimeError since.
    refusal = r"^region_pool: logits must have shape \(1, 2, 3\), got shape \(1, 2, 4\)$"
    with pytest.raises((ValueError, RuntimeError), match=refusal):
        torch.ops.densesiam.region_pool(torch.ones(1, 2, 3), torch.ones(1, 2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tensors_of_more_than_2_to_the_31_elements(layout):
    """4.3 GB of half map, sparsely read.

    The other operations index with the same 64-bit products of batch, channels and pixels.
    """
    channels, side = 32770, 256  # 2,147,614,720 elements
    shape = (1, channels, side, side) if layout == "contiguous" else (1, side, side, channels)
    features = untouched(shape, torch.float16)
    if layout == "channels_last":
        features = features.movedim(-1, 1)
    assert features.numel() > 2**31
    features[0, -1, -2:, -2:] = 3.0  # the very last channel's last corner
    corner = torch.tensor([[1 - 2 / side, 1 - 2 / side, 1.0, 1.0]])
    samples = ops.overlap_sample(features, corner, 2)
    assert (samples[0, -1] == 3).all()
    assert not samples[0, :-1].any()
