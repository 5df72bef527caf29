"""The records: what each operation is, once. Everything that goes through operations reads them.

A module of this package that is named after an operation holds its public function and registers
its record. From there it becomes a citizen of PyTorch: schema, fake kernels and autograd, per
namespace. Each compiled or Triton backend registers its kernels under a namespace of the
dispatcher: the CPU and CUDA libraries share ``densesiam`` (one per dispatch key), Triton owns
``densesiam_triton``. Every namespace holds the same schemas, so these are stated once.

Schemas keep the order of arguments of the public function. Pixel-wise operators take (B, C, P), the
spatial axes flattened. What a forward returns beyond its result is what its backward needs. A
backward takes the gradients, what it needs of forward's arguments, what forward kept, and what is
wanted of it, in this order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from densesiam.reference._numerics import ORDINARY_TENSORS, nobody_watches, values_are_known

NAMESPACE = "densesiam"


class Make(Protocol):
    """Makes the tensors of an exemplary call, of a type, in a layout, on a device."""

    def features(self, *shape: int) -> Tensor:
        """(B, C, *spatial) floating-point numbers of about unit size."""

    def boxes(self, batch: int) -> Tensor:
        """(B, 4) boxes."""

    def weights(self, batch: int) -> Tensor:
        """(B,) weights."""

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers in [0, high)."""


@dataclass(frozen=True)
class Operation:
    """One operation, independent of any backend.

    Attributes:
        name: the public name; the backward operator is ``<name>_backward``.
        schema: of its operator.
        usage: how it is called, in README's table.
        summary: what it does, in README's table.
        equivalent: expressions of PyTorch that give the same, in README's table.
        example: ``example(make, B, C, H, W)``: the arguments of an exemplary call of the public
            function on maps (B, C, H, W), those that receive gradients first.
        fake: shape, type and layout of the outputs, from (fake) inputs.
        differentiable: how many of the first arguments receive gradients.
        backward_schema: of its backward; ``None`` where there is no gradient.
        setup_context: keeps what backward needs.
        backward: ``backward(ctx, kernel, *grads)``; ``kernel`` is ``<name>_backward`` of the
            namespace that ran forward. Returns one gradient per input.
        fake_backward: the same as ``fake`` for ``<name>_backward``.
        keeps_type: whether the result has the features' type, not that of sums.
        integers: whether it takes integers, which have neither type nor layout to choose.
        triton: whether there are Triton kernels.
        pixel_loss: whether it is one of the losses that `densesiam.ops._pixel_loss` makes.
        check_values: raises where values are wrong, given the operator's arguments. It is asked
            when the CPU's kernel has refused them: the message is that of every backend.
        flops: for each operator with matrix products, their floating-point operations, given its
            arguments with shapes for tensors (and ``out_shape``).
    """

    name: str
    schema: str
    usage: str
    summary: str
    equivalent: tuple[str, ...]
    example: Callable[[Make, int, int, int, int], list[Any]]
    fake: Callable[..., Any]
    differentiable: int = 0
    backward_schema: str | None = None
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None
    fake_backward: Callable[..., Any] | None = None
    keeps_type: bool = False
    integers: bool = False
    triton: bool = True
    pixel_loss: bool = False
    check_values: Callable[..., None] | None = None
    flops: Mapping[str, Callable[..., int]] = field(default_factory=dict)

    @property
    def operators(self) -> dict[str, str]:
        """Schemas by name: its own, and its backward's where there is one."""
        own = {self.name: self.schema}
        if self.backward_schema is None:
            return own
        return own | {f"{self.name}_backward": self.backward_schema}


OPERATIONS: dict[str, Operation] = {}
"""Every registered operation, by name."""

_namespaces: list[str] = []


def register_operation(operation: Operation) -> None:
    """Add an operation to every namespace, present and future."""
    OPERATIONS[operation.name] = operation
    for namespace in _namespaces:
        _define(operation, namespace)


CONTRACT = 2
"""Raised where an argument of the same type comes to mean something else: weights, as given."""


def interface() -> str:
    """Fingerprint of all schemas, and of what they mean.

    A library that was compiled for others would misread its arguments: `csrc/interface.h` has the
    one that the sources are for, and no other library is loaded.
    """
    schemas = sorted(
        f"{name}{schema}"
        for operation in OPERATIONS.values()
        for name, schema in operation.operators.items()
    )
    return hashlib.sha256("\n".join([str(CONTRACT), *schemas]).encode()).hexdigest()[:16]


def register_namespace(namespace: str) -> None:
    """Open a namespace that holds every operation."""
    _namespaces.append(namespace)
    for operation in OPERATIONS.values():
        _define(operation, namespace)


