"""Small faults planted one at a time in operations, methods and evaluation: does a test notice?

    python -m tools.mutants                                     100 of them, drawn with seed 0
    python -m tools.mutants --count 500 --seed 1
    python -m tools.mutants densesiam/evaluation/ranking.py     in some files or folders only

cosmic-ray makes them: another operator, comparison or number, a condition turned round, and so on.
A place in the code is drawn first, then one of its mutants, so that a line with many operators is
not drawn more often. What changes annotations alone changes nothing, and is not drawn.

Each is written into a clone of the commit that is checked out, with this tree's compiled kernels,
and the tests of its module run there until one fails, on the reference and the CPU kernels. Prints
each survivor with the line it changes, and the share that was killed. `make mutants` installs what
this needs. The exit code is 0 whatever survives: many a survivor changes nothing that can be seen.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
SUBJECTS = ("densesiam/ops", "densesiam/methods", "densesiam/evaluation")
OURS = ("densesiam", "tests", "tools")
SHARED = ("backends", "citizens", "operations", "pixel_similarity", "overlap_sample")
"""Tests of what operations share: its own, those of each operation's parts, a map and a loss."""
ELSEWHERE = {"_triton": ("tests/ops/test_backends.py", "tests/packaging/test_kernels_import.py")}
"""Tests of a module of operations that are not where those of the others are."""
# Each backend's run of every operation's suite takes minutes: that of the compiled kernels will do.
CHOSEN = "not emulator and (not triton or test_backends or test_kernels_import)"
PRELOADED = ("torch", "torch._dynamo", "torchvision", "lightning", "timm", "hypothesis", "scipy")
"""Imported once, before any fork: what tests import that is no part of the tree."""


@dataclass(frozen=True)
class Mutant:
    """One fault: at the ``occurrence``-th place in ``module`` that the operator applies to."""

    module: Path
    operator: str
    occurrence: int

    def code(self, tree: Path) -> str:
        """The module's text with the fault in it."""
        source = (tree / self.module).read_text()
        mutated = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert mutated is not None, self
        return mutated

    def matters(self, tree: Path) -> bool:
        """Whether it is Python and changes more than annotations."""
        before = _meaning((tree / self.module).read_text())
        try:
            return _meaning(self.code(tree)) != before
        except SyntaxError:  # the asterisk before keyword arguments is an operator to cosmic-ray
            return False


class _Places(Visitor):
    """Where an operator applies, in the order in which cosmic-ray counts."""

    def __init__(self, operator: str) -> None:
        self.operator = get_operator(operator)()
        self.found: list[tuple[int, int]] = []

    def visit(self, node):
        self.found += [start for start, _ in self.operator.mutation_positions(node)]
        return node


def mutants(tree: Path, module: Path) -> dict[tuple[int, int], list[Mutant]]:
    """Every mutant of a module, by the place that it changes (line, column)."""
    source = get_ast((tree / module).read_text())
    places = defaultdict(list)
    for operator in sorted(operator_names()):
        if operator.startswith("core/Variable"):  # these have to be told which variable
            continue
        visitor = _Places(operator)
        visitor.walk(source)
        for occurrence, place in enumerate(visitor.found):
            places[place].append(Mutant(module, operator, occurrence))
    return places


