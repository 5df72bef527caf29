"""What samples small maps compiles, without a GPU: the interpreter has no compiler to ask."""

import pytest

from tests.apart import run_apart

pytest.importorskip("triton")


def test_kernels_that_sample_compile(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run_apart("-m", "tests.kernels.small")
