"""region_pool on numbers that tensor cores cannot take without care."""

import torch

from densesiam import ops, reference
from tests.ops.suite import Maker
from tests.tolerance import assert_within, tolerance


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