def _meaning(source: str) -> str:
    """The code without its annotations, which are never evaluated here."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def draw(tree: Path, subjects: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """That many mutants, each at a place of its own, in the order of the files."""
    places = [
        (module, place, found)
        for module in modules(tree, subjects)
        for place, found in sorted(mutants(tree, module).items())
    ]
    generator = random.Random(seed)
    generator.shuffle(places)
    drawn = []
    for module, place, found in places:
        mutant = generator.choice(found)
        if len(drawn) < count and mutant.matters(tree):
            drawn.append((module, place, mutant))
    return [mutant for _, _, mutant in sorted(drawn, key=lambda each: each[:2])]


def modules(tree: Path, subjects: Sequence[str]) -> Iterator[Path]:
    """The files named, and those of the folders named."""
    for subject in subjects:
        path = tree / subject
        if not path.exists():
            sys.exit(f"{subject}: there is no such file or folder in the commit checked out")
        for each in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield each.relative_to(tree)


def tests_of(module: Path, tree: Path) -> list[str]:
    """Its own test file, and what holds every operation; without one, all tests of its layer.

    What operations share is tested by some of them: all take as long as all other layers.
    """
    folder = Path("tests", *module.parts[1:-1])
    if module.stem in ELSEWHERE:
        return list(ELSEWHERE[module.stem])
    if folder.name == "ops":
        names = SHARED if module.stem.startswith("_") else (module.stem, "citizens")
    else:
        names = (module.stem,)
    paths = [folder / f"test_{name}.py" for name in names]
    return [str(path) for path in paths if (tree / path).exists()] or [
        str(Path("tests", module.parts[1]))
    ]


def preload() -> None:
    """Import once what every run of the tests would import anew."""
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)


def noticed(tree: Path, module: Path, limit: float | None = None) -> bool:
    """Whether a test of that module fails in the tree as it is, or does not end.

    The tests run in a fork of this process, which has imported all that is no part of the tree.

    Args:
        tree: with the mutant in it, or without.
        module: whose tests are run.
        limit: seconds after which it counts as an endless loop; None: wait.
    """
    child = os.fork()
    if child == 0:
        _run_tests(tree, tests_of(module, tree))
    os.setpgid(child, child)  # children of the tests end with it
    start = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        if limit is not None and time.monotonic() - start > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.1)  # os.waitpid has no limit of its own


def _run_tests(tree: Path, tests: list[str]) -> NoReturn:
    """Run these tests until one fails, in a process that is given up for it."""
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(each for each in sys.path if Path(each).resolve() != ROOT)]
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        for name in [each for each in sys.modules if each.split(".")[0] in OURS]:
            del sys.modules[name]  # the tree has its own
        options = ["-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN]
        code = int(pytest.main([*options, *tests]))
    finally:
        os._exit(code)


def change(before: str, after: str) -> str:
    """The lines that differ."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in list(lines)[2:])


def clone(folder: Path) -> Path:
    """A clone of the commit that is checked out, with the kernels that were built here."""
    tree = folder / "densesiam"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    for library in (ROOT / "densesiam").glob("_*.so"):
        shutil.copy(library, tree / "densesiam")
    (tree / "densesiam" / "kernels").symlink_to(tree / "kernels")
    return tree


def main(arguments: list[str] | None = None) -> None:
    """Plant, run, count."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="*", default=SUBJECTS, metavar="PATH")
    parser.add_argument("--count", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # and no threads of this process, which forks
    preload()
    with tempfile.TemporaryDirectory() as folder:
        tree = clone(Path(folder))
        drawn = draw(tree, options.subjects, options.count, options.seed)
        limits: dict[str, float] = {}
        killed: dict[str, list[bool]] = defaultdict(list)
        for mutant in drawn:
            tests = " ".join(tests_of(mutant.module, tree))
            if tests not in limits:
                start = time.monotonic()
                if noticed(tree, mutant.module):
                    sys.exit(f"{tests}: they fail without a mutant: mend them first")
                limits[tests] = 300 + 5 * (time.monotonic() - start)
            start = time.monotonic()
            before, after = (tree / mutant.module).read_text(), mutant.code(tree)
            (tree / mutant.module).write_text(after)
            dead = noticed(tree, mutant.module, limits[tests])
            (tree / mutant.module).write_text(before)
            killed[str(mutant.module.parent)].append(dead)
            state = "killed" if dead else "SURVIVED"
            print(f"{state} {mutant.module} [{time.monotonic() - start:.0f} s]", flush=True)
            if not dead:
                print(change(before, after), flush=True)
    for folder_name, states in killed.items():
        print(f"{folder_name}: {sum(states)} of {len(states)} killed")
    total = [state for states in killed.values() for state in states]
    print(f"{sum(total)} of {len(total)} killed (seed {options.seed})")


if __name__ == "__main__":
    main()
