"""The table torch x Python: each combination from a clean clone in an environment of its own.

    python -m tools.everywhere                   all of them, one after the other
    python -m tools.everywhere --jobs 2          two at a time
    python -m tools.everywhere '2.10-*' oldest   some of them, by name; --list names all
    python -m tools.everywhere 'make-*'          `make test` and `make demo`, oldest and newest
    python -m tools.everywhere 'wheel-*'         what `make wheel` left in dist/, oldest and newest

The oldest and the newest torch meet every Python, those between one each. The CPU library is built
everywhere, CUDA's once for each torch (for one architecture, where there is an nvcc), and the op
suite runs on the reference and on the CPU kernels, with its tests of torch.compile. Some also run
the three uses (`tools.three_uses`), or the op suite with one setting of the machine at a time.
"oldest" has the oldest version of everything that pyproject.toml allows; it trains, predicts and
exports as well, and CI runs it. So do those that start with "wheel-", which install the wheel in a
tree without sources and where there is no compiler. They, and what starts with "make-", run only
where they are named.

Results go to ``build/everywhere``: ``table.md``, ``table.json``, and a folder of logs for each.
Steps that passed at this commit are not run again. A combination that passed leaves its logs, one
that failed its clone and its environment too. Exit code: 0 if nothing failed, else 1; a combination
whose Python is not on this machine was not run, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from tools import three_uses
from tools.fresh import (
    ROOT,
    Place,
    Step,
    clean_environment,
    clone,
    cuda_required,
    find_nvcc,
    find_python,
    find_uv,
    git,
    make_environment,
    newest,
    uncommitted,
)

SUITE = (
    *("tests/ops", "tests/csrc/cpu/test_kernels.py"),
    *("--ignore=tests/ops/test_backends.py", "--ignore=tests/ops/test_fuzz.py"),
    *("-k", "not emulator and not triton"),
)
SHORT = (
    *(
        "tests/ops/test_citizens.py",
        "tests/ops/test_wrong_calls.py",
        "tests/ops/test_operations.py",
    ),
    *("tests/ops/test_overlap_similarity.py", "-k", "not emulator and not triton"),
)
"""Where versions of torch have differed: dispatch, compilation, errors; and one operation."""
QUICKEST = (
    *("--rounds", "1"),
    *("--ops", "overlap_sample", "pixel_similarity", "region_pool", "pseudo_label_loss"),
)
"""Of the benchmarks: the hot path, once. Composites take most of their time."""
WITHOUT_COMPILER = (
    *("tests/ops", "--ignore=tests/ops/test_backends.py"),
    "--ignore=tests/ops/test_operations.py",  # of the sources
    *("-k", "not emulator and not triton and not compile"),
)
INTERPRETED = ("numpy<2.3",)
"""What the interpreter of the oldest Triton needs."""
TRITON = ("tests/ops/test_label_map.py", "tests/ops/test_pixel_similarity.py", "-k", "triton")
COMPILED = ("tests/kernels/test_small.py",)
"""Of the kernels, what the compiler of the oldest Triton has refused."""
SETTINGS = {
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ours baseline": {"DENSESIAM_CPU_CAPABILITY": "baseline"},
    "ours avx2": {"DENSESIAM_CPU_CAPABILITY": "avx2"},
    "2 threads": {"DENSESIAM_TEST_THREADS": "2"},  # else 1
}
NEEDED = ("environment", "build", "fit")  # what comes after them needs them

Action = Callable[[Place], Step]


@dataclass(frozen=True)
class Combination:
    """A row of the table to be.

    Attributes:
        torch: such as 2.10; "newest"; "lowest", as of everything else.
        python: such as 3.12.
        parts: what is run beside the CPU build and the op suite: "uses", "settings", "cuda" (the
            CUDA build too); or "make", or "wheel", alone.
    """

    torch: str
    python: str
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As on the command line, and of its folder."""
        if self.torch == "lowest":
            return "oldest"
        alone = "".join(f"{part}-" for part in ("make", "wheel") if part in self.parts)
        return f"{alone}{self.torch}-{self.python}"


