"""Libraries that are there but don't load."""

from densesiam import _libraries
from densesiam.collect_env import collect_env


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
