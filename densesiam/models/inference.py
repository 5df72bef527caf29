"""Trained networks made quicker where nothing is learned any more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Subclasses may do something else with their weights.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)

# By rounding, results differ by a few millionths of the greatest. What is folded wrongly is off by
# as much as the results themselves.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class _Pair:
    """A convolution, and the normalisation that alone reads what it gives."""

    convolution: Any
    name: str
    norm: Any


@torch.no_grad()
def fold_normalisation(network: nn.Module, images: Tensor) -> int:
    r"""Take batch normalisation into the convolutions before it, in place.

    With the running statistics of evaluation mode,

    .. math::
        \gamma \frac{w * x + b - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        = \frac{\gamma w}{\sqrt{\sigma^2 + \epsilon}} * x
        + \beta + \frac{\gamma (b - \mu)}{\sqrt{\sigma^2 + \epsilon}},

    which saves a walk over every map: a fifth of EfficientNet-Lite0's time on one thread. Results
    change by rounding. The network is for evaluation from then on, and its state dict another.

    Which convolution comes before which normalisation is seen in a run on `images`. A second run
    shows whether anything else reads what these convolutions give; then all stays as it was.

    Args:
        network: in evaluation mode, with one tensor or a list of them for its result.
        images: that it takes, (B, 3, H, W).

    Returns:
        How many normalisations were folded.

    Raises:
        ValueError: a network in training mode.
    """
    if network.training:
        raise ValueError("fold_normalisation: the network is in training mode; call eval() first")
    expected, pairs = _run(network, images)
    before = [(pair.convolution.weight, pair.convolution.bias) for pair in pairs]
    for pair in pairs:
        _fold(pair.convolution, pair.norm)
        rest = pair.norm.act if isinstance(pair.norm, BatchNormAct2d) else nn.Identity()
        network.set_submodule(pair.name, rest)
    if all(map(_equal_but_for_rounding, _tensors(network(images)), expected)):
        return len(pairs)
    for pair, (weight, bias) in zip(pairs, before, strict=True):
        pair.convolution.weight, pair.convolution.bias = weight, bias
        network.set_submodule(pair.name, pair.norm)
    return 0


def in_bfloat16(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A network whose convolutions and matrix products are computed in bfloat16.

    Args:
        network: with float32 weights, which stay as they are.

    Returns:
        The same from images to float32 results, whose numbers have bfloat16's 8 bits.
    """

    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return network(images).float()

    return run


def _tensors(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _equal_but_for_rounding(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _ROUNDING * expected.abs().max())


def _run(network: nn.Module, images: Tensor) -> tuple[Sequence[Tensor], list[_Pair]]:
    """The network's result, and what can be folded."""
    given: dict[int, tuple[nn.Module, Tensor]] = {}  # by the map's identity; held, so that it stays
    calls: dict[nn.Module, int] = {}
    found: list[tuple[nn.Module, nn.Module]] = []

    def see(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if type(module) in _CONVOLUTIONS:
            given[id(result)] = module, result
        elif args and id(args[0]) in given:
            found.append((given[id(args[0])][0], module))

    names = {
        module: name
        for name, module in network.named_modules()
        if type(module) in (*_CONVOLUTIONS, *_NORMS)
    }
    hooks = [module.register_forward_hook(see) for module in names]
    try:
        result = _tensors(network(images))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        _Pair(convolution, names[norm], norm)
        for convolution, norm in found
        if calls[convolution] == calls[norm] == 1
        and isinstance(norm, _NORMS)
        and norm.track_running_stats
        and not norm.training
    ]
    return result, pairs


def _fold(convolution: Any, norm: Any) -> None:
    """Scale and shift a convolution as its normalisation would; in float64, rounded once."""
    given = (
        *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var),
        *(norm.weight, norm.bias),
    )
    doubled: list[Any] = [None if each is None else each.double() for each in given]
    weight, bias, mean, variance, scale, shift = doubled
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    dtype = convolution.weight.dtype
    convolution.weight, convolution.bias = (
        nn.Parameter(each.to(dtype), requires_grad=False) for each in folded
    )