TABLE = (
    Combination("2.10", "3.11"),
    Combination("2.10", "3.12", ("uses", "settings", "cuda")),
    Combination("2.10", "3.13"),
    Combination("2.11", "3.12", ("uses", "settings", "cuda")),
    Combination("2.12", "3.11", ("cuda",)),
    Combination("2.14", "3.13", ("settings", "cuda")),
    Combination("newest", "3.11"),
    Combination("newest", "3.12"),
    Combination("newest", "3.13", ("uses", "settings", "cuda")),
    Combination("lowest", "3.11", ("uses",)),
)
BY_HAND = tuple(
    Combination(torch, python, (part,))
    for part in ("make", "wheel")
    for torch, python in (("2.10", "3.11"), ("newest", "3.13"))
)


@dataclass
class Row:
    """What became of a combination.

    Attributes:
        combination: which one.
        commit: of the clone.
        steps: by name, in the order in which they ran.
        missing: why nothing was run.
        complete: whether every step has passed.
    """

    combination: Combination
    commit: str
    steps: dict[str, Step] = field(default_factory=dict)
    missing: str = ""
    complete: bool = False

    def write(self, path: Path) -> None:
        """Keep it in a file, whole at every moment."""
        path.with_suffix(".new").write_text(json.dumps(asdict(self), indent=1) + "\n")
        path.with_suffix(".new").replace(path)

    @classmethod
    def read(cls, path: Path, combination: Combination, commit: str) -> Row:
        """What an earlier run at the same commit has left, else an empty row."""
        row = cls(combination, commit)
        if path.exists() and (kept := json.loads(path.read_text()))["commit"] == commit:
            row.steps = {name: Step(**step) for name, step in kept["steps"].items()}
            row.complete = kept["complete"]
        return row


def suite(
    name: str, variables: Mapping[str, str], workers: int, words: Sequence[str] = SUITE
) -> Action:
    """The op suite with some variables set; the step says what pytest counted."""
    command = ["-m", "pytest", "-q", "--numprocesses", str(workers), *words]
    return lambda place: counted(place.run(name, command, variables=variables))


def make(target: str, torch: str) -> Action:
    """A target of the Makefile, with a torch."""

    def run(place: Place) -> Step:
        command = ["make", target, f"PYTHON={place.python}", f"TORCH={torch}"]
        return counted(place.run(f"make {target}", command))

    return run


def command(name: str, *words: str) -> Action:
    """A command of densesiam's."""
    return lambda place: place.run(name, ["-W", "ignore", "-m", "densesiam.cli", *words])


ACROSS = """
import runpy, sys, torch
torch.version.cuda = None
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def install_wheel(place: Place) -> Step:
    """The wheel of `make wheel`, in the environment; the tree's own sources go."""
    found = sorted((ROOT / "dist").glob("densesiam-*-abi3-manylinux*.whl"))
    if len(found) != 1:
        said = f"{ROOT / 'dist'} has {len(found)} wheels, not one: run `make wheel`"
        return Step("build", False, said, 0, 0, "")
    for folder in ("densesiam", "kernels", "csrc"):
        shutil.rmtree(place.tree / folder, ignore_errors=True)
    install = [find_uv(), "pip", "install", "--python", place.python, "--no-deps", found[0]]
    step = place.run("build", install)
    return replace(step, said=found[0].name) if step.ok else step


def cuda_apart(place: Place) -> Step:
    """The CUDA sources compiled and loaded where torch is of another CUDA major than the nvcc.

    setup.py refuses to build for such a pair, which no GPU has been seen to run. What the sources
    take of torch has no CUDA in it, so it is shown that they fit this torch: to setup.py it is one
    without CUDA.
    """
    if cuda_required(place) or not find_nvcc(place):
        return Step("CUDA apart", True, "not needed, or no nvcc: see the build", 0, 0, "")
    step = place.run("CUDA apart", ["-c", ACROSS], variables={"FORCE_CUDA": "1"})
    return three_uses.loading(place, step)


def counted(step: Step) -> Step:
    """The step with what pytest's last line counts, if there is one; none passed is a failure."""
    text = Path(step.log).read_text()
    counts = re.findall(r"^=* ?(\d+ \w+.*?) in [\d.]+s", text, re.MULTILINE)
    if not counts:
        return step
    return replace(step, said=counts[-1], ok=step.ok and " passed" in counts[-1])


