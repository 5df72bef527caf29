"""Which device runs what nvcc emitted, judged one by one at first use."""

import os
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from densesiam import _devices, _libraries, ops
from densesiam.collect_env import collect_env
from densesiam.ops import _backends

# Every compute capability from Volta to Blackwell, Tegra among them. 10.1 is what 11.0 was called.
DEVICES = ["7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.8", "8.9", "9.0"]
DEVICES += ["10.0", "10.1", "10.3", "11.0", "12.0", "12.1"]

# What each code runs on, out of DEVICES, written down from NVIDIA's tables: CUDA Programming Guide,
# "Binary Compatibility" (sm, with its note on Tegra), "PTX Compatibility" (compute),
# "Architecture-Specific Features" (a) and "Family-Specific Features" (f).
RUN_ON = {
    "sm_70": "7.0 7.5",
    "sm_72": "7.2",
    "sm_75": "7.5",
    "sm_80": "8.0 8.6 8.8 8.9",
    "sm_86": "8.6 8.8 8.9",
    "sm_87": "8.7",
    "sm_89": "8.9",
    "sm_90": "9.0",
    "sm_90a": "9.0",
    "sm_100": "10.0 10.3",
    "sm_100f": "10.0 10.3",
    "sm_100a": "10.0",
    "sm_101": "10.1 11.0",
    "sm_101a": "10.1 11.0",
    "sm_103": "10.3",
    "sm_103f": "10.3",
    "sm_110": "10.1 11.0",
    "sm_110f": "10.1 11.0",
    "sm_120": "12.0 12.1",
    "sm_120f": "12.0 12.1",
    "sm_120a": "12.0",
    "sm_121": "12.1",
    "compute_70": "7.0 7.2 7.5 8.0 8.6 8.7 8.8 8.9 9.0 10.0 10.1 10.3 11.0 12.0 12.1",
    "compute_80": "8.0 8.6 8.7 8.8 8.9 9.0 10.0 10.1 10.3 11.0 12.0 12.1",
    "compute_89": "8.9 9.0 10.0 10.1 10.3 11.0 12.0 12.1",
    "compute_90": "9.0 10.0 10.1 10.3 11.0 12.0 12.1",
    "compute_90a": "9.0",
    "compute_100": "10.0 10.1 10.3 11.0 12.0 12.1",
    "compute_100f": "10.0 10.3",
    "compute_100a": "10.0",
    "compute_101": "10.1 11.0 12.0 12.1",
    "compute_103f": "10.3",
    "compute_120": "12.0 12.1",
    "compute_120f": "12.0 12.1",
    "compute_121": "12.1",
    "compute_121a": "12.1",
}


def version(text):
    major, minor = text.split(".")
    return int(major), int(minor)


@pytest.mark.parametrize("code", RUN_ON)
def test_cudas_rules(code):
    found = [device for device in DEVICES if _devices.runs_on(code, version(device))]
    assert found == RUN_ON[code].split()


def test_a_code_that_nvcc_never_emits():
    with pytest.raises(ValueError, match=r"'9\.0\+PTX' is no code of nvcc"):
        _devices.runs_on("9.0+PTX", (9, 0))


@pytest.mark.parametrize(
    ("toolkit", "driver", "serves"),
    [
        ("13.0", "13.0", True),
        ("13.2", "13.0", True),  # CUDA's minor version compatibility
        ("13.0", "14.1", True),
        ("12.4", "13.0", True),
        ("13.0", "12.9", False),
        ("12.4", "11.8", False),
        ("13.0", None, True),  # no driver: no device, which torch says
    ],
)
def test_a_driver_too_old(toolkit, driver, serves):
    problem = _devices.driver_problem(version(toolkit), driver and version(driver))
    assert (problem is None) == serves
    if not serves:
        major = driver.split(".")[0]
        assert problem == (
            f"it was built with CUDA {toolkit}, and the NVIDIA driver here knows CUDA up to "
            f"{driver}: update the driver, or build it again with a CUDA {major} toolkit"
        )


