"""What operations count in `torch.utils.flop_counter.FlopCounterMode`: their matrix products.

torch's own formulas count matrix products alone, so an operation without one counts 0.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
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
    """Finds the counter's module once, as the other finders do, and registers after its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for operation in OPERATIONS.values():
        for name, formula in operation.flops.items():
            for namespace in namespaces():
                register_flop_formula(kernel(namespace, name))(formula)
