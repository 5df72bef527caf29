import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from densesiam import ops, reference
from densesiam.ops import _backends, use_backend
from densesiam.reference.overlap_sample import whole_map_boxes
from tests.emulator import emulated
from tests.ops.suite import LAYOUTS, Case, Error, Maker, OpSuite
from tests.rounding import may_round


def views(kind, **keywords):
    def make(m: Maker):
        p, z = m.features(3, 8, 7, 9), m.features(3, 8, 6, 5)
        return [p, z, m.boxes(3), m.boxes(3), (3, 4), kind, m.weights(3)]

    return Case(make, keywords=keywords)


class TestOverlapSimilarity(OpSuite):
    op = "overlap_similarity"
    BOXES = (2, 3)
    rounds_in_input_dtype = True  # the composition rounds the samples; fused kernels need not
    CASES = {
        "cosine": views("cosine"),
        "cosine, each sample": views("cosine", reduction="none"),
        "cross-entropy": views("cross_entropy"),
        "whole target": Case(
            lambda m: [m.features(2, 4, 5, 6), m.features(2, 4, 5, 6), m.boxes(2), None, 4]
        ),
        "whole maps": Case(
            lambda m: [m.features(2, 4, 5, 6), m.features(2, 4, 3, 3), None, None, (5, 6)]
        ),
        "one channel": Case(
            lambda m: [m.features(2, 1, 5, 6), m.features(2, 1, 4, 4), m.boxes(2), m.boxes(2), 3],
            keywords={"reduction": "none"},
            cancels=True,
        ),
        "seven": Case(
            lambda m: [m.features(2, 20, 8, 8), m.features(2, 20, 8, 8), m.boxes(2), m.boxes(2), 7]
        ),
    }
    ERRORS = {
        "channels": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 4, 4, 4), None, None, 3],
            ValueError,
            "p and z must have one batch size and number of channels, got shapes (2, 3, 4, 4) and "
            "(2, 4, 4, 4)",
        ),
        "boxes_z": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 4), None, m.boxes(3), 3],
            ValueError,
            "boxes_z must have shape (B, 4) = (2, 4)",
        ),
        "NaN boxes_p": Error(
            lambda m: [
                m.features(2, 3, 4, 4),
                m.features(2, 3, 4, 4),
                m.boxes(2) * math.nan,
                None,
                3,
            ],
            ValueError,
            "boxes_p must be finite, got [nan, nan, nan, nan] for sample 0",
        ),
        "an infinite box of z": Error(
            lambda m: [
                m.features(2, 3, 4, 4),
                m.features(2, 3, 4, 4),
                m.boxes(2),
                torch.tensor([[0, 0, 1, 1], [0, 0, 1, math.inf]], device=m.device),
                3,
            ],
            ValueError,
            "boxes_z must be finite, got [0.0, 0.0, 1.0, inf] for sample 1",
        ),
        "kind": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 4), None, None, 3, "dot"],
            ValueError,
            "kind must be one of cosine, cross_entropy, got 'dot'",
        ),
    }

    def oracle(self, args, keywords=None):
        p, z, boxes_p, boxes_z, size, *rest = args
        boxes_p = whole_map_boxes(p) if boxes_p is None else boxes_p
        boxes_z = whole_map_boxes(z) if boxes_z is None else boxes_z
        samples = [
            may_round(reference.overlap_sample(features, boxes, size))
            for features, boxes in ((p, boxes_p), (z, boxes_z))
        ]
        return reference.pixel_similarity(*samples, *rest, **(keywords or {}))


# What forward keeps


class Calls(TorchDispatchMode):
    """Records what the operator is called with, and gives back."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name == "densesiam::overlap_similarity":
            self.seen.append((args[-1], tuple(result[1].shape)))
        return result


def call_of(layout, channels, dtype=torch.float32):
    m = Maker(dtype, layout, "cpu")
    p, z = m.features(3, channels, 7, 9), m.features(3, channels, 6, 5)
    return p, z, m.boxes(3), m.boxes(3), [7, 40]


cpu_only = pytest.mark.skipif(
    "overlap_similarity" not in _backends.kernels("cpu"), reason="the CPU kernels were not built"
)


@cpu_only
def test_gradients_are_kept_where_they_will_be_asked_for():
    p, *rest = call_of("contiguous", 4)
    with use_backend("cpu"), Calls() as calls:
        ops.overlap_similarity(p, *rest)
        ops.overlap_similarity(p.requires_grad_(), *rest)
        with torch.no_grad():
            ops.overlap_similarity(p, *rest)
        ops.overlap_similarity(p.detach(), rest[0].clone().requires_grad_(), *rest[1:])
    statistics = (False, (3, 2, 280))
    assert calls.seen == [statistics, (True, (3, 7, 40, 4)), statistics, statistics]


@cpu_only
@pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 37])
def test_statistics_give_the_same_gradient_as_what_is_kept(kind, layout, dtype, channels):
    p, z, *rest = call_of(layout, channels, dtype)
    sums = torch.promote_types(dtype, torch.float32)
    weight = torch.tensor([0.5, 0, 2], dtype=sums)
    p[1] = torch.nan  # of weight 0
    grad = torch.linspace(-1, 1, 3 * 280, dtype=sums).view(3, 7, 40)
    namespace = torch.ops.densesiam
    grads = []
    for keep in (False, True):
        call = p, z, *rest, kind, weight, "none"
        _, kept = namespace.overlap_similarity(*call, keep)
        grads.append(namespace.overlap_similarity_backward(grad, *call, kept))
    assert torch.equal(*grads)
    assert grads[0].isfinite().all()
    assert grads[0].any()


@cpu_only
def test_an_exported_program_asks_no_kernel_to_keep_gradients():
    class Loss(torch.nn.Module):
        def forward(self, p, z):
            return ops.overlap_similarity(p, z, None, None, 3)

    p, z, *_ = call_of("contiguous", 4)
    program = torch.export.export(Loss(), (p.requires_grad_(), z))
    calls = [n for n in program.graph.nodes if "overlap_similarity" in str(n.target)]
    assert [call.args[-1] for call in calls] == [False]


def test_the_cuda_kernel_refuses_to_keep_gradients():
    call = *call_of("contiguous", 4), "cosine", None, "mean", True
    with emulated():
        operator = getattr(torch.ops, _backends.NAMESPACES["cpu"]).overlap_similarity
        # Which of the two depends on the torch.
        with pytest.raises((ValueError, RuntimeError), match="keep must be False"):
            operator(*call)