@pytest.mark.parametrize(
    ("emitted", "device", "driver", "problem"),
    [
        ("sm_80 sm_90", "8.6", "13.2", None),
        ("sm_86 sm_90", "8.0", "13.2", "for sm_86 sm_90, and this GPU is 8.0: build it again on"),
        ("sm_80 sm_90", "10.0", "13.2", "or with TORCH_CUDA_ARCH_LIST=10.0"),
        ("sm_80 sm_90 compute_80", "10.0", "13.2", None),
        ("sm_90a", "9.0", "13.2", None),
        ("sm_90a compute_90a", "10.0", "13.2", "for sm_90a compute_90a, and this GPU is 10.0"),
        ("sm_100f compute_100f", "10.3", "13.2", None),
        ("sm_100f compute_100f", "12.0", "13.2", "for sm_100f compute_100f, and this GPU is 12.0"),
        ("sm_75 compute_75", "7.5", "13.2", "needs a GPU of 8.0 or newer, and this one is 7.5"),
        ("", "9.0", "13.2", "it was built for unknown GPUs, and this GPU is 9.0"),
        # The driver is older than the toolkit (13.2): machine code runs, PTX is not compiled.
        ("sm_90 compute_90", "9.0", "13.2", None),
        ("sm_90 compute_90", "12.0", "13.1", "13.1, too old to compile PTX of CUDA 13.2: update"),
        ("sm_90 compute_90", "12.0", "13.2", None),
        ("sm_90 compute_90", "12.0", None, None),
    ],
)
def test_a_device_that_the_build_cannot_serve(emitted, device, driver, problem):
    found = _devices.architecture_problem(
        emitted, (13, 2), driver and version(driver), version(device)
    )
    if problem is None:
        assert found is None
    else:
        assert problem in found
        assert "\n" not in found


@pytest.fixture
def machine(monkeypatch):
    """Make a machine of stand-ins: what was built, the driver, the devices' capabilities."""

    def make(emitted, driver, *capabilities, toolkit="13.0"):
        forget()
        info = {"cuda": toolkit, "architectures": emitted}
        monkeypatch.setattr(_libraries, "build_info", lambda: info)
        monkeypatch.setattr(_devices, "driver_version", lambda: driver and version(driver))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        asked = []

        def capability(index):
            asked.append(index)
            return version(capabilities[index])

        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        monkeypatch.setitem(_backends._MISSING, "cuda", None)
        monkeypatch.setitem(_backends._MISSING, "triton", None)
        monkeypatch.setitem(_backends._KERNELS, "cuda", frozenset({"label_map"}))
        monkeypatch.setattr(_backends, "_INTERPRET", False)
        monkeypatch.setitem(_backends._SERVES, "triton", "cuda")
        return asked

    def forget():
        _devices.problem.cache_clear()
        _backends._first_use.cache_clear()

    yield make
    forget()


def on(device):
    """What dispatch reads of a tensor, on a device that is not there."""
    return SimpleNamespace(device=torch.device(device), dtype=torch.float32, numel=lambda: 1)


def test_each_device_is_judged_for_itself_and_once(machine):
    asked = machine("sm_80 sm_90a", "13.0", "9.0", "7.5", "8.6", "10.0")
    assert not asked
    assert _backends.select("label_map", on("cuda:0")) == "cuda"
    assert _backends.select("label_map", on("cuda:2")) == "cuda"
    assert asked == [0, 2]
    for index, gpu in ((1, "needs a GPU of 8.0 or newer"), (3, "and this GPU is 10.0")):
        with pytest.warns(RuntimeWarning, match=f"kernels do not run on cuda:{index}: .*{gpu}"):
            assert _backends.select("label_map", on(f"cuda:{index}")) == "triton"
    before = list(asked)
    for index, backend in enumerate(["cuda", "triton", "cuda", "triton"]):
        assert _backends.select("label_map", on(f"cuda:{index}")) == backend
    assert asked == before
    with ops.use_backend("cuda"):  # one of the devices serves: the block may be entered
        assert _backends.select("label_map", on("cuda:0")) == "cuda"
        with pytest.raises(RuntimeError, match=r"backend 'cuda' was asked for, but .*10\.0"):
            _backends.select("label_map", on("cuda:3"))


def test_tensors_elsewhere_ask_for_no_device(machine, monkeypatch):
    machine("sm_80", "13.0", "8.0")
    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    assert _backends.select("label_map", on("cpu")) in ("cpu", "reference")


def refuse(*arguments):
    raise AssertionError("CUDA was asked for")


@pytest.mark.parametrize(
    ("emitted", "driver", "devices", "reason"),
    [
        ("sm_90", "12.4", ["9.0"], r"it was built with CUDA 13\.0, and the NVIDIA driver .*12\.4"),
        ("sm_90", "13.0", ["8.0", "8.6"], r"it was built for sm_90, and this GPU is 8\.0"),
        (
            "sm_90",
            "13.0",
            [],
            r"it was built, but torch finds no CUDA device .* \(its driver knows CUDA up to 13\.0",
        ),
        (
            "sm_90",
            None,
            [],
            r"it was built, but torch finds no CUDA device on this machine \(it has no driver\)",
        ),
    ],
)
def test_a_machine_that_cannot_run_it_is_refused_on_entry(
    machine, emitted, driver, devices, reason
):
    machine(emitted, driver, *devices)
    with (
        pytest.raises(RuntimeError, match=f"backend 'cuda' cannot be used: {reason}") as error,
        ops.use_backend("cuda"),
    ):
        pass
    assert "\n" not in str(error.value)