def actions(
    combination: Combination, interpreter: Path, workers: int, short: bool = False
) -> dict[str, Action]:
    """The steps of a combination, in order.

    Args:
        combination: what to run, in its clone.
        interpreter: its Python.
        workers: processes of pytest.
        short: of the op suite, `SHORT` alone, settings too; of the benchmarks, `QUICKEST`.
    """
    lowest, wheel = combination.torch == "lowest", "wheel" in combination.parts
    asked = "torch" if combination.torch == "newest" else f"torch=={combination.torch}.*"
    torch = None if lowest else newest(asked, combination.python)
    if "make" in combination.parts:
        return {f"make {target}": make(target, str(torch)) for target in ("test", "demo")}
    whole = lowest or wheel  # a training, a prediction, an export
    extras = ["bench", "test", *(["demo"] if whole else [])]
    also = INTERPRETED if wheel and combination.torch == TABLE[0].torch else ()
    steps: dict[str, Action] = {
        "environment": lambda place: make_environment(
            place, interpreter, torch, extras, lowest, also
        ),
        "build": install_wheel if wheel else three_uses.build,
    }
    name, words = ("op suite, short", SHORT) if short else ("op suite", SUITE)
    steps[name] = suite(name, {}, workers, WITHOUT_COMPILER if wheel else words)
    if wheel:
        steps["Triton"] = suite("Triton", {}, workers, TRITON)
    if lowest:
        steps["Triton"] = suite("Triton", {}, workers, COMPILED)
    if "settings" in combination.parts:
        steps |= {
            name: suite(name, variables, workers, words) for name, variables in SETTINGS.items()
        }
    if "uses" in combination.parts:
        steps |= {name: use for name, use in three_uses.USES.items() if name != "build"}
        if short:
            steps["benchmarks"] = lambda place: three_uses.benchmarks(place, *QUICKEST)
    if "cuda" in combination.parts:
        steps["CUDA apart"] = cuda_apart
    if whole:
        output, model = "outputs/oldest", "outputs/oldest/checkpoints/last.ckpt"
        # Four steps, of which two are with RegionSim.
        few = ["--trainer.max_epochs", "1", "--data.samples_per_epoch", "32"]
        few += ["--model.region_start", "0.5"]
        demo = ["--config", "configs/demo.yaml", "--output", output, *few]
        steps["fit"] = command("fit", "fit", *demo)
        steps["predict"] = command("predict", "predict", model, "samples")
        for kind in ("torch", "onnx"):
            name = f"export {kind}"
            steps[name] = command(name, "export", model, "--format", kind)
    return steps


def run(
    combination: Combination, folder: Path, commit: str, workers: int, short: bool = False
) -> Row:
    """Run what has not passed yet, and print a line for each step.

    Args:
        combination: what to run.
        folder: for clone, environment, logs and ``row.json``.
        commit: that is checked out.
        workers: processes of a compilation and of pytest.
        short: see `actions`.
    """
    kept = folder / "row.json"
    row = Row.read(kept, combination, commit)
    if row.complete:
        return row
    interpreter = find_python(combination.python)
    if interpreter is None:
        row.missing = f"no python{combination.python} on the path or among pyenv's"
        print(f"{combination.name}: not run: {row.missing}", flush=True)
        return row
    own = folder / "venv" / "bin" / "python"
    variables = clean_environment() | {"TORCH_CUDA_ARCH_LIST": "9.0", "MAX_JOBS": str(workers)}
    if not {"cuda", "make"} & set(combination.parts):
        variables["FORCE_CPU"] = "1"
    python = interpreter if "make" in combination.parts else own
    if "wheel" in combination.parts:
        variables |= {"CC": "false", "CXX": "false"}  # whatever asks for a compiler fails
    place = Place(folder / "tree", python, folder, variables)
    steps = actions(combination, interpreter, workers, short)
    if not (place.tree.exists() and row.steps):
        row.steps = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        clone(place.tree, commit)
    for name, action in steps.items():
        if name in row.steps and row.steps[name].ok:
            continue
        row.steps[name] = action(place)
        row.write(kept)
        print(f"{combination.name}: {row.steps[name].line()}", flush=True)
        if name in NEEDED and not row.steps[name].ok:
            return row
    row.complete = all(step.ok for step in row.steps.values())
    if row.complete:
        shutil.rmtree(place.tree)
        shutil.rmtree(folder / "venv", ignore_errors=True)
    row.write(kept)
    return row


