"""Every operation has all its parts: whoever forgets one is told which."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.ops import MODULES
from benchmarks.problem import KernelNames, Setting
from densesiam import ops, reference
from densesiam.ops import _backends, _triton
from densesiam.ops._operations import OPERATIONS
from tests.emulator import emulated
from tests.ops.suite import Maker
from tools.gpu_kit import stages
from tools.gpu_kit.sweep import suite_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def arguments(schema):
    """Names of an operator's arguments."""
    return re.findall(r"(\w+)(?=[,)])", schema.split(" -> ")[0])


def test_the_function_and_its_reference_take_the_same(operation):
    assert operation.name in ops.__all__
    assert operation.name in reference.__all__
    signatures = [
        [(p.name, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (getattr(ops, operation.name), getattr(reference, operation.name))
    ]
    assert signatures[0] == signatures[1]


def test_operators_keep_the_order_of_arguments(operation):
    function = list(inspect.signature(getattr(ops, operation.name)).parameters)
    forward = arguments(operation.schema)
    public = [name for name in function if name in forward]
    assert forward[: len(public)] == public  # what is the backend's own affair comes last
    if operation.backward_schema is not None:
        backward = arguments(operation.backward_schema)
        assert backward[0] == "grad"
        shared = [name for name in backward if name in forward]
        assert shared == [name for name in forward if name in backward]
        rest = [name for name in backward if not name.startswith("grad")]
        assert rest[: len(shared)] == shared or operation.name == "overlap_sample"


def test_every_file_is_there(operation):
    files = ["densesiam/ops/{}.py", "densesiam/reference/{}.py", "csrc/cpu/{}.cpp"]
    files += ["csrc/cuda/{}.cu", "tests/ops/test_{}.py", "benchmarks/ops/{}.py"]
    files += ["kernels/{}.py"] if operation.triton else []
    paths = [file.format(operation.name) for file in files]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_backend_has_its_kernels(operation):
    missing = []
    if _backends.missing("cpu") is None and operation.name not in _backends.kernels("cpu"):
        missing.append("cpu")
    with emulated():
        if operation.name not in _backends.kernels("cpu"):
            missing.append("cuda")
    if operation.triton and importlib.util.find_spec("triton") is not None:
        module = _triton.load_module(operation.name)
        missing += [f"triton {name}" for name in operation.operators if not hasattr(module, name)]
    assert missing == []


def test_kernels_take_arguments_in_the_order_of_the_schema(operation):
    if not operation.triton or importlib.util.find_spec("triton") is None:
        pytest.skip("it has no Triton kernels, or there is no Triton")
    module = _triton.load_module(operation.name)
    for name, schema in operation.operators.items():
        assert list(inspect.signature(getattr(module, name)).parameters) == arguments(schema)


def test_the_suite_has_cases_of_one_channel(operation):
    tests = suite_of(operation.name)
    assert tests.op == operation.name
    assert tests.CASES
    assert tests.ERRORS
    if not operation.integers:
        make = Maker(torch.float32, "contiguous", "cpu")
        assert 1 in {case.make(make)[0].shape[1] for case in tests.CASES.values()}


def test_the_exemplary_call_runs(operation):
    args = operation.example(Maker(torch.float32, "contiguous", "cpu"), 2, 5, 4, 7)
    with ops.use_backend("reference"):
        assert isinstance(getattr(ops, operation.name)(*args), Tensor)
    assert all(a.is_floating_point() for a in args[: operation.differentiable])


def test_it_is_measured(operation):
    module = MODULES[operation.name]
    for part in ("SHAPES", "SCALED", "GPU_GOAL", "problem", "cuda_kernels"):
        assert hasattr(module, part), f"benchmarks/ops/{operation.name}.py has no {part}"
    assert hasattr(module, "triton_kernels") == operation.triton, "triton_kernels"
    shape, setting = module.SHAPES[0], Setting(1)
    assert module.problem(shape, setting).op == operation.name
    sources = "".join(path.read_text() for path in (ROOT / "csrc/cuda").glob("*.cu*"))
    for name in module.cuda_kernels(shape, KernelNames.of(shape, setting)):
        assert name.split("<")[0] in sources, f"there is no CUDA kernel {name}"
    assert operation.name in stages.OPERATIONS
    assert (operation.name in stages.WITHOUT_TRITON) == (not operation.triton)


def test_readme_has_its_row(operation):
    equivalent = ", ".join(f"`{each}`" for each in operation.equivalent)
    row = f"| `{operation.usage}` | {operation.summary} | {equivalent} |"
    assert row in README.splitlines(), f"README's table has no row\n{row}"
