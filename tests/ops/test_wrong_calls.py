import pytest

from densesiam.ops import _backends
from tests.apart import run_apart


@pytest.mark.parametrize("backend", ["cpu", "emulator", "triton"])
def test_operators_refuse_every_wrong_argument(backend):
    if backend == "cpu" and _backends.missing("cpu") is not None:
        pytest.skip("the CPU kernels were not built")
    if backend == "triton" and (reason := _backends.missing("triton")) is not None:
        pytest.skip(f"triton cannot be used: {reason}")
    run_apart("-m", "tests.ops.wrong_calls", backend)
