"""Which torch the libraries load into, and what is said where they don't."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import densesiam
from densesiam import _libraries
from densesiam.collect_env import collect_env
from densesiam.ops import _backends, _operations
from densesiam.ops._operations import OPERATIONS, interface
from tools.gpu_kit import visit

ROOT = Path(__file__).parents[1]


def test_the_oldest_torch_is_the_same_everywhere():
    """What runs before torch is imported, or is compiled with it, has a constant of its own."""
    major, minor = map(int, densesiam.OLDEST_TORCH.split("."))
    header = (ROOT / "csrc/stable_abi.h").read_text()
    (target,) = re.findall(r"#define TORCH_TARGET_VERSION 0x(\w+)", header)
    assert target == f"{major:02x}{minor:02x}" + 12 * "0"
    assert (major, minor) == visit.OLDEST_TORCH
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for required in (project["build-system"]["requires"], project["project"]["dependencies"]):
        assert f"torch>={densesiam.OLDEST_TORCH}" in required


def test_a_library_that_does_not_load_is_reported(tmp_path, monkeypatch):
    """Built for a newer torch, say: our own error sends users to this report."""
    broken = tmp_path / "_cpu.abi3.so"
    broken.write_bytes(f"not a library, densesiam interface {interface()};".encode())
    monkeypatch.setattr("densesiam.collect_env.find", lambda _: broken)
    monkeypatch.setattr(_libraries, "find", lambda _: broken)
    monkeypatch.setattr(_libraries, "_loaded", {})
    assert "_cpu.abi3.so could not be loaded" in _libraries.load("_cpu", interface())
    assert "CPU kernels: not loaded" in collect_env()
    monkeypatch.setattr("densesiam.collect_env.find", lambda _: None)
    monkeypatch.setattr(_libraries, "find", lambda _: None)
    assert "CPU kernels: not built" in collect_env()


def test_the_sources_are_for_these_schemas():
    """Who changes a schema is told what to write; a library that was built before is then refused.

    Without this, it would be loaded, and misread its arguments.
    """
    header = (ROOT / "csrc/interface.h").read_text()
    (written,) = re.findall(r'#define DENSESIAM_INTERFACE "(\w+)"', header)
    assert written == interface(), f"write {interface()} into csrc/interface.h, and build again"


def test_every_change_of_a_schema_makes_another_interface(monkeypatch):
    before = interface()
    operation = OPERATIONS["overlap_sample"]
    for schema in ("schema", "backward_schema"):
        changed = {schema: getattr(operation, schema).replace("size", "cells")}
        with monkeypatch.context() as patch:
            patch.setitem(OPERATIONS, operation.name, dataclasses.replace(operation, **changed))
            assert interface() != before
    with monkeypatch.context() as patch:
        patch.setattr(_operations, "CONTRACT", 0)
        assert interface() != before
    assert interface() == before


@pytest.mark.parametrize("named", ["0123456789abcdef", None])
def test_a_library_of_an_older_build_is_not_loaded(named, tmp_path, monkeypatch):
    old = tmp_path / "_cpu.abi3.so"
    old.write_bytes(b"\x7fELF" + (f"densesiam interface {named};".encode() if named else b""))
    monkeypatch.setattr(_libraries, "find", lambda _: old)
    monkeypatch.setattr(torch.ops, "load_library", lambda _: pytest.fail("it was loaded"))
    reason = _libraries.load("_cpu", interface())
    has = f"interface {named}" if named else "an interface without a name"
    assert f"_cpu.abi3.so was built from another version of densesiam: it has {has}" in reason
    assert interface() in reason
    assert "setup.py build_ext" in reason
    assert "\n" not in reason
    old.write_bytes(b"")
    assert "without a name" in _libraries.load("_cpu", interface())


WITH_IT = """
import sys, warnings
from pathlib import Path
from densesiam import _libraries
_libraries.find = lambda name: Path(sys.argv[1]) if name == "_cpu" else None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from densesiam import ops
    from densesiam.collect_env import collect_env
(warning,) = [str(each.message) for each in caught if "densesiam" in str(each.message)]
assert "runs on its PyTorch references" in warning, warning
assert "was built from another version of densesiam" in warning, warning
features = torch.ones(1, 2, 3, 3, requires_grad=True)
ops.overlap_sample(features, torch.tensor([[0.0, 0, 1, 1]]), 2).sum().backward()
assert ops.explain("overlap_sample", features).backend == "reference"
assert "CPU kernels: not loaded" in collect_env()
"""


@pytest.mark.skipif(_backends.missing("cpu") is not None, reason="the CPU kernels were not built")
def test_beside_a_library_of_an_older_build_the_references_run(tmp_path):
    """The kernels of today under yesterday's name: they could be loaded."""
    content = _libraries.find("_cpu").read_bytes()
    marker = b"densesiam interface "
    assert content.count(marker) == 1
    old = tmp_path / "_cpu.abi3.so"
    old.write_bytes(content.replace(marker + interface().encode(), marker + b"0" * 16))
    subprocess.run([sys.executable, "-c", WITH_IT, str(old)], cwd=ROOT, check=True)