def namespaces() -> tuple[str, ...]:
    """Those that are open."""
    return tuple(_namespaces)


def kernel(namespace: str, name: str) -> Any:
    """The dispatcher's entry point of one operator."""
    return getattr(getattr(torch.ops, namespace), name)


def run_kernel(namespace: str, name: str, *args: Any) -> Any:
    """Run one operator, through the dispatcher or by the short way.

    The short way calls what is registered under the Autograd key, formula and all, from here. The
    dispatcher would turn each argument into C++ and back first, which takes longer than small
    kernels do. Where a compiler, a transform, a mode or a subclass of Tensor has to see the call,
    it goes through the dispatcher.

    Raises:
        ValueError: values that the kernel refuses.
        torch.OutOfMemoryError, or what ``torch.empty`` raises on that device, where there is no
            memory for the result, or for what the kernel keeps on the way. Kernels allocate
            through torch's stable ABI, which says no more than that something failed, or by
            themselves.
    """
    if torch.compiler.is_compiling():
        return kernel(namespace, name)(*args)
    entry = _under_autograd.get((namespace, name))
    if entry is None or not _goes_straight(args):
        entry = kernel(namespace, name)
    try:
        return entry(*args)
    except MemoryError as error:  # of a kernel's own; torch's is a RuntimeError
        raise RuntimeError(f"{name}: there is not enough memory for what it computes") from error
    except (RuntimeError, ValueError) as error:  # which of them depends on the torch
        _say_better(error, name, args)
        raise


def _say_better(refusal: Exception, name: str, args: tuple[Any, ...]) -> None:
    """Raise the error that users are to see, if a kernel's own is not that."""
    operation = OPERATIONS[name.removesuffix("_backward")]
    forward = name in OPERATIONS
    try:
        if "API call failed" in str(refusal):
            fake = operation.fake if forward else operation.fake_backward
            assert fake is not None
            fake(*args)  # allocates as much, with torch's own error
        elif forward and operation.check_values and args[0].is_cpu and values_are_known(args[0]):
            operation.check_values(*args)
    except (RuntimeError, ValueError) as error:
        raise error from None


_under_autograd: dict[tuple[str, str], Callable[..., Any]] = {}
"""What is registered under the Autograd key, by namespace and operator."""


def _goes_straight(args: tuple[Any, ...]) -> bool:
    """Whether a call of the dispatcher would go to its Autograd key with nobody in between."""
    return (
        nobody_watches()
        and not torch._C._is_torch_function_mode_enabled()
        and _ORDINARY.issuperset(map(type, args))
    )


_ORDINARY = {*ORDINARY_TENSORS, list, tuple, str, bool, int, float, type(None)}
"""Types of arguments that are PyTorch's own."""


def _define(operation: Operation, namespace: str) -> None:
    name = f"{namespace}::{operation.name}"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(name, operation.schema, tags=tags)
    torch.library.register_fake(name, operation.fake)
    if operation.backward_schema is None:
        return

    backward_name = f"{operation.name}_backward"
    torch.library.define(f"{name}_backward", operation.backward_schema, tags=tags)
    assert operation.fake_backward is not None
    assert operation.backward is not None
    torch.library.register_fake(f"{name}_backward", operation.fake_backward)
    formula, keep = operation.backward, operation.setup_context
    instead = f'use densesiam.reference.{operation.name}, or `with ops.use_backend("reference"):`.'

    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        return formula(ctx, partial(run_kernel, namespace, backward_name), *grads)

    def refuse(ctx: Any, *grads: torch.Tensor | None) -> Any:
        raise RuntimeError(
            f"{operation.name}: its gradient cannot be differentiated again. For double backward "
            + instead
        )

    def refuse_other(ctx: Any, *tangents: torch.Tensor | None) -> Any:
        raise RuntimeError(
            f"{operation.name}: it has no forward-mode derivative, and none under torch.func; for "
            f"those {instead}"
        )

    _differentiate(namespace, operation.name, keep, backward, refuse_other)
    _differentiate(namespace, backward_name, None, refuse, refuse_other)


def _differentiate(
    namespace: str,
    name: str,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
) -> None:
    """Register derivatives of one operator.

    `torch.library.register_autograd` would do it, but for forward mode, where its operators are
    constants: a tangent of zero without a word.
    """
    entry = kernel(namespace, name).default

    def below(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return entry(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = below(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
    }
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0 or (
            torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        ):
            if torch._C._are_functorch_transforms_active():
                jvp(None)
            return function.apply(*args)
        return below(*args)

    torch.library.impl(f"{namespace}::{name}", "Autograd", call)
    _under_autograd[namespace, name] = call
