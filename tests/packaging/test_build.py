"""What setup.py finds, chooses and says, without building anything."""

import importlib.util
import re
import runpy
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from densesiam import _devices, _libraries
from tools import audit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, in a clean environment."""
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "FORCE_CPU", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("densesiam_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_nvcc(
    folder: Path, version: str, preprocess: str = "exit 0", unknown: str = "none"
) -> Path:
    """A toolkit whose nvcc only knows its version, its place and how to (not) preprocess.

    Args:
        folder: where to make it.
        version: CUDA's.
        preprocess: what it does with -E.
        unknown: architectures that it does not compile for, a pattern of the shell.
    """
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --dryrun ] && echo "#$ TOP={folder}" >&2\n'
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.1"\n'
        f'case " $* " in *" -E "*) {preprocess};; esac\n'
        f'case " $* " in *code=sm_{unknown}" "*) exit 1;; esac\n'
        "exit 0\n"
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return folder


def torch_major() -> int:
    return int((torch.version.cuda or "13.0").split(".")[0])


@pytest.mark.parametrize("of_torch", ["13.0", None])
def test_torch_builds_with_the_toolkit_that_was_chosen(build, monkeypatch, tmp_path, of_torch):
    """Also a torch without CUDA, which finds no toolkit by itself."""
    home = make_nvcc(tmp_path / "toolkit", "13.0")
    monkeypatch.setattr(torch.version, "cuda", of_torch)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    for name, value in {"CUDA_HOME": home, "TORCH_CUDA_ARCH_LIST": "9.0", "FORCE_CUDA": 1}.items():
        monkeypatch.setenv(name, str(value))
    modules, _ = build.extensions()
    assert "densesiam._cuda" in {module.name for module in modules}
    assert str(home) == cpp_extension.CUDA_HOME


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


def test_a_runtime_that_is_linked_in_stays_inside(build, tmp_path):
    """Else streams take their locale from torch's copy of it: a crash, with some compilers."""
    modules, _ = build.extensions()
    source = tmp_path / "text.cpp"
    source.write_text(
        "#include <sstream>\n"
        'extern "C" long text(long n) { std::ostringstream s; s << n; return s.str().size(); }\n'
    )
    for module in modules:
        library = tmp_path / f"{module.name}.so"
        command = ["g++", "-shared", "-fPIC", "-static-libstdc++", source, "-o", library]
        subprocess.run([*command, *module.extra_link_args], check=True)
        told = subprocess.run(
            ["nm", "--dynamic", "--defined-only", "--demangle", library],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert " text\n" in told
        assert "std::locale" not in told


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


@pytest.mark.parametrize(
    ("headers", "variables", "built", "told"),
    [
        (True, {}, ["densesiam._cpu", "densesiam._info"], ""),
        (False, {}, ["densesiam._cpu"], "no headers here: the build report is data"),
        (True, {"DENSESIAM_WHEEL": "1"}, ["densesiam._cpu"], ""),
    ],
)
def test_the_report_is_a_module_of_a_python_or_data(
    build, monkeypatch, tmp_path, capsys, headers, variables, built, told
):
    include = tmp_path / "include"
    include.mkdir()
    if headers:
        (include / "Python.h").touch()
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(include))
    monkeypatch.setenv("FORCE_CPU", "1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    modules, _ = build.extensions()
    assert [module.name for module in modules] == built
    assert told in capsys.readouterr().err


def test_the_oldest_torch_is_what_the_sources_are_compiled_for(build):
    assert build.stable_abi() == "2.10"


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


def make_gpus(monkeypatch, *capabilities):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])


@pytest.fixture
def choose(build, monkeypatch, tmp_path):
    """Choose for the given list, GPUs and unknown architectures: what nvcc is made to emit."""

    def chosen(given=None, *, gpus=(), unknown="none"):
        make_gpus(monkeypatch, *gpus)
        if given is not None:
            monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
        toolkit = make_nvcc(tmp_path / "toolkit", "12.4", unknown=unknown)
        return build.emitted(build.choose_architectures(toolkit, "12.4"))

    return chosen


