import pytest

from densesiam.ops import _backends
from tests.apart import run_apart


@pytest.mark.parametrize("backend", ["cpu", "emulator"])
def test_operators_refuse_every_wrong_argument(backend):
    if backend == "cpu" and _backends.missing("cpu") is not None:
        pytest.skip("the CPU kernels were not built")
    run_apart("-m", "tests.ops.wrong_calls", backend)
