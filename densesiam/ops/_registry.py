"""How an operation becomes a citizen of PyTorch: schema, fake kernels and autograd, per namespace.

Each compiled or Triton backend registers its kernels under a namespace of the dispatcher: the CPU
and CUDA libraries share ``densesiam`` (one per dispatch key), Triton owns ``densesiam_triton``.
Every namespace holds the same schemas (`densesiam.ops.schema`), so shapes and gradients are stated
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from densesiam.ops.schema import SCHEMAS

NAMESPACE = "densesiam"


@dataclass(frozen=True)
class Operation:
    """One differentiable operation and its backward, independent of any backend.

    Attributes:
        name: the public name; the backward operator is ``<name>_backward``.
        fake: shape, type and layout of the outputs, from (fake) inputs.
        setup_context: keeps what backward needs; ``None`` where there is no gradient.
        backward: ``backward(ctx, kernel, *grads)``; ``kernel`` is ``<name>_backward`` of the
            namespace that ran forward. Returns one gradient per input.
        fake_backward: the same as ``fake`` for ``<name>_backward``.
    """

    name: str
    fake: Callable[..., Any]
    setup_context: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None
    fake_backward: Callable[..., Any] | None = None


OPERATIONS: dict[str, Operation] = {}
"""Every registered operation, by name."""

_namespaces: list[str] = []


def register_operation(operation: Operation) -> None:
    """Add an operation to every namespace, present and future."""
    OPERATIONS[operation.name] = operation
    for namespace in _namespaces:
        _define(operation, namespace)


def register_namespace(namespace: str) -> None:
    """Open a namespace that holds every operation."""
    _namespaces.append(namespace)
    for operation in OPERATIONS.values():
        _define(operation, namespace)


def kernel(namespace: str, name: str) -> Callable[..., Any]:
    """The dispatcher's entry point of one operator."""
    return getattr(getattr(torch.ops, namespace), name)


def _define(operation: Operation, namespace: str) -> None:
    name = f"{namespace}::{operation.name}"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(name, SCHEMAS[operation.name], tags=tags)
    torch.library.register_fake(name, operation.fake)
    if operation.backward is None:
        return

    backward_name = f"{operation.name}_backward"
    torch.library.define(f"{name}_backward", SCHEMAS[backward_name], tags=tags)
    assert operation.fake_backward is not None
    torch.library.register_fake(f"{name}_backward", operation.fake_backward)
    formula = operation.backward

    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        return formula(ctx, kernel(namespace, backward_name), *grads)

    torch.library.register_autograd(name, backward, setup_context=operation.setup_context)

    def refuse(ctx: Any, *grads: torch.Tensor | None) -> Any:
        raise RuntimeError(
            f"{operation.name}: its gradient cannot be differentiated again. For double backward "
            f'use densesiam.reference.{operation.name}, or `with ops.use_backend("reference"):`.'
        )

    torch.library.register_autograd(f"{name}_backward", refuse)
