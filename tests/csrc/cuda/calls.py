"""Small calls of the operations, for machine code that is executed: values, and what is right."""

import torch

from densesiam import ops, reference
from tests.tolerance import assert_within, tolerance


def maps(dtype, channels, count, channels_last):
    generator = torch.Generator().manual_seed(channels)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [
        torch.randn(2, channels, 9, 8, generator=generator)
        .to(dtype)
        .contiguous(memory_format=layout)
        for _ in range(count)
    ]


def results(module, call, inputs):
    """Result and gradient of the first input."""
    first, *rest = (each.clone() for each in inputs)
    value = call(module, first.requires_grad_(), *rest)
    (grad,) = torch.autograd.grad(value.float().square().sum(), first)
    return value.detach(), grad


CALLS = {
    "overlap_sample": (lambda m, x: m.overlap_sample(x, BOXES, 5), 1),
    "cosine": (lambda m, p, z: m.pixel_similarity(p, z), 2),
    "cross_entropy": (lambda m, p, z: m.pixel_similarity(p, z, "cross_entropy"), 2),
    "pseudo_label_loss": (lambda m, x: m.pseudo_label_loss(x, rebalance="inverse"), 1),
    "region_pool": (lambda m, f, x: m.region_pool(f, x), 2),
}
BOXES = torch.tensor([[0.1, 0.2, 0.9, 0.7], [1.0, 0.0, 0.3, 0.4]])


def computed(op, dtype, channels, channels_last):
    """Result and gradient of an operation on its maps."""
    call, count = CALLS[op]
    return results(ops, call, maps(dtype, channels, count, channels_last))


def assert_right(values, op, dtype, channels, channels_last):
    """Hold result and gradient to the reference."""
    call, count = CALLS[op]
    inputs = maps(dtype, channels, count, channels_last)
    wanted = results(reference, call, [each.double() for each in inputs])
    # Exponentials of the special function unit are off by two units in the last place; what is
    # squared for the gradient is off twice as much.
    terms = 4 * channels * 72
    for found, right in zip(values, wanted, strict=True):
        # region_pool may round probabilities and gradients to the maps' type before its products.
        rounded = dtype if op == "region_pool" else found.dtype
        rms = right.square().mean().sqrt()
        assert_within(found, right, tolerance(terms, rms, rounded))
