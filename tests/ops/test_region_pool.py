import torch

from densesiam import ops, reference
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.rounding import accumulate_dtype
from tests.tolerance import assert_close, assert_within, tolerance


class TestRegionPool(OpSuite):
    op = "region_pool"
    rounds_in_input_dtype = True  # half types may round the mask to half before the product
    CASES = {
        "regions": Case(lambda m: [m.features(2, 16, 6, 7), m.features(2, 5, 6, 7)], (0, 1)),
        "one channel": Case(lambda m: [m.features(2, 1, 6, 7), m.features(2, 5, 6, 7)], (0, 1)),
        "normalized": Case(
            lambda m: [m.features(2, 16, 6, 7), m.features(2, 5, 6, 7)],
            (0, 1),
            {"normalize": True},
        ),
        "more regions than channels": Case(
            lambda m: [m.features(1, 3, 5, 9), m.features(1, 40, 5, 9, scale=3)], (0, 1)
        ),
        # CUDA kernels hold up to 128 regions in a block, and find log sum exp apart for more.
        "more regions than a block": Case(
            lambda m: [m.features(1, 9, 5, 7), m.features(1, 150, 5, 7)], (0, 1)
        ),
        "many pixels": Case(
            lambda m: [m.features(1, 8, 33, 37), m.features(1, 27, 33, 37)], (0, 1)
        ),
        "one region": Case(lambda m: [m.features(2, 4, 3, 3), m.features(2, 1, 3, 3)], (0,)),
        "features only": Case(lambda m: [m.features(2, 8, 3, 5), m.features(2, 4, 3, 5)], (0,)),
        "logits only": Case(lambda m: [m.features(2, 8, 3, 5), m.features(2, 4, 3, 5)], (1,)),
    }
    ERRORS = {
        "a word that is true": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 5, 4, 4), "none"],
            TypeError,
            "normalize must be True or False, got str",
        ),
        "sizes": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 5, 4, 3)],
            ValueError,
            "features (B, C, H, W) and logits (B, N, H, W) must agree in B, H and W, got shapes "
            "(2, 3, 4, 4) and (2, 5, 4, 3)",
        ),
        "no regions": Error(
            lambda m: [m.features(2, 3, 4, 4), m.features(2, 0, 4, 4)],
            ValueError,
            "logits must have N >= 1 regions, got shape (2, 0, 4, 4)",
        ),
        "flat": Error(
            lambda m: [m.features(2, 3, 16), m.features(2, 5, 16)],
            ValueError,
            "features must be (B, C, H, W), got shape (2, 3, 16)",
        ),
        "integers": Error(
            lambda m: [m.features(2, 3, 4, 4), m.integers(3, 2, 5, 4, 4)],
            TypeError,
            "logits must be float64, float32, float16 or bfloat16, got torch.int64",
        ),
    }

    def test_large_logits_make_a_hard_mask(self, backend, device):
        labels = torch.randint(4, (2, 5, 6), generator=torch.Generator().manual_seed(0)).to(device)
        logits = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1) * 1e4
        features = torch.ones(2, 3, 5, 6, device=device)
        counts = torch.stack([torch.bincount(row.flatten(), minlength=4) for row in labels])
        regions = ops.region_pool(features, logits.float())
        assert torch.equal(regions, counts[:, :, None].expand(2, 4, 3).float())
        averages = ops.region_pool(features, logits.float(), normalize=True)
        present = (counts > 0)[:, :, None].expand(2, 4, 3)
        assert_close(averages, present.float(), terms=2 * 30)

    def test_equal_weights_give_a_mean_however_they_are_rounded(
        self, backend, layout, device, dtype
    ):
        # No half type holds a 27th: the mass has to be of the weights that are used.
        features = Maker(dtype, layout, device).features(2, 5, 9, 8)
        logits = Maker(dtype, layout, device).features(2, 27, 9, 8).zero_()
        averages = ops.region_pool(features, logits, normalize=True)
        exact = features.to(accumulate_dtype(dtype))
        expected = exact.mean((2, 3))[:, None].expand(2, 27, 5)
        size = float(exact.abs().amax())
        assert_close(averages, expected, terms=3 * 72, rms=size)

    def test_exceptional_numbers_are_multiplied_as_they_are(self, backend, layout, device):
        assert_exceptional_numbers_are_right(layout, device)


def assert_exceptional_numbers_are_right(layout, device):
    """Numbers that tensor cores cannot take as the sum of two of tf32 without some care."""
    make = Maker(torch.float32, layout, device)
    features, logits = make.features(4, 5, 4, 6), make.features(4, 7, 4, 6)
    upstream = make.features(4, 7, 5)
    features[0, 0, 1, 2], features[0, 1, 0, 0] = torch.inf, -torch.inf
    features[0, 2, 3, 3] = torch.nan
    features[1] *= 1e-37
    features[2, 0, 0, 0] = 3e38
    upstream[2] *= 0.1
    upstream[3, 2, 1] = torch.inf

    def results(function, *args):
        features, logits, upstream = args
        leaves = [features.detach().requires_grad_(), logits.detach().requires_grad_()]
        value = function(*leaves)
        return [value, *torch.autograd.grad(value, leaves, upstream)]

    found = results(ops.region_pool, features, logits, upstream)
    wide = [each.double().cpu() for each in (features, logits, upstream)]
    for actual, expected in zip(found, results(reference.region_pool, *wide), strict=True):
        # Of each pixel or channel: 24 pixels, 7 regions and 5 channels, and the softmax twice.
        size = expected.detach().nan_to_num(0, 0, 0).abs().amax(1, keepdim=True)
        allowed = tolerance(2 * (24 + 7 + 5), size, torch.float32).expand_as(expected)
        assert_within(actual, expected, allowed)