def attempt(
    combination: Combination, folder: Path, commit: str, workers: int, short: bool = False
) -> Row:
    """`run`; where not even a step can be tried, that is what failed."""
    try:
        return run(combination, folder, commit, workers, short)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        step = Step("start", False, str(error), 0, 0, str(folder))
        print(f"{combination.name}: {step.line()}", flush=True)
        return Row(combination, commit, {"start": step})


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, what failed with its log, and a total."""
    columns = (
        "",
        "with",
        "build",
        "op suite",
        "one setting at a time",
        "uses",
        "minutes",
        "result",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        steps = dict(row.steps)
        taken = [cell(steps, [name]) for name in ("environment", "build")]
        taken.append(cell(steps, [name for name in steps if name.startswith("op suite")]))
        settings = cell(steps, [name for name in SETTINGS if name in steps])
        minutes = sum(step.processor_seconds for step in row.steps.values()) / 60
        cells = [row.combination.name, *taken, settings, cell(steps, list(steps))]
        cells += [f"{minutes:.0f}", state(row)]
        lines.append(f"| {' | '.join(text.replace('|', '/') for text in cells)} |")
    failed = [
        f"- {row.combination.name}: {step.line()}"
        for row in rows
        for step in row.steps.values()
        if not step.ok
    ]
    if failed:
        lines += ["", *failed]
    states = [state(row).partition(":")[0] for row in rows]
    total = ", ".join(f"{states.count(word)} {word}" for word in ("passed", "FAILED", "not run"))
    return "\n".join([*lines, "", f"{len(rows)} combinations: {total}", ""])


def cell(steps: dict[str, Step], names: Sequence[str]) -> str:
    """What some steps have said; they are taken out. Counts that are all the same are said once."""
    taken = {name: steps.pop(name) for name in names if name in steps}
    words = {name: step.said if step.ok else "FAILED" for name, step in taken.items()}
    if len(set(words.values())) <= 1:
        return "".join(list(words.values())[:1])
    return "; ".join(f"{name}: {said}" for name, said in words.items())


def state(row: Row) -> str:
    """In a word, or why there is nothing to say."""
    if row.missing:
        return f"not run: {row.missing}"
    return "passed" if row.complete else "FAILED"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.everywhere", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as '2.10-*'; default: all")
    parser.add_argument("--list", action="store_true", help="name the combinations and end")
    parser.add_argument("--jobs", type=int, default=1, help="combinations side by side; default 1")
    parser.add_argument(
        "--short",
        action="store_true",
        help="of the op suite what has differed between versions, of the benchmarks the hot path",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "everywhere")
    options = parser.parse_args(arguments)
    known = {combination.name: combination for combination in (*TABLE, *BY_HAND)}
    names = options.names or [combination.name for combination in TABLE]
    for name in names:
        if not any(fnmatch(each, name) for each in known):
            parser.error(f"{name} is none of {', '.join(known)}")
    chosen = [one for each, one in known.items() if any(fnmatch(each, name) for name in names)]
    if options.list:
        print("\n".join(f"{one.name}: {', '.join(one.parts) or 'op suite'}" for one in chosen))
        return 0
    commit, output = git("rev-parse", "HEAD"), options.output.resolve()
    print(f"commit {commit[:10]}; the working tree: {uncommitted()}", flush=True)
    workers = max(1, (os.cpu_count() or 1) // options.jobs)

    def row(one: Combination) -> Row:
        return attempt(one, output / one.name, commit, workers, options.short)

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            rows = list(pool.map(row, chosen))
        except KeyboardInterrupt:
            os._exit(130)  # Ctrl-C has ended the commands too; their steps are run again next time
    text = table(rows)
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(text)
    (output / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"\n{text}\nwritten to {output}")
    failed = [row for row in rows if state(row) == "FAILED" or (options.names and row.missing)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
