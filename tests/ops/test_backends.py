"""Choosing a backend, and saying why."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import densesiam
import densesiam.ops._backends as backends
from densesiam import ops
from densesiam.ops import _triton

needs_kernels = pytest.mark.skipif(
    "overlap_sample" not in backends.kernels("cpu"), reason="no compiled kernels"
)
FEATURES = torch.randn(2, 3, 4, 5)
BOXES = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4)


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="must be one of cuda, triton, cpu, reference or auto"),
        ops.use_backend("tpu"),
    ):
        pass


def test_a_backend_that_was_never_built_raises_on_entry(monkeypatch):
    monkeypatch.setitem(backends._MISSING, "cpu", "it was not built. Build it with ...")
    with (
        pytest.raises(RuntimeError, match="backend 'cpu' cannot be used: it was not built"),
        ops.use_backend("cpu"),
    ):
        pass
    # ... while auto goes on with the next.
    assert ops.explain("overlap_sample", FEATURES).backend == "reference"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message of a machine without a GPU")
def test_cuda_without_a_device_raises_on_entry():
    with (
        pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: it was (not )?built"),
        ops.use_backend("cuda"),
    ):
        pass


def test_a_forced_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(backends._MISSING, "cpu", None)
    monkeypatch.setitem(backends._KERNELS, "cpu", frozenset())
    with (
        ops.use_backend("cpu"),
        pytest.raises(RuntimeError, match=r"overlap_sample: backend 'cpu' .* no kernel for"),
    ):
        ops.overlap_sample(FEATURES, BOXES, 3)


def test_the_wrong_device_is_said(monkeypatch):
    monkeypatch.setitem(backends._MISSING, "cuda", None)
    monkeypatch.setattr(backends._devices, "problem_everywhere", lambda: None)
    monkeypatch.setitem(backends._KERNELS, "cuda", frozenset({"overlap_sample"}))
    with (
        ops.use_backend("cuda"),
        pytest.raises(RuntimeError, match="it serves tensors on cuda, and these are on cpu"),
    ):
        ops.overlap_sample(FEATURES, BOXES, 3)


def test_use_backend_nests_and_restores():
    with ops.use_backend("reference"):
        assert ops.explain("overlap_sample", FEATURES).backend == "reference"
        with ops.use_backend("auto"):
            inner = ops.explain("overlap_sample", FEATURES).backend
        assert ops.explain("overlap_sample", FEATURES).backend == "reference"
    assert ops.explain("overlap_sample", FEATURES).backend == inner


def test_explain_names_every_backend():
    explanation = ops.explain(ops.overlap_sample, FEATURES, BOXES, 3)
    assert {explanation.backend, *explanation.others} == set(backends.BACKENDS)
    assert str(explanation).startswith(f"overlap_sample runs on {explanation.backend}\n")
    assert all(explanation.others.values())


def test_explain_unknown_operation():
    with pytest.raises(ValueError, match="'roi_pool' is no operation"):
        ops.explain("roi_pool", FEATURES)


def test_auto_never_chooses_the_interpreter():
    assert ops.explain("overlap_sample", FEATURES).backend in ("cpu", "reference")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("reference", "runs on reference"), ("gpu", "no such backend; it must be one of")],
)
def test_environment_variable(value, expected):
    code = (
        "import torch\n"
        "from densesiam import ops\n"
        "print(ops.explain('overlap_sample', torch.randn(1, 2, 3, 4)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"DENSESIAM_BACKEND": value, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in run.stdout + run.stderr


def backend_that_ran(call):
    with torch.profiler.profile() as profile:
        call(FEATURES)
    kernels = {event.name for event in profile.events()}
    return "cpu" if "densesiam::overlap_sample" in kernels else "reference"


@needs_kernels
def test_a_compiled_call_runs_on_the_backend_of_its_caller():
    torch._dynamo.reset()
    call = torch.compile(lambda x: ops.overlap_sample(x, BOXES, 3), fullgraph=True, backend="eager")
    ran = [backend_that_ran(call)]
    with ops.use_backend("reference"):
        ran.append(backend_that_ran(call))
        with ops.use_backend("cpu"):
            ran.append(backend_that_ran(call))
        with ThreadPoolExecutor(1) as pool:  # the choice is this thread's
            ran.append(pool.submit(backend_that_ran, call).result())
        ran.append(backend_that_ran(call))
    ran.append(backend_that_ran(call))
    assert ran == ["cpu", "reference", "cpu", "cpu", "reference", "cpu"]


@needs_kernels
def test_a_backend_is_chosen_inside_a_compiled_function():
    def both(x):
        with ops.use_backend("reference"):
            y = ops.overlap_sample(x, BOXES, 3)
        return y, ops.overlap_sample(x, BOXES, 3)

    graphs = []
    torch._dynamo.reset()
    torch.compile(both, fullgraph=True, backend=lambda g, _: graphs.append(g) or g.forward)(
        FEATURES
    )
    calls = [n for n in graphs[0].graph.nodes if "densesiam.overlap_sample" in str(n.target)]
    assert len(calls) == 1
    assert backend_that_ran(lambda x: ops.overlap_sample(x, BOXES, 3)) == "cpu"


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"triton": "3.5.1"}, "its kernels need Triton 3.6 or newer, and this is 3.5"),
        ({"triton": "3.6.0", "numpy": "2.5.1"}, "needs NumPy older than 2.4, and this is 2.5"),
    ],
)
def test_a_triton_that_cannot_serve_is_said(versions, reason, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", versions.get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(_triton, "_INTERPRET", True)
    assert reason in _triton.missing()


@needs_kernels
def test_backward_runs_where_forward_ran():
    features = FEATURES.clone().requires_grad_()
    with ops.use_backend("cpu"):
        result = ops.overlap_sample(features, BOXES, 3)
    with ops.use_backend("reference"), torch.profiler.profile() as profile:
        result.sum().backward()
    assert "densesiam::overlap_sample_backward" in {e.name for e in profile.events()}


def test_without_a_build_the_package_runs_on_references_and_says_so(tmp_path):
    """A copy of the package without its libraries: what an installation without a compiler has."""
    shutil.copytree(
        Path(densesiam.__file__).parent,
        tmp_path / "densesiam",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    code = (
        "import torch, densesiam\n"
        "from densesiam import ops\n"
        "x = torch.randn(1, 2, 3, 4, requires_grad=True)\n"
        "ops.overlap_sample(x, torch.rand(1, 4), 3).sum().backward()\n"
        "print(densesiam.__file__, ops.explain('overlap_sample', x), x.grad.shape)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in run.stdout
    assert "runs on reference" in run.stdout
    assert "it was not built. Build it with" in run.stdout
    assert run.stderr.count("runs on its PyTorch references") == 1


def test_importing_operations_imports_no_counter():
    """It takes Triton with it. Whoever counts finds the operations' formulas all the same."""
    code = (
        "import importlib.util, sys, torch, densesiam.ops as ops\n"
        "importlib.util.find_spec('torch.utils.flop_counter')  # who only asks does not import\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "x = torch.ones(1, 2, 3, 3)\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    ops.region_pool(x, x)\n"
        "print(counter.get_total_flops())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "72\n"


def test_no_operation_is_forgotten():
    """The op suite skips what a backend has no kernel for: this is what may be missing."""
    every_op = set(backends.kernels("reference"))
    assert set(backends.kernels("triton")) == every_op - {"confusion_matrix", "roi_align"}
    build = densesiam._libraries.build_info()
    if build is None:
        pytest.skip("nothing was compiled")
    assert set(backends.kernels("cpu")) == every_op
    assert set(backends.kernels("cuda")) == (every_op if build["cuda"] else set())
