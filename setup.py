"""Build of the compiled libraries: what it finds decides what it builds, and it says both.

    pip install --no-build-isolation -e .      # or: python setup.py build_ext --inplace

- a C++ compiler: the CPU kernels (``densesiam/_cpu.abi3.so``) and the build report (``_info``, a
  module, or data where there are no Python headers);
- nvcc as well, of torch's CUDA major version: the CUDA kernels (``densesiam/_cuda.abi3.so``);
- neither: no library. The package then runs on its PyTorch references.

Environment: CUDA_HOME, TORCH_CUDA_ARCH_LIST, FORCE_CUDA=1 (fail without nvcc), FORCE_CPU=1 (no CUDA
kernels), MAX_JOBS, CC and CXX, DENSESIAM_SANITIZE (for example "address,undefined"), and
DENSESIAM_WHEEL=1 (nothing of this Python's own: one wheel for every Python; `make wheel` sets it).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from setuptools import setup

ROOT = Path(__file__).parent
try:
    VERSION = runpy.run_path(str(ROOT / "densesiam/__init__.py"))["__version__"]
except ImportError as refusal:  # torch is too old
    raise SystemExit(f"densesiam: {refusal}") from None
# Compute capabilities without their dot, as in sm_86. The kernels multiply in tf32, new in Ampere.
OLDEST = 80
OLDEST_PYTHON = "cp311"  # pyproject.toml: the same
DEFAULT = ("80", "86", "89", "90", "100", "120")  # each GPU family since; PTX for those to come


def say(message: str) -> None:
    """Print a line of the build's report."""
    print(f"densesiam: {message}", file=sys.stderr)


def flag(name: str) -> bool:
    """Whether an environment switch is on."""
    return os.environ.get(name, "0") not in ("", "0")


def fail(message: str) -> NoReturn:
    """End the build with one clear message."""
    raise SystemExit(f"densesiam: {message}")


def find_compiler() -> str | None:
    """The C++ compiler that torch's build extension will use."""
    if given := os.environ.get("CXX"):
        command = given.split()[0]
        return shutil.which(command) or fail(f"CXX is {given}, which is not on the path.")
    return shutil.which("c++") or shutil.which("g++")


