"""What setup.py finds, chooses and says, without building anything."""

import importlib.util
import runpy
import shutil
import stat
from pathlib import Path

import pytest
import torch

from densesiam.ops._backends import architecture_problem

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, in a clean environment."""
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "FORCE_CPU", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("densesiam_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_nvcc(folder: Path, version: str, preprocess: str = "exit 0") -> Path:
    """A toolkit whose nvcc only knows its version, its place and how to (not) preprocess."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --dryrun ] && echo "#$ TOP={folder}" >&2\n'
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.1"\n'
        f'case " $* " in *" -E "*) {preprocess};; esac\n'
        "exit 0\n"
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return folder


def torch_major() -> int:
    return int((torch.version.cuda or "13.0").split(".")[0])


def test_nvcc_on_the_path_may_be_a_wrapper(build, monkeypatch, tmp_path):
    toolkit = make_nvcc(tmp_path / "toolkit", f"{torch_major()}.0")
    wrapper = tmp_path / "elsewhere" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    monkeypatch.setattr(torch.version, "cuda", f"{torch_major()}.2")
    assert build.choose_cuda() == (toolkit, f"{torch_major()}.0")


def test_another_cuda_major_is_said_and_not_built(build, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_HOME", str(make_nvcc(tmp_path / "old", "11.8")))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert build.choose_cuda() is None
    said = capsys.readouterr().err
    assert "is CUDA 11.8" in said
    assert "major versions must match" in said
    assert "Point CUDA_HOME at a CUDA 13 toolkit" in said
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="major versions must match"):
        build.choose_cuda()


def test_a_host_compiler_that_nvcc_refuses(build, monkeypatch, tmp_path, capsys):
    message = "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later"
    refuse = f"echo \"$*\" >&2; echo '{message}' >&2; exit 1"
    toolkit = make_nvcc(tmp_path / "toolkit", f"{torch_major()}.0", refuse)
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setattr(torch.version, "cuda", f"{torch_major()}.2")
    assert build.choose_cuda() is None
    said = capsys.readouterr().err
    assert f"does not take the gcc on the path as its host compiler ({message})" in said
    assert "such as CC=gcc-13 CXX=g++-13; until then: no CUDA kernels" in said
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("CC", "gcc-99")
    with pytest.raises(SystemExit, match="does not take gcc-99 as its host compiler"):
        build.choose_cuda()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_real_nvcc_refuses_a_compiler_newer_than_itself(build, monkeypatch, tmp_path):
    cuda_home = build.find_cuda_home()
    assert build.host_compiler_refusal(cuda_home) is None
    future = tmp_path / "gcc"
    future.write_text('#!/bin/sh\nexec gcc -U__GNUC__ -D__GNUC__=99 "$@"\n')
    future.chmod(0o755)
    monkeypatch.setenv("CC", str(future))
    assert "unsupported GNU version" in build.host_compiler_refusal(cuda_home)


def test_libraries_of_an_earlier_build_are_removed(build, tmp_path, capsys):
    for name in ("_cpu.abi3.so", "_cuda.abi3.so", "_info.cpython-311-x86_64-linux-gnu.so"):
        (tmp_path / name).touch()
    build.remove_stale_libraries(tmp_path, ["densesiam._cpu", "densesiam._info"])
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"_cpu", "_info"}
    assert "removed" in (said := capsys.readouterr().err)
    assert "_cuda.abi3.so: an earlier build made it" in said


def test_a_wrong_cuda_home_is_an_error(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="has no bin/nvcc"):
        build.choose_cuda()


def test_force_cpu(build, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_CPU", "1")
    assert build.choose_cuda() is None
    assert "FORCE_CPU is set" in capsys.readouterr().err
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="both set"):
        build.choose_cuda()


def test_force_cuda_without_nvcc(build, monkeypatch):
    monkeypatch.setattr(build, "find_cuda_home", lambda: None)
    assert build.choose_cuda() is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"no nvcc was found.*Install the CUDA toolkit"):
        build.choose_cuda()


def test_torch_without_cuda_builds_cuda_only_when_forced(build, monkeypatch, tmp_path):
    toolkit = make_nvcc(tmp_path / "toolkit", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert build.choose_cuda() is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert build.choose_cuda() == (toolkit, "13.0")


def test_without_a_compiler_nothing_is_built(build, monkeypatch, capsys):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    assert build.extensions() == ([], {})
    assert "the package will run on its PyTorch references" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "error"), [("densesiam/__init__.py", ImportError), ("setup.py", SystemExit)]
)
def test_a_torch_that_is_too_old(file, error, monkeypatch):
    path = str(ROOT / file)
    for version in ("2.10.0a0+git", "2.10.0", "2.15.0+cu132", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", version)
        runpy.run_path(path)
    for version in ("1.13.1", "2.9.1+cu128"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(error) as refusal:
            runpy.run_path(path)
        assert str(refusal.value).removeprefix("densesiam: ") == (
            f"densesiam needs torch 2.10 or newer, and this is torch {version}. "
            "Install another: pip install 'torch>=2.10'"
        )


def test_a_wrong_cxx_is_an_error(build, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="CXX is no-such-compiler, which is not on the path"):
        build.find_compiler()


def test_architectures(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build.choose_architectures() == build.DEFAULT_ARCHITECTURES
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    capabilities = [(9, 0), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    assert build.choose_architectures() == "8.6;9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "10.0")
    assert build.choose_architectures() == "10.0"


@pytest.mark.parametrize(
    ("built", "device", "runs"),
    [
        ("8.0;9.0", (8, 6), True),
        ("8.6;9.0", (8, 0), False),
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (10, 0), True),
        ("9.0a", (9, 0), True),
        ("12.0+PTX", (7, 5), False),
        ("", (9, 0), False),
    ],
)
def test_a_gpu_the_build_cannot_serve(built, device, runs):
    problem = architecture_problem(built, device)
    assert (problem is None) == runs
    if not runs:
        assert f"TORCH_CUDA_ARCH_LIST={device[0]}.{device[1]}" in problem
