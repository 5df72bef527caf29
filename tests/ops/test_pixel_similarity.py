import pytest
import torch

from densesiam import ops, reference
from tests.ops.suite import Case, Error, Maker, OpSuite, upcast
from tests.rounding import accumulate_dtype
from tests.tolerance import assert_close, assert_within, tolerance


def cosine(weight, **keywords):
    def make(m: Maker):
        args = [m.features(3, 9, 5, 7), m.features(3, 9, 5, 7), "cosine"]
        return [*args, m.weights(3)] if weight else args

    return Case(make, keywords=keywords)


def cross_entropy(weight, **keywords):
    def make(m: Maker):
        args = [m.features(3, 27, 4, 5, scale=3), m.features(3, 27, 4, 5, scale=3), "cross_entropy"]
        return [*args, m.weights(3)] if weight else args

    return Case(make, keywords=keywords)


class TestPixelSimilarity(OpSuite):
    op = "pixel_similarity"
    CASES = {
        "cosine": cosine(False),
        "cosine, weighted": cosine(True),
        "cosine, each pixel": cosine(True, reduction="none"),
        "cross-entropy": cross_entropy(False),
        "cross-entropy, weighted": cross_entropy(True),
        "cross-entropy, each pixel": cross_entropy(False, reduction="none"),
        "many channels": Case(lambda m: [m.features(2, 300, 3), m.features(2, 300, 3)]),
        "channels of several warps": Case(
            lambda m: [m.features(2, 130, 3), m.features(2, 130, 3), "cross_entropy"]
        ),
        "vectors": Case(lambda m: [m.features(4, 16), m.features(4, 16), "cross_entropy"]),
        "many pixels": Case(lambda m: [m.features(2, 8, 37, 41), m.features(2, 8, 37, 41)]),
        "one channel, cosine": Case(
            lambda m: [m.features(2, 1, 3, 5), m.features(2, 1, 3, 5)],
            keywords={"reduction": "none"},
            cancels=True,
        ),
        "one channel": Case(
            lambda m: [m.features(2, 1, 3, 5), m.features(2, 1, 3, 5), "cross_entropy"],
            keywords={"reduction": "none"},
            cancels=True,
        ),
        "bool weight": Case(
            lambda m: [m.features(3, 4, 5), m.features(3, 4, 5), "cosine", m.weights(3) > 0]
        ),
    }
    ERRORS = {
        "shapes": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 3, 4, 5)],
            ValueError,
            "p and z must have one shape, got (2, 3, 4, 4) and (2, 3, 4, 5)",
        ),
        "types": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4).double()],
            TypeError,
            "z and p must have one type outside autocast, got torch.float64 and torch.float32",
        ),
        "kind": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4), "l2"],
            ValueError,
            "kind must be one of cosine, cross_entropy, got 'l2'",
        ),
        "reduction": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4)],
            ValueError,
            "reduction must be one of mean, none, got 'sum'",
            keywords={"reduction": "sum"},
        ),
        "weight of another batch": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4), "cosine", m.weights(3)],
            ValueError,
            "weight must have shape (B,) = (2,), got (3,)",
        ),
        "integer weight": Error(
            lambda m: [m.features(2, 3, 4), m.features(2, 3, 4), "cosine", m.integers(2, 2)],
            TypeError,
            "weight must be float or bool, got torch.int64",
        ),
        "no channels": Error(
            lambda m: [m.features(2, 0, 4), m.features(2, 0, 4)],
            ValueError,
            "p must be (B, C, *) with C >= 1, got shape (2, 0, 4)",
        ),
    }

    @pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("pixels", [(5,), ()])
    def test_an_image_of_weight_zero_counts_nowhere(self, backend, device, kind, reduction, pixels):
        m = Maker(torch.float32, "contiguous", device)
        p, z = m.features(3, 4, *pixels), m.features(3, 4, *pixels)
        weight = torch.tensor([1.0, 0.0, 1.0], device=device)
        alone = ops.pixel_similarity(p[::2], z[::2], kind, reduction=reduction)
        p[1], z[1] = torch.nan, torch.inf
        p.requires_grad_()
        result = ops.pixel_similarity(p, z, kind, weight, reduction)
        (grad,) = torch.autograd.grad(result.sum(), p)
        if reduction == "none":
            assert not result[1].any()
            result = result[::2]
        assert_close(result, alone, terms=2 * 5 + 3 * 4, rms=3)
        assert grad[::2].any()
        assert not grad[1].any()

    @pytest.mark.parametrize("kind", ["cosine", "cross_entropy"])
    def test_no_weight_at_all_gives_zero(self, backend, device, kind):
        m = Maker(torch.float32, "contiguous", device)
        p = m.features(2, 4, 5).requires_grad_()
        loss = ops.pixel_similarity(p, p.detach(), kind, torch.zeros(2, device=device))
        (grad,) = torch.autograd.grad(loss, p)
        assert loss.item() == 0
        assert not grad.any()

    def test_zero_vectors(self, backend, device):
        p = torch.zeros(1, 4, 2, device=device, requires_grad=True)
        z = torch.ones(1, 4, 2, device=device)
        loss = ops.pixel_similarity(p, z)
        (grad,) = torch.autograd.grad(loss, p)
        assert loss.item() == 0
        # Below the clamp the norm is the constant 1e-8: -z/|z| / 1e-8, over two pixels.
        assert_close(grad, torch.full_like(grad, -0.5 / 1e-8 / 2), terms=6)

    @pytest.mark.parametrize("channels", [5, 8, 130])
    def test_a_large_vector_matches_reference(self, backend, device, dtype, layout, channels):
        if dtype == torch.float16:
            pytest.skip("the square of its largest number is small in float32")
        # From half the exponents on squares overflow; scaled are vectors from 3/8 of them on.
        for size in (1e120, 1e200) if dtype == torch.float64 else (1e16, 1e30):
            m = Maker(dtype, layout, device)
            p, z = m.features(1, channels, 4, 8), m.features(1, channels, 4, 8)
            p[..., 0, :2] *= size
            z[..., 0, 1:3] *= size
            p[:, 2, 1, 0] = z[:, 3, 1, 1] = torch.nan
            p[:, 4, 1, 2] = z[:, 4, 1, 3] = torch.inf
            exact_p, exact_z = upcast(p).requires_grad_(), upcast(z)
            expected = reference.pixel_similarity(exact_p, exact_z, reduction="none")
            (expected_grad,) = torch.autograd.grad(expected.sum(), exact_p)
            assert expected.isnan().sum() == 4
            p.requires_grad_()
            result = ops.pixel_similarity(p, z, reduction="none")
            (grad,) = torch.autograd.grad(result.sum(), p)
            # Three sums of products, each of which is up to 1 of the whole.
            assert_close(result, expected, terms=3 * channels, rms=1)
            # The gradient is a z - b p, both up to 1 / |p|. Of a and b, as of all numbers of the
            # type of sums, the last place is no smaller than that of the smallest one.
            sums = accumulate_dtype(dtype)
            lengths = [torch.linalg.vector_norm(t.detach(), dim=1) for t in (exact_p, exact_z)]
            rounding = tolerance(3 * channels + 4, 1 / lengths[0], sums)
            rounding += torch.finfo(sums).smallest_normal * torch.finfo(sums).eps * sum(lengths)
            allowed = rounding.unsqueeze(1) + tolerance(1, expected_grad.nan_to_num(0), dtype)
            assert_within(grad, expected_grad, allowed, f"gradient at {size}")

    def test_large_logits_stay_finite(self, backend, device):
        p = torch.tensor([[[1e4], [-1e4], [0.0]]], device=device, requires_grad=True)
        z = torch.tensor([[[1e4], [0.0], [-1e4]]], device=device)
        loss = ops.pixel_similarity(p, z, "cross_entropy")
        (grad,) = torch.autograd.grad(loss, p)
        assert loss.item() == 0
        assert not grad.any()