def find_cuda_home() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, or where the nvcc on the path really lives.

    An nvcc on the path may be a script that calls another; nvcc itself knows where it is.
    """
    if given := os.environ.get("CUDA_HOME"):
        if not (Path(given) / "bin" / "nvcc").exists():
            fail(f"CUDA_HOME is {given}, which has no bin/nvcc. Correct it, or unset it.")
        return Path(given)
    if nvcc := shutil.which("nvcc"):
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
        )
        if top := re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE):
            return Path(top[1].strip()).resolve()
    default = Path("/usr/local/cuda")
    return default if (default / "bin" / "nvcc").exists() else None


def nvcc_version(cuda_home: Path) -> str:
    """Version of the toolkit's compiler, such as 13.0."""
    text = subprocess.run(
        [cuda_home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def host_compiler_refusal(cuda_home: Path) -> str | None:
    """Why nvcc does not take the host compiler (CC, else the gcc on the path); None if it does.

    Each toolkit names the compilers it knows in a header that every compilation begins with.
    """
    chosen = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
    command = [cuda_home / "bin" / "nvcc", *chosen, "-x", "cu", "-E", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line]
    return (lines or done.stderr.splitlines() or ["no reason given"])[0].strip()


def without_cuda(reason: str, required: bool) -> None:
    """Say what keeps the CUDA kernels from being built; fail where they are required."""
    if required:
        fail(f"{reason}.")
    say(f"{reason}; until then: no CUDA kernels")


def choose_cuda() -> tuple[Path, str] | None:
    """The toolkit to build the CUDA kernels with and its version, or None with the reason said."""
    required = flag("FORCE_CUDA")
    if flag("FORCE_CPU"):
        if required:
            fail("FORCE_CPU and FORCE_CUDA are both set. Set one of them.")
        say("FORCE_CPU is set: no CUDA kernels")
        return None
    cuda_home = find_cuda_home()
    if cuda_home is None:
        reason = "no nvcc was found (on the path, in CUDA_HOME or in /usr/local/cuda)"
        if required:
            fail(f"FORCE_CUDA is set, but {reason}. Install the CUDA toolkit or set CUDA_HOME.")
        say(f"{reason}: no CUDA kernels")
        return None
    version = nvcc_version(cuda_home)
    if torch.version.cuda is None and not required:
        say(f"torch {torch.__version__} has no CUDA: no CUDA kernels (FORCE_CUDA=1 builds them)")
        return None
    if torch.version.cuda and torch.version.cuda.split(".")[0] != version.split(".")[0]:
        reason = (
            f"nvcc in {cuda_home} is CUDA {version}, and torch {torch.__version__} was built with "
            f"CUDA {torch.version.cuda}: their major versions must match. Point CUDA_HOME at a "
            f"CUDA {torch.version.cuda.split('.')[0]} toolkit"
        )
        return without_cuda(reason, required)
    if refusal := host_compiler_refusal(cuda_home):
        reason = (
            f"nvcc of CUDA {version} does not take {os.environ.get('CC') or 'the gcc on the path'} "
            f"as its host compiler ({refusal}). Install an older one and name it for both "
            "languages, such as CC=gcc-13 CXX=g++-13"
        )
        return without_cuda(reason, required)
    say(f"CUDA {version} in {cuda_home}")
    return cuda_home, version


def nvcc_knows(cuda_home: Path, number: str) -> bool:
    """Whether nvcc compiles for an architecture, such as 86, 90a or 100f."""
    code = f"-gencode=arch=compute_{number},code=sm_{number}"
    command = [cuda_home / "bin" / "nvcc", "--dryrun", code, "-x", "cu", "-c", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def codes_of_gpus(cuda_home: Path) -> set[str]:
    """Codes for the GPUs of this machine: PTX for one that is newer than this nvcc."""
    codes = set()
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        number = "{}{}".format(*torch.cuda.get_device_capability(index))
        if int(number) < OLDEST:
            say(f"cuda:{index} is left out: it is sm_{number}, and the kernels need sm_{OLDEST}")
        elif nvcc_knows(cuda_home, number):
            codes.add(f"sm_{number}")
        else:
            older = [n for n in DEFAULT if int(n) < int(number) and nvcc_knows(cuda_home, n)]
            codes |= {f"sm_{older[-1]}", f"compute_{older[-1]}"}
    return codes


def codes_of_word(word: str, cuda_home: Path) -> set[str]:
    """Codes that one word of TORCH_CUDA_ARCH_LIST asks for: sm_86, compute_90a."""
    if word == "native":
        return codes_of_gpus(cuda_home) or fail(
            "TORCH_CUDA_ARCH_LIST is native, and torch finds no GPU here that the kernels run on. "
            "Name the architectures, such as 9.0."
        )
    if number := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", word):
        codes = {f"sm_{number[1]}{number[2]}"}
        return codes | {f"compute_{number[1]}{number[2]}"} if number[3] else codes
    # Anything else must be a name of torch's, such as Hopper; what it means depends on the torch.
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    try:
        with mock.patch.dict(os.environ, TORCH_CUDA_ARCH_LIST=word):
            return set(re.findall(r",code=(\w+)", " ".join(_get_cuda_arch_flags())))
    except ValueError:
        fail(
            f"TORCH_CUDA_ARCH_LIST holds {word!r}, which is no architecture. Expected are numbers "
            "such as 9.0, 9.0a, 10.0f or 8.0+PTX, native, and torch's names such as Hopper, with "
            "semicolons or spaces between them."
        )


def choose_architectures(cuda_home: Path, version: str) -> list[str]:
    """What to compile the CUDA kernels for, and why: the flags that say so to nvcc."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if words := [word for word in re.split(r"[;\s]+", given) if word]:
        codes = set().union(*(codes_of_word(word, cuda_home) for word in words))
        reason = f"TORCH_CUDA_ARCH_LIST is {given!r}"
        numbers = {code.split("_")[1] for code in codes}
        if any(int(number.rstrip("af")) < OLDEST for number in numbers):
            fail(f"{reason}, and the kernels need sm_{OLDEST} or newer.")
        if unknown := sorted(f"sm_{n}" for n in numbers if not nvcc_knows(cuda_home, n)):
            fail(
                f"{reason}, and nvcc of CUDA {version} does not know {', '.join(unknown)} (nvcc "
                "--list-gpu-code prints what it knows). Leave them out, or point CUDA_HOME at "
                "another toolkit."
            )
    elif codes := codes_of_gpus(cuda_home):
        reason = "the GPUs of this machine"
    else:
        known = [number for number in DEFAULT if nvcc_knows(cuda_home, number)]
        codes = {*(f"sm_{number}" for number in known), f"compute_{known[0]}"}
        reason = "no GPU here: the default"
        if unknown := ", ".join(f"sm_{n}" for n in DEFAULT if n not in known):
            reason += f", without {unknown}, which this nvcc does not know"
    flags = gencode(codes)
    say(f"architectures {emitted(flags)} ({reason})")
    return flags


def gencode(codes: set[str]) -> list[str]:
    """The flags that make nvcc emit machine codes (sm_86) and PTX (compute_86).

    All machine codes are made from one intermediate code, of the oldest architecture: no kernel
    uses what newer ones alone have, and compiling the intermediate code is most of the time. PTX,
    where it is asked for, is that same code: it runs on every GPU that newer PTX would run on. Only
    what an architecture (90a) or a family (100f) has for itself is compiled from its own.
    """
    numbers = {code.split("_")[1] for code in codes}
    oldest = min((number for number in numbers if number.isdigit()), key=int, default="")
    groups: dict[str, set[str]] = {}
    for code in codes:
        kind, number = code.split("_")
        source = oldest if number.isdigit() else number
        groups.setdefault(source, set()).add(code if kind == "sm" else f"compute_{source}")
    return [
        f"-gencode=arch=compute_{source},code=[{','.join(sorted(groups[source], key=by_age))}]"
        for source in sorted(groups, key=by_age)
    ]


def by_age(code: str) -> tuple[bool, int, str]:
    """Sort key: machine codes from the oldest to the newest, then PTX."""
    return code.startswith("compute"), int(re.search(r"\d+", code)[0]), code


def emitted(flags: list[str]) -> str:
    """What nvcc emits for these flags, such as "sm_80 sm_90 compute_80"."""
    codes = re.findall(r"(?:sm|compute)_\w+", " ".join(flag.split(",code=")[1] for flag in flags))
    return " ".join(sorted(codes, key=by_age))


def has_python_headers() -> bool:
    """Whether modules of this Python can be compiled; the kernels are none."""
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def stable_abi() -> str:
    """The oldest torch that the libraries load into, such as 2.10."""
    header = (ROOT / "csrc" / "stable_abi.h").read_text()
    version = re.search(r"TORCH_TARGET_VERSION 0x(\w{2})(\w{2})", header)
    return f"{int(version[1], 16)}.{int(version[2], 16)}"


def remove_stale_libraries(folder: Path, built: list[str]) -> None:
    """Remove what an earlier build left and this one does not make: it would still be loaded."""
    for library in sorted(folder.glob("*.so")):
        if f"densesiam.{library.name.split('.')[0]}" not in built:
            library.unlink()
            say(f"removed {library}: an earlier build made it, and this one does not")


def extensions() -> tuple[list, dict[str, Any]]:
    """The extension modules to build, and the command that builds them."""
    compiler = find_compiler()
    if compiler is None:
        if flag("FORCE_CUDA"):
            fail("FORCE_CUDA is set, but there is no C++ compiler. Install g++ or set CXX.")
        say("no C++ compiler was found: the package will run on its PyTorch references")
        return [], {}
    cuda = choose_cuda()

    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if cuda is not None:
        # The one that was judged. A torch without CUDA does not look for one, whatever is set.
        cpp_extension.CUDA_HOME = str(cuda[0])

    sanitize = os.environ.get("DENSESIAM_SANITIZE")
    sanitizer = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g"] if sanitize else []
    # No -ffast-math: coordinates and ties must be exact. errno and traps are not used.
    optimise = [
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fopenmp-simd",
        "-fvisibility=hidden",
    ]
    cxx = [*optimise, *sanitizer]
    # What is linked in as an archive stays inside: of two C++ runtimes in a process, one would take
    # the other's variables.
    link = ["-Wl,--exclude-libs,ALL"]
    headers = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/**/*.*h"))]

    def sources(folder: str, pattern: str) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted((ROOT / folder).glob(pattern))]

    modules = [
        CppExtension(
            "densesiam._cpu",
            sources("csrc/cpu", "*.cpp"),
            depends=headers,
            py_limited_api=True,
            extra_compile_args={"cxx": cxx},
            extra_link_args=[*link, *sanitizer],
        )
    ]
    # Device code that calls a host function is garbage: nvcc merely warns of it.
    nvcc_flags = ["-O3", "-Werror", "cross-execution-space-call"]
    architectures: list[str] = []
    if cuda is not None:
        architectures = choose_architectures(*cuda)
        modules.append(
            CppExtension(
                "densesiam._cuda",
                sources("csrc/cuda", "*.cu"),
                depends=headers,
                py_limited_api=True,
                include_dirs=[str(cuda[0] / "include")],
                library_dirs=[str(cuda[0] / "lib64")],
                # Static: the library then loads without the toolkit, and without a driver.
                libraries=["cudart_static", "rt", "dl", "pthread"],
                extra_compile_args={"cxx": cxx, "nvcc": [*nvcc_flags, *architectures]},
                extra_link_args=link,
            )
        )
    compiler_version = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    report = {
        "version": VERSION,
        "torch": torch.__version__,
        "stable_abi": stable_abi(),
        "compiler": compiler_version.stdout.splitlines()[0],
        "cxx_flags": " ".join([*optimise, *sanitizer]),
        "cuda": cuda[1] if cuda else "",
        "architectures": emitted(architectures),
        "nvcc_flags": " ".join(nvcc_flags) if cuda else "",
    }
    as_module = not flag("DENSESIAM_WHEEL") and has_python_headers()
    if as_module:
        from pybind11.setup_helpers import Pybind11Extension

        modules.append(
            Pybind11Extension(
                "densesiam._info",
                ["csrc/info.cpp"],
                define_macros=[
                    (f"DENSESIAM_{key.upper()}", f'"{value}"') for key, value in report.items()
                ],
                extra_link_args=link,
                cxx_std=17,
            )
        )
    elif not flag("DENSESIAM_WHEEL"):
        say(f"Python {sys.version.split()[0]} has no headers here: the build report is data")
    say(f"building with {compiler}: {', '.join(m.name for m in modules)}")

    class Build(BuildExtension.with_options(use_ninja=True)):
        def run(self) -> None:
            super().run()
            folder = Path(self.get_ext_fullpath("densesiam._info")).parent
            remove_stale_libraries(folder, [module.name for module in modules])
            data = folder / "_info.json"
            data.unlink(missing_ok=True)
            if not as_module:
                data.write_text(json.dumps(report, indent=1) + "\n")

    return modules, {"build_ext": Build}


def data_packages() -> dict[str, list[str]]:
    """Folders of data, which setuptools takes for packages too, and what of theirs goes along."""
    patterns = {"configs": "*.yaml", "densesiam/data/sets/tables": "*.yaml"}
    patterns["densesiam/reports/assets"] = "*"
    found = {}
    for name, pattern in patterns.items():
        for folder in sorted({path.parent for path in (ROOT / name).rglob(pattern)}):
            package = ".".join(folder.relative_to(ROOT).parts)
            found[f"densesiam.{package.removeprefix('densesiam.')}"] = [pattern]
    return found


def main() -> None:
    """Build with what was found."""
    ext_modules, commands = extensions()
    data = data_packages()
    setup(
        version=VERSION,
        # kernels/, the Triton kernels, is imported as densesiam.kernels; configs/ goes along.
        packages=[
            str(p.parent.relative_to(ROOT)).replace("/", ".")
            for p in sorted(ROOT.glob("densesiam/**/__init__.py"))
        ]
        + ["densesiam.kernels", *data],
        package_dir={"densesiam.kernels": "kernels", "densesiam.configs": "configs"},
        package_data={"densesiam": ["py.typed"], **data},
        ext_modules=ext_modules,
        cmdclass=commands,
        # Nothing in it is of one Python: without the module, the tag can say so.
        options={"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}}
        if flag("DENSESIAM_WHEEL")
        else {},
    )


if __name__ == "__main__":
    main()
