"""Modules without what is heavy in them: enough for help, which says what there is to be set.

A help text needs names, types, defaults and docstrings of classes; torch, Lightning and what they
load take seconds. While it is made, stand-ins take the place of those libraries, as in tools that
write documentation (Sphinx calls it ``autodoc_mock_imports``).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HEAVY = {
    "lightning",
    "numpy",
    "PIL",
    "pycocotools",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
}


class _Anything(type):
    """The class of stand-ins: they have every attribute, and are their own calls and items."""

    def __getattr__(cls, name: str) -> Any:
        # Python asks for the former, and typing whether a class is a protocol.
        if name.startswith("__") or name == "_is_protocol":
            raise AttributeError(name)
        return _stand_in(name, cls.__module__)

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "stand_in" not in vars(cls):  # a class of ours, with a stand-in for its base
            return super().__call__(*args, **kwargs)
        # A decorator returns what it is given, alone.
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else cls


def _stand_in(name: str, module: str) -> Any:
    return _Anything(name, (), {"__module__": module, "stand_in": True})


class _Module(ModuleType):
    """A heavy module's stand-in."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _stand_in(name, self.__name__)
        setattr(self, name, value)
        return value


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] not in HEAVY:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def outlines() -> Iterator[None]:
    """Import modules without what is heavy in them, in the block; none of them stays."""
    before = set(sys.modules)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.split(".")[0] in {*HEAVY, "densesiam"}:
                parent, _, child = name.rpartition(".")
                if parent in before:
                    vars(sys.modules[parent]).pop(child, None)
                del sys.modules[name]
