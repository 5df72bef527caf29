"""How far two right results may lie apart: as far as rounding takes them, and no further.

A floating-point operation rounds its result to the next number of its type: by eps / 2 of it at
most, up or down. Of many roundings none knows of the others, so they add up as the steps of a
random walk do: n of them to sqrt(n) times their root mean square. That is the one measure here,
`tolerance`: it holds for every processor, library and number of threads, as none can do better
than to round, and all may add in any order.

What is rounded on the way to a sum is each term and each running sum. In what order terms are
added is nobody's promise, so running sums are taken in a random one (`running_rms`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

# A rounding is up to eps / 2, on average a quarter of eps. The factor covers what a program does
# worse: exp and log that are off by two units in the last place (4 times eps / 2), and the other
# result of a comparison, which is rounded as well (2).
FACTOR = 8


def tolerance(terms: float | Tensor, rms: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Largest difference that rounding explains: ``FACTOR * sqrt(terms) * eps * rms``.

    Args:
        terms: how many values are rounded on the way to the result.
        rms: root mean square of these values, in the result's unit.
        dtype: the type that they are rounded to.

    Returns:
        The tolerance, an element for each of `terms` and `rms`.
    """
    type_ = torch.finfo(dtype)
    terms, rms = (torch.as_tensor(t, dtype=torch.float64) for t in (terms, rms))
    # Below its smallest normal number a type's spacing shrinks no further. A zero is exact.
    size = torch.where(rms == 0, 0, rms.abs().clamp(min=type_.tiny))
    return FACTOR * terms.sqrt() * type_.eps * size


def running_rms(terms: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    """Root mean square of the running sums of `terms` numbers, over all orders of adding them.

    Of n numbers with the sum S and the sum of squares Q, the first k in random order have a sum of
    mean square (k / n)^2 S^2 + k (n - k) / (n (n - 1)) (Q - S^2 / n). This is its mean over k.
    """
    return ((terms + 1) / (6 * terms) * (2 * total.square() + squares)).sqrt()


def assert_within(actual: Tensor, expected: Tensor, allowed: Tensor, what: str = "result") -> None:
    """Each element within its own tolerance; infinities and NaN exactly where they are expected."""
    assert actual.shape == expected.shape, what
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = (actual - expected).abs()
    right = torch.where(expected.isfinite(), error <= allowed, actual == expected)
    right |= actual.isnan() & expected.isnan()
    if right.all():
        return
    wrong = torch.where(right, -1, error.nan_to_num(nan=torch.inf))
    worst = tuple(int(i) for i in torch.unravel_index(wrong.argmax(), wrong.shape))
    raise AssertionError(
        f"{what}: {int((~right).sum())} of {right.numel()} elements are wrong, the worst at "
        f"{worst}: {actual[worst]:.9g}, expected {expected[worst]:.9g}, error {error[worst]:.2e}, "
        f"tolerance {allowed.expand_as(error)[worst]:.2e}"
    )


def assert_close(
    actual: Tensor | Sequence[Tensor],
    expected: Tensor | Sequence[Tensor],
    terms: int,
    rms: float | Tensor | None = None,
) -> None:
    """Equal but for rounding, in the coarser of both types.

    Args:
        actual: one or several tensors.
        expected: as many, of the same types or exact ones in float64.
        terms: how many values are rounded on the way to one element, such as the numbers that are
            added up; 0 for equal bits.
        rms: root mean square of these values; by default the largest that is expected, which is
            right where terms do not cancel.
    """
    if not isinstance(actual, Tensor):
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, terms, rms)
        return
    assert expected.dtype in (actual.dtype, torch.float64), (actual.dtype, expected.dtype)
    if not actual.is_floating_point():  # nothing is rounded
        assert torch.equal(actual, expected), (actual, expected)
        return
    if rms is None:
        finite = expected.detach()[expected.isfinite()]
        rms = finite.double().abs().max().cpu() if finite.numel() else 0.0
    assert_within(actual, expected, tolerance(terms, rms, actual.dtype))


def about(expected: float, terms: int, rms: float | None = None, dtype: str = "float32") -> Any:
    """The same for a number, to be compared with `==`."""
    allowed = tolerance(terms, expected if rms is None else rms, getattr(torch, dtype))
    return pytest.approx(float(expected), rel=0, abs=float(allowed))


def terms_of(*networks: torch.nn.Module) -> int:
    """Values that are rounded on the way through networks: the terms of each layer's sums.

    A layer passes errors on as it does values, so relative to the size of its output they stay
    what they are, and those of all layers add up.
    """
    parameters = [p for network in networks for p in network.parameters()]
    return sum(p[0].numel() for p in parameters if p.numel())
