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
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
SUBJECTS = ("densesiam/ops", "densesiam/methods", "densesiam/evaluation")


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
    """Its own test file and what holds every operation; without one, all tests of its layer."""
    folder = Path("tests", *module.parts[1:-1])
    own = folder / f"test_{module.stem}.py"
    if not (tree / own).exists():
        return [str(Path("tests", module.parts[1]))]
    return [str(own)] + (["tests/ops/test_citizens.py"] if folder.name == "ops" else [])


def noticed(tree: Path, module: Path, limit: float | None = None) -> bool:
    """Whether a test of that module fails in the tree as it is, or does not end.

    Args:
        tree: with the mutant in it, or without.
        module: whose tests are run.
        limit: seconds after which it counts as an endless loop; None: wait.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "not emulator and not triton", *tests_of(module, tree)]
    variables = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        result = subprocess.run(
            command, cwd=tree, env=os.environ | variables, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return True
    return result.returncode != 0


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
    with tempfile.TemporaryDirectory() as folder:
        tree = clone(Path(folder))
        drawn = draw(tree, options.subjects, options.count, options.seed)
        limits = {}
        for module in sorted({mutant.module for mutant in drawn}):
            start = time.monotonic()
            if noticed(tree, module):
                sys.exit(f"the tests of {module} fail without a mutant: mend them first")
            limits[module] = 300 + 5 * (time.monotonic() - start)
        killed: dict[str, list[bool]] = defaultdict(list)
        for mutant in drawn:
            start = time.monotonic()
            before, after = (tree / mutant.module).read_text(), mutant.code(tree)
            (tree / mutant.module).write_text(after)
            dead = noticed(tree, mutant.module, limits[mutant.module])
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
