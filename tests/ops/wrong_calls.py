"""Calls operators of the dispatcher with one argument wrong at a time, as a program of its own.

    python -m tests.ops.wrong_calls cpu    (or emulator; or triton, under TRITON_INTERPRET=1)

Each call is written out before it is made: should one end the process, the last line names it. An
exported program comes to operators like that, without the public function's checks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from densesiam import ops
from densesiam.ops import _backends, _operations
from tests.emulator import emulated
from tests.ops.suite import Maker


def operator_calls(backend: str) -> dict[str, tuple[Any, ...]]:
    """Arguments with which the exemplary calls reach each operator, backward included."""
    operations = [_operations.OPERATIONS[name] for name in _backends.kernels(backend)]
    calls: dict[str, tuple[Any, ...]] = {}

    class Recording(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name.split("::")[1]
            if name in operators:
                calls[name] = args
            return func(*args, **(kwargs or {}))

    operators = {name for op in operations for name in op.operators}
    device = _backends._SERVES[backend]
    for operation in operations:
        args = operation.example(Maker(torch.float32, "contiguous", device), 2, 5, 4, 7)
        for i in range(operation.differentiable):
            args[i] = args[i].requires_grad_()
        with Recording():
            result = getattr(ops, operation.name)(*args)
            if operation.differentiable:
                result.sum().backward()
    assert set(calls) == operators
    return calls


def wrong_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor with another type, device, number of dimensions or side."""
    tensor = tensor.detach()
    yield "complex", tensor.to(torch.complex64)
    yield "of another type", tensor.to(torch.int8 if tensor.is_floating_point() else torch.float32)
    if torch.cuda.is_available():  # a meta tensor would call the fake kernel
        yield "on another device", tensor.to("cpu" if tensor.is_cuda else "cuda")
    yield "with one dimension more", tensor[None]
    if tensor.dim():
        yield "with one dimension less", tensor[0]
    for dim in range(tensor.dim()):
        yield f"one longer in dimension {dim}", torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
    if tensor.dim() == 4:
        yield "without pixels", tensor[:, :, :0]
        yield "without pixels or images", tensor[:0, :, :, :0]


def wrong_numbers(boxes: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """The boxes with one number that is none."""
    for number in (torch.nan, -torch.inf) if boxes is not None else ():
        yield f"with {number}", torch.cat([boxes[:-1], boxes[-1:].clone().fill_(number)])


def wrong_values(value: Any) -> Iterator[tuple[str, Any]]:
    """Another value in the place of one that is no tensor."""
    if isinstance(value, str):
        yield "an unknown word", "nonsense"
    elif isinstance(value, list | tuple):
        for each in ([], [3], [3, 0], [-1, 3], [3, 2**31], [2, 3, 4, 5]):
            yield str(each), each


def harmless(name: str, argument: str, what: str) -> bool:
    """Whether a change leaves a right call: of another batch of one map, or of other sides."""
    longer = what.startswith("one longer in dimension ")
    dim = int(what[-1]) if longer else -1
    if name in ("overlap_sample", "label_map"):
        return longer and ((dim > 0 and argument in ("features", "logits")) or name == "label_map")
    if name == "overlap_sample_backward":
        return longer and dim > 0 and argument == "grad"
    if name == "roi_align":
        return longer and (argument == "features" or (argument == "boxes" and dim == 0))
    if name == "roi_align_backward":
        return longer and dim > 0 and argument == "grad"
    if name.startswith("overlap_similarity"):
        return longer and dim > 1 and argument in ("p", "z")
    if name == "region_pool":
        return longer and dim == 1
    return False


def main(backend: str) -> None:
    def call(name: str, args: tuple[Any, ...]) -> Any:
        return getattr(getattr(torch.ops, _backends.NAMESPACES[backend]), name)(*args)

    number, accepted = 0, []
    for name, args in operator_calls(backend).items():
        schema = getattr(torch.ops.densesiam, name).default._schema
        call(name, args)
        for i, value in enumerate(args):
            argument = schema.arguments[i].name
            wrong = wrong_tensors(value) if isinstance(value, Tensor) else wrong_values(value)
            if argument.startswith("boxes") and _backends.runs_cpu_kernels(backend):
                wrong = chain(wrong, wrong_numbers(value))
            for what, given in wrong:
                if harmless(name, argument, what):
                    continue
                number += 1
                print(f"{number}: {name}, {argument} {what}", file=sys.stderr, flush=True)
                try:
                    with torch.no_grad():
                        call(name, (*args[:i], given, *args[i + 1 :]))
                except (RuntimeError, ValueError, TypeError):
                    continue
                accepted.append(f"{name}, {argument} {what}")
    for each in accepted:
        print(f"accepted: {each}", file=sys.stderr)
    print(f"{number} wrong calls, {len(accepted)} accepted")
    sys.exit(1 if accepted else 0)


if __name__ == "__main__":
    backend = sys.argv[1]
    if backend == "emulator":
        with emulated(), ops.use_backend("cpu"):
            main("cpu")
    else:
        with ops.use_backend(backend):
            main(backend)