@pytest.mark.parametrize(
    ("given", "emitted"),
    [
        ("9.0", "sm_90"),
        ("9.0;8.0;9.0", "sm_80 sm_90"),
        (" 8.0 ; 12.0\n9.0; ", "sm_80 sm_90 sm_120"),
        ("9.0+PTX", "sm_90 compute_90"),
        # PTX is that of the oldest: it runs on every GPU that the one asked for would run on.
        ("8.6;9.0+PTX", "sm_86 sm_90 compute_86"),
        ("8.6+PTX;9.0", "sm_86 sm_90 compute_86"),
        ("9.0a", "sm_90a"),
        ("9.0a+PTX", "sm_90a compute_90a"),
        ("9.0a;8.0+PTX ", "sm_80 sm_90a compute_80"),
        ("10.0f 12.0f+PTX", "sm_100f sm_120f compute_120f"),
        ("Hopper", "sm_90 compute_90"),
        ("Ampere;Hopper", "sm_80 sm_86 sm_90 compute_80"),
        ("Ada 12.0", "sm_89 sm_120 compute_89"),
        ("Blackwell+Tegra", "sm_110"),
        ("Ampere+Tegra;9.0a", "sm_87 sm_90a"),
        ("native", "sm_86 sm_90"),
        ("native;10.0+PTX", "sm_86 sm_90 sm_100 compute_86"),
    ],
)
def test_architectures_that_are_asked_for(choose, given, emitted):
    assert choose(given, gpus=[(9, 0), (8, 6), (9, 0)]) == emitted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("8.0,9.0", r"holds '8.0,9.0', which is no architecture. Expected are numbers such as 9"),
        ("9.0;Hoper", r"holds 'Hoper', which is no architecture"),
        ("90", r"holds '90', which is no architecture"),
        ("9.0+ptx", r"holds '9.0\+ptx', which is no architecture"),
        ("native", r"is native, and torch finds no GPU here .* Name the architectures"),
        ("7.5;9.0", r"is '7.5;9.0', and the kernels need sm_80 or newer"),
        ("Volta", r"is 'Volta', and the kernels need sm_80 or newer"),
        (
            "9.0;10.0a",
            r"is .*, and nvcc of CUDA 12.4 does not know sm_100a .* point CUDA_HOME at another",
        ),
        ("Blackwell", r"is .*, and nvcc .* not know sm_100, sm_103, sm_120, sm_121 \("),
    ],
)
def test_architectures_that_cannot_be(choose, given, message):
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST {message}"):
        choose(given, unknown="1*")


@pytest.mark.parametrize("given", [None, "", " ; "])
def test_default_architectures(choose, given, capsys):
    assert choose(given) == "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_80"
    assert "sm_120 compute_80 (no GPU here: the default)" in capsys.readouterr().err


def test_the_default_keeps_to_what_nvcc_knows(choose, capsys):
    assert choose(unknown="1*") == "sm_80 sm_86 sm_89 sm_90 compute_80"
    said = capsys.readouterr().err
    assert "the default, without sm_100, sm_120, which this nvcc does not know)" in said


def test_architectures_of_the_gpus_here(choose, capsys):
    assert choose(gpus=[(9, 0), (8, 6), (9, 0)]) == "sm_86 sm_90"
    assert "sm_86 sm_90 (the GPUs of this machine)" in capsys.readouterr().err


def test_a_gpu_newer_than_nvcc_gets_ptx(choose):
    assert choose(gpus=[(12, 0)], unknown="1*") == "sm_90 compute_90"


def test_a_gpu_too_old_is_left_out(build, choose, capsys):
    assert (build.OLDEST // 10, build.OLDEST % 10) == _devices.OLDEST
    assert choose(gpus=[(7, 5), (8, 6)]) == "sm_86"
    assert "cuda:0 is left out: it is sm_75, and the kernels need sm_80" in capsys.readouterr().err


def test_the_intermediate_code_is_the_oldest(build):
    """Machine code of an older GPU than its intermediate code does not compile."""
    oldest_first = ["-gencode=arch=compute_86,code=[sm_86,sm_90,sm_120,compute_86]"]
    assert build.gencode({"sm_120", "sm_86", "sm_90", "compute_120"}) == oldest_first
    assert build.gencode({"sm_90", "compute_90", "sm_100f", "sm_90a", "compute_90a"}) == [
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
        "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
        "-gencode=arch=compute_100f,code=[sm_100f]",
    ]


def in_library(path, families=False):
    """What cuobjdump finds in a library, which may hold `families` (100f), like `emitted`."""
    try:
        tool = shutil.which("cuobjdump") or audit.tool("cuobjdump")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    listing = subprocess.run([tool, path], capture_output=True, text=True, check=True).stdout
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    if families and tuple(map(int, release.groups())) < (12, 9):
        pytest.skip("a cuobjdump older than CUDA 12.9 does not tell families of GPUs apart")
    kinds = {"elf": "sm", "ptx": "compute"}
    found = re.findall(r"Fatbin (elf|ptx) code:\n=+\narch = sm_(\w+)", listing)
    return {f"{kinds[kind]}_{number}" for kind, number in found}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("given", ["Hopper", "9.0a;8.6+PTX ", "8.0;12.0+PTX", "10.0f+PTX;8.9"])
def test_what_nvcc_emits_is_what_is_recorded(build, monkeypatch, tmp_path, given):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    cuda_home = build.find_cuda_home()
    flags = build.choose_architectures(cuda_home, build.nvcc_version(cuda_home))
    (tmp_path / "empty.cu").write_text("__global__ void empty() {}")
    compile_it = [cuda_home / "bin" / "nvcc", *flags, "-fatbin", "empty.cu"]
    subprocess.run(compile_it, cwd=tmp_path, check=True, capture_output=True)
    expected = set(build.emitted(flags).split())
    families = any(code.endswith("f") for code in expected)
    assert in_library(tmp_path / "empty.fatbin", families) == expected


@pytest.mark.skipif(_libraries.find("_cuda") is None, reason="the CUDA kernels were not built")
def test_the_report_of_this_build_is_true():
    assert in_library(_libraries.find("_cuda")) == set(
        _libraries.build_info()["architectures"].split()
    )
