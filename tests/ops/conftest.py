"""Tests of the op suite run once per backend, the sweep once per case, type and layout too."""

import pytest
import torch

from benchmarks.device import DEVICE
from benchmarks.device import gpu as there_is_a_gpu
from densesiam.ops import _backends, use_backend
from tests.emulator import emulated
from tests.ops.suite import DTYPES, LAYOUTS, OpSuite

BACKENDS = [
    "reference",
    "cpu",
    # Interpreted where there is no GPU; else it runs on the GPU, and `-m gpu` is to include it.
    pytest.param("triton", marks=[pytest.mark.gpu] if there_is_a_gpu else []),
    "emulator",  # the CUDA kernels' own source, run on the CPU
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Activate one backend for the test; an operation it has no kernel for is skipped by name."""
    name = request.param
    suite = request.cls
    if name == "emulator":
        with emulated(), use_backend("cpu"):
            yield name
        return
    if suite is not None and suite.op not in _backends.kernels(name):
        pytest.skip(f"{name} has no kernel for {suite.op}")
    if name == "triton" and (reason := _backends.missing(name)) is not None:
        pytest.skip(f"triton cannot be used: {reason}")
    with use_backend(name):
        yield name


@pytest.fixture
def device(backend):
    """Where the backend's tensors live."""
    return DEVICE if backend in ("cuda", "triton") else torch.device("cpu")


LARGE = ("many pixels", "more cells than pixels", "seven")
"""Cases that take the interpreter ten seconds."""


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items):
    """Interpreted, Triton meets its cases, types and layouts in turn; `make faults` every product.

    The interpreter takes as long as all other backends together. The first case meets each type in
    one layout, the others two types, one in each layout. Its gradients are compared with the
    reference's in float64, which finite differences confirm. What is compared with nothing but
    another call of its own, such as of strided inputs, it meets in every other case.
    """
    if there_is_a_gpu:
        return
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or call.params.get("backend") != "triton" or "case" not in call.indices:
            continue
        case = call.indices["case"]
        if "layout" in call.indices:
            turn = sum(call.indices.get(name, 0) for name in ("case", "dtype", "layout"))
            apart = turn % (4 if case else 2) or item.originalname == "test_gradcheck"
        else:
            apart = case % 2 or any(name in call.id for name in LARGE)
        if apart:
            item.add_marker(pytest.mark.faults)


def pytest_generate_tests(metafunc):
    suite = metafunc.cls
    if suite is None or not issubclass(suite, OpSuite):
        return
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", suite.CASES.values(), ids=suite.CASES.keys())
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(d).removeprefix("torch.") for d in DTYPES])
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", LAYOUTS)
    if "error" in metafunc.fixturenames:
        metafunc.parametrize("error", suite.ERRORS.values(), ids=suite.ERRORS.keys())
