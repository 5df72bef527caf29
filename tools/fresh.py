"""Fresh clones, fresh environments, and commands in them, each with its log and its time.

For `tools.three_uses` and `tools.everywhere`. Standard library only: these run before anything is
installed. Environments are made by uv, which must be beside this interpreter or on the path.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """One command, or what was concluded from it.

    Attributes:
        name: what it shows.
        ok: whether it went as it should.
        said: the conclusion in a few words.
        seconds: of the wall clock.
        processor_seconds: user and system, of the command and all that it started.
        log: everything it printed.
    """

    name: str
    ok: bool
    said: str
    seconds: float
    processor_seconds: float
    log: str

    def line(self) -> str:
        """The step as a line of a report."""
        where = "" if self.ok else f" (log: {self.log})"
        times = f"{self.seconds:.0f} s, {self.processor_seconds:.0f} of a processor"
        return f"{'ok    ' if self.ok else 'FAILED'} {self.name}: {self.said} [{times}]{where}"


@dataclass(frozen=True)
class Place:
    """A tree, the interpreter to use in it and the folder for logs.

    Attributes:
        tree: the repository's files; commands run there.
        python: the interpreter.
        logs: one file for each step.
        environment: variables of every command; the interpreter's folder comes first on the path.
    """

    tree: Path
    python: Path
    logs: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        variables: Mapping[str, str] | None = None,
    ) -> Step:
        """Run a command as one would in the activated environment.

        Args:
            name: of the step; the log is named after it.
            command: its first word is a program, or a Python option for the interpreter.
            variables: more of them, for this command.
        """
        if str(command[0]).startswith("-") or str(command[0]).endswith(".py"):
            command = [self.python, *command]
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name.replace(' ', '-')}.log"
        path = f"{self.python.parent}{os.pathsep}{self.environment.get('PATH', os.defpath)}"
        start = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.tree,
                env={**self.environment, "PATH": path, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        said = "done" if code == 0 else f"exit code {code}: {last_line(log)}"
        seconds = time.monotonic() - start
        return Step(name, code == 0, said, seconds, usage.ru_utime + usage.ru_stime, str(log))


def clean_environment() -> dict[str, str]:
    """The caller's variables less those that would change what is built, imported or made."""
    others = ("DENSESIAM_", "FORCE_", "TORCH_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    return {"UV_HTTP_TIMEOUT": "300"} | kept  # seconds; a busy machine is no reason to fail


def last_line(log: Path) -> str:
    """What a failed command said last, which is mostly why."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def find_python(version: str) -> Path | None:
    """An interpreter of that version, such as 3.12, on the path or among pyenv's."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(name), *sorted(pyenv.glob(f"*/bin/{name}"), reverse=True)]
    for candidate in filter(None, candidates):
        ask = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, capture_output=True, text=True)  # a shim may lead nowhere
        if answer.stdout.strip() == version:
            return Path(candidate)
    return None


def find_uv() -> str:
    """The program uv.

    Raises:
        SystemExit: it is not there.
    """
    if importlib.util.find_spec("uv"):
        from uv import find_uv_bin

        return find_uv_bin()
    return shutil.which("uv") or sys.exit(
        f"uv was not found, beside {sys.executable} or on the path: `pip install uv`, or use "
        "`make three-uses` and `make everywhere`, which do"
    )


def newest(requirement: str, python: str) -> str:
    """The version that satisfies a requirement, such as torch==2.10.*, as the registry says.

    Raises:
        RuntimeError: none does, or the registry cannot be asked.
    """
    command = [find_uv(), "pip", "compile", "-", "--no-deps", "--no-header", "--no-annotate"]
    command += ["--quiet", "--python-version", python]
    done = subprocess.run(command, input=requirement, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"uv finds no {requirement} for Python {python}: {done.stderr.strip()}")
    return done.stdout.strip().partition("==")[2]


def git(*arguments: str) -> str:
    """What git says about the repository."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def uncommitted() -> str:
    """What of the working tree a clone has not."""
    changed = git("status", "--porcelain").splitlines()
    return f"{len(changed)} changed files are not committed and stay out" if changed else "clean"


def clone(folder: Path, commit: str) -> None:
    """Clone the repository at a commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)


def make_environment(
    place: Place,
    interpreter: Path,
    torch: str | None,
    extras: Sequence[str],
    lowest: bool = False,
    also: Sequence[str] = (),
) -> Step:
    """Make the place's environment: what a build needs, the package's requirements, some extras.

    Args:
        place: its tree is there, its interpreter is made.
        interpreter: the Python to make it with.
        torch: its version, such as 2.10.0 or 2.10; None leaves it to the requirements.
        extras: of pyproject.toml.
        lowest: the oldest version of everything that pyproject.toml names.
        also: further requirements, such as numpy<2.3.
    """
    project = tomllib.loads((place.tree / "pyproject.toml").read_text())
    folder = place.python.parents[1]
    install = [find_uv(), "pip", "install", "--python", place.python]
    install += [*project["build-system"]["requires"], *also, "--requirements", "pyproject.toml"]
    install += [word for extra in extras for word in ("--extra", extra)]
    if torch:
        install.append(f"torch=={torch}{'' if torch.count('.') > 1 else '.*'}")
    if lowest:
        install += ["--resolution", "lowest-direct"]
    make = [find_uv(), "venv", "--clear", "--python", interpreter, folder]
    commands = {"environment": make, "requirements": install, "versions": ["-c", VERSIONS]}
    steps = []
    for name, command in commands.items():
        steps.append(place.run(name, command))
        if not steps[-1].ok:
            break
    said = Path(steps[-1].log).read_text().strip() if steps[-1].ok else steps[-1].said
    return replace(
        steps[-1],
        name="environment",
        said=said,
        seconds=sum(step.seconds for step in steps),
        processor_seconds=sum(step.processor_seconds for step in steps),
    )


VERSIONS = """
import platform, torch
from importlib.metadata import distributions
named = {each.name: each.version for each in distributions() if each.name in ("numpy", "triton")}
parts = ["Python " + platform.python_version(), f"torch {torch.__version__}"]
parts += [f"CUDA {torch.version.cuda}", *(f"{name} {named[name]}" for name in sorted(named))]
print(", ".join(parts))
"""


def find_nvcc(place: Place) -> str | None:
    """CUDA's compiler, of CUDA_HOME or on the path."""
    home = place.environment.get("CUDA_HOME")
    return f"{home}/bin/nvcc" if home else shutil.which("nvcc")


def cuda_required(place: Place) -> dict[str, str]:
    """FORCE_CUDA where there is an nvcc of the major version that torch was built with."""
    nvcc = find_nvcc(place)
    if nvcc is None or "FORCE_CPU" in place.environment:
        return {}
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    ask = [str(place.python), "-W", "ignore", "-c", "import torch; print(torch.version.cuda)"]
    torch_cuda = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    release = re.search(r"release (\d+)\.", said)
    same = release is not None and torch_cuda.partition(".")[0] == release[1]
    return {"FORCE_CUDA": "1"} if same else {}
