"""Which torch the libraries load into, and what is said where they don't."""

import re
import tomllib
from pathlib import Path

import densesiam
from densesiam import _libraries
from densesiam.collect_env import collect_env
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
    broken.write_bytes(b"not a library")
    monkeypatch.setattr("densesiam.collect_env.find", lambda _: broken)
    monkeypatch.setattr(_libraries, "find", lambda _: broken)
    assert "_cpu.abi3.so could not be loaded" in _libraries.load("_cpu")
    assert "CPU kernels: not loaded" in collect_env()
    monkeypatch.setattr("densesiam.collect_env.find", lambda _: None)
    monkeypatch.setattr(_libraries, "find", lambda _: None)
    assert "CPU kernels: not built" in collect_env()
