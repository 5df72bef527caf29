import torch

from densesiam import ops
from tests.ops.exceptional import assert_exceptional_numbers_are_right
from tests.ops.suite import Case, Error, Maker, OpSuite
from tests.rounding import accumulate_dtype
from tests.tolerance import assert_close


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
