"""Shared by all tests: the Triton interpreter where there is no GPU, and the number of threads."""

import os

# Test processes run side by side, and so does what they start: threads would wait for each other in
# loops.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from benchmarks import device
from tests.gpu import gpu as gpu  # a fixture

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported by anything


@pytest.fixture(autouse=True)
def one_thread():
    """Test processes run side by side; a test of threads sets its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("DENSESIAM_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_bfloat16(monkeypatch):
    """All processors see the same tests; tests/training/test_precision.py has others."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)


def pytest_collection_modifyitems(items):
    if device.gpu:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