def test_torch_is_not_asked_where_the_driver_is_too_old(machine, monkeypatch):
    machine("sm_90", "12.4", "9.0")
    monkeypatch.setattr(torch.cuda, "is_available", refuse)  # it would warn at length
    assert _backends.missing("cuda").startswith("it was built with CUDA 13.0")


def test_triton_needs_a_gpu_or_the_interpreter(machine):
    machine("sm_90", "13.0")
    assert _backends.missing("triton").startswith("torch finds no GPU")
    machine("sm_90", "13.0", "9.0")
    assert _backends.missing("triton") is None


@pytest.mark.parametrize("problem", [None, "it was built for sm_90"])
def test_the_judgement_is_traced_as_a_constant(monkeypatch, problem):
    asked = []
    # Not the whole machine: torch.compile asks torch for devices too.
    monkeypatch.setattr(_devices, "problem", lambda index: asked.append(index) or problem)
    _backends._first_use.cache_clear()
    torch.compiler.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return x + (1 if _backends._device_problem(3) is None else 2)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert compiled(torch.zeros(1)).item() == (1 if problem is None else 2)
    _backends._first_use.cache_clear()
    assert asked == [3]
    ours = [warning for warning in said if "do not run on cuda:3" in str(warning.message)]
    assert len(ours) == (problem is not None)


def test_collect_env_judges_every_device(machine):
    machine("sm_80 sm_90", "13.0", "9.0", "7.5")
    if _libraries.find("_cuda") is None:
        pytest.skip("the CUDA kernels were not built")
    report = collect_env()
    assert "NVIDIA driver: CUDA up to 13.0\nGPUs: 2\n" in report
    assert "  cuda:0: GPU 0 (9.0), CUDA kernels: yes\n" in report
    assert "  cuda:1: GPU 1 (7.5), CUDA kernels: it needs a GPU of 8.0 or newer" in report
    assert "  architectures: sm_80 sm_90\n" in report


# The driver's own library, of a version that does not serve CUDA 13.
DRIVER = "int cuDriverGetVersion(int* version) { *version = 12040; return 0; }"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_drivers_version_is_read_from_the_driver(tmp_path):
    (tmp_path / "driver.c").write_text(DRIVER)
    library = ["gcc", "-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"]
    subprocess.run(library, cwd=tmp_path, check=True)
    code = (
        "from densesiam import _devices, ops\n"
        "print(_devices.driver_version())\n"
        "with ops.use_backend('cuda'): pass\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "(12, 4)\n"
    toolkit = (_libraries.build_info() or {}).get("cuda", "")
    if toolkit.startswith("13"):
        last = run.stderr.strip().splitlines()[-1]
        assert last == (
            f"RuntimeError: backend 'cuda' cannot be used: it was built with CUDA {toolkit}, and "
            "the NVIDIA driver here knows CUDA up to 12.4: update the driver, or build it again "
            "with a CUDA 12 toolkit"
        )


# Asking torch for a device starts CUDA, after which a forked child cannot use it. Without a GPU it
# is enough that nothing asks; with one, the child uses it.
IMPORT = """
import os, sys, torch
ASK = [(torch.cuda, name) for name in
       ("is_available", "device_count", "get_device_capability", "get_device_name",
        "get_device_properties", "current_device", "init", "_lazy_init")]
ASK += [(torch._C, name) for name in ("_cuda_getDeviceCount", "_cuda_init")
        if hasattr(torch._C, name)]  # not in a torch without CUDA
real = [getattr(*ask) for ask in ASK]

def refuse(*arguments):
    raise AssertionError("CUDA was asked for")

for module, name in ASK:
    setattr(module, name, refuse)
import densesiam
import densesiam.ops
from densesiam import _devices

logits = torch.rand(1, 3, 4, 5)
densesiam.ops.label_map(logits, (4, 5))
assert not torch.cuda.is_initialized()
assert _devices.driver_version.cache_info().misses == 0
for (module, name), function in zip(ASK, real):
    setattr(module, name, function)

child = os.fork()
if child == 0:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    same = torch.equal(densesiam.ops.label_map(logits.to(device), (4, 5)).cpu(), logits.argmax(1))
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_importing_starts_no_cuda_and_forked_processes_work():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
