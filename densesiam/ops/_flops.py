"""What operations count in `torch.utils.flop_counter.FlopCounterMode`: their matrix products.

torch's own formulas count matrix products alone, so an operation without one counts 0.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from densesiam.ops._operations import OPERATIONS, kernel, namespaces

_COUNTER = "torch.utils.flop_counter"


def register_flops() -> None:
    """Register the records' formulas: now, or with the counter's import.

    That imports Triton, so it is left to whoever counts. A counter copies the formulas when it is
    made, and must find them.
    """
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported:
    """Finds the counter's module as Python does, and registers after its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _COUNTER else None
        if spec is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = execute_and_register
        return spec


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for operation in OPERATIONS.values():
        for name, formula in operation.flops.items():
            for namespace in namespaces():
                register_flop_formula(kernel(namespace, name))(formula)
