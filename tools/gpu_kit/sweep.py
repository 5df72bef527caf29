"""One operation on one backend, every case, type and layout, forward and backward.

    python -m tools.gpu_kit.sweep OP BACKEND [--skip FILE] [--batch 8]

The cases are those of the op suite (tests/ops) and the method's own shapes (benchmarks/ops), with
their tolerances; the measure is ``densesiam.reference`` in float64 on the very same rounded inputs.
Each item is printed as it begins and as it ends, a line of JSON after ``@ ``, so that whoever reads
along knows which one hangs or takes the process down.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import device, ops
from benchmarks.device import DEVICE
from benchmarks.problem import Problem, Setting
from benchmarks.run import difference
from densesiam.ops import use_backend
from tests.ops import suite

MARK = "@ "
BROKEN = 70  # exit code: the device answers nothing any more
SCALAR = 4096.0  # cotangent of a mean: as training in float16 scales its loss

Compared = list[dict[str, Any]]
Item = tuple[str, Callable[[], Compared]]


def suite_of(op: str) -> suite.OpSuite:
    """The operation's test suite."""
    module = importlib.import_module(f"tests.ops.test_{op}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, suite.OpSuite) and each is not suite.OpSuite
    ]
    return found[0]()


def items(op: str, backend: str, batch: int) -> Iterator[Item]:
    """Name and check of each item."""
    tests = suite_of(op)
    for dtype in suite.DTYPES:
        for layout in suite.LAYOUTS:
            kind = f"{str(dtype).removeprefix('torch.')}, {layout}"
            for name, case in tests.CASES.items():
                yield (
                    f"{name}: {kind}",
                    lambda c=case, d=dtype, y=layout: of_suite(tests, c, backend, d, y),
                )
            for shape in (shape for shape in ops.MODULES[op].SHAPES if shape.own and batch):
                setting = Setting(batch, dtype, layout == "channels_last")
                yield (
                    f"own shape {shape.name}: {kind}",
                    lambda p=shape, s=setting: of_benchmark(ops.MODULES[op].problem(p, s)),
                )


def of_suite(
    tests: suite.OpSuite, case: suite.Case, backend: str, dtype: torch.dtype, layout: str
) -> Compared:
    """One case of the op suite."""
    compared: Compared = []
    original = suite.assert_within

    def noting(actual: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
        compared.append(distance(actual, expected) | {"allowed": float(bound.max())})
        original(actual, expected, bound, what)

    with mock.patch.object(suite, "assert_within", noting):
        tests.test_matches_reference(case, backend, dtype, layout, DEVICE)
    if hasattr(tests, "test_labels_are_the_greatest"):  # labels have a test of their own
        tests.test_labels_are_the_greatest(case, backend, dtype, layout, DEVICE)
    return compared


def of_benchmark(problem: Problem) -> Compared:
    """The method's own shape, against the reference in float64 on the same device."""
    inputs = problem.make()

    def run(inputs: list[Tensor], cotangent: Tensor | None) -> tuple[Tensor, list[Tensor], Any]:
        leaves = []
        inputs = list(inputs)
        for i in problem.differentiable:
            inputs[i] = inputs[i].detach().requires_grad_()
            leaves.append(inputs[i])
        result = problem.ours(*inputs)
        if not leaves:
            return result, [], None
        if cotangent is None:
            scalar = result.ndim == 0
            cotangent = torch.full_like(result, SCALAR) if scalar else torch.randn_like(result)
        return result, list(torch.autograd.grad(result, leaves, cotangent)), cotangent

    result, gradients, cotangent = run(inputs, None)
    exact = [t.detach().double() if t.is_floating_point() else t for t in inputs]
    with use_backend("reference"):
        expected, wanted, _ = run(exact, None if cotangent is None else cotangent.double())
    far = difference(problem, (result, tuple(gradients)), (expected, tuple(wanted)))
    if far is not None:
        raise AssertionError(f"wrong by {far:.1e}")
    pairs = zip([result, *gradients], [expected, *wanted], strict=True)
    return [distance(actual, right) for actual, right in pairs]


def distance(actual: Tensor, expected: Tensor) -> dict[str, Any]:
    """The largest error and the largest magnitude."""
    if actual.shape != expected.shape or not expected.numel():
        return {"shape": list(actual.shape), "expected": list(expected.shape)}
    a, b = actual.detach().double().cpu(), expected.detach().double().cpu()
    return {"error": float((a - b).abs().max()), "of": float(b.abs().max())}


def outcome(check: Callable[[], Compared]) -> dict[str, Any]:
    """Run one item: verdict, what was compared, what was said."""
    try:
        return {"verdict": "right", "compared": check()}
    except AssertionError as error:
        return {"verdict": "wrong", "said": str(error)[:500]}
    except Exception as error:  # a result like any other: which call fails, and how
        return {"verdict": "error", "said": f"{type(error).__name__}: {error}"[:500]}


def device_is_usable() -> bool:
    """Whether the device still answers: after some errors it does not, in this process."""
    try:
        if device.gpu:
            device.gpu.synchronize()
        return float(torch.ones(2, device=DEVICE).sum()) == 2
    except RuntimeError:
        return False


def main() -> int:
    """Run the items, one after another."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit.sweep")
    parser.add_argument("op", choices=ops.MODULES)
    parser.add_argument("backend", choices=["cuda", "triton", "cpu"])
    parser.add_argument("--skip", type=Path, help="file of names of items that have run")
    parser.add_argument("--batch", type=int, default=8, help="of its own shapes; 0: none")
    options = parser.parse_args()
    skipped = set(options.skip.read_text().splitlines()) if options.skip else set()
    torch.manual_seed(0)
    with use_backend(options.backend):
        for name, check in items(options.op, options.backend, options.batch):
            if name in skipped:
                continue
            tell({"item": name})
            told = outcome(check)
            tell({"item": name} | told)
            if told["verdict"] == "error" and not device_is_usable():
                return BROKEN
    return 0


def tell(what: dict[str, Any]) -> None:
    """One line for whoever reads along."""
    print(MARK + json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
