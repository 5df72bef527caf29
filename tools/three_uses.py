"""The three uses of the project, as one test: build it, train with an operation, measure it.

    python -m tools.three_uses                            a clean clone, Python 3.12, torch 2.11
    python -m tools.three_uses --python 3.13 --torch 2.14
    python -m tools.three_uses --here                     this tree, this interpreter and its torch

1. ``python setup.py build_ext --inplace``: the libraries are there and load.
2. The training loop of README.md: its loss falls.
3. ``python -m benchmarks --quick``: every operation is served by a backend of ours, and right.

The clone is of the commit that is checked out; what is changed and not committed is not in it, and
is said. Its environment is made by uv. ``--here`` makes neither, and needs no network. Logs and
``report.json`` go to ``--output``. Exit code: 0 if all uses passed, else 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from tools.fresh import (
    ROOT,
    Place,
    Step,
    clean_environment,
    clone,
    cuda_required,
    find_python,
    git,
    make_environment,
    uncommitted,
)

PYTHON, TORCH = "3.12", "2.11"

LOADED = """
import json, sys, torch
from densesiam._libraries import build_info, find
from densesiam.ops import _backends
found = {f"_{name}": _backends._MISSING[name] for name in ("cpu", "cuda") if find(f"_{name}")}
print(json.dumps({
    "python": sys.version.split()[0],
    "torch": torch.__version__,
    "built": build_info(),
    "libraries": found,
}))
"""


def build(place: Place) -> Step:
    """The command of the README, then whether what it built loads."""
    command = ["setup.py", "build_ext", "--inplace"]
    return loading(place, place.run("build", command, variables=cuda_required(place)))


def loading(place: Place, step: Step) -> Step:
    """A build that went well, judged by whether its libraries load."""
    if not step.ok:
        return step
    loaded = place.run(f"{step.name} loads", ["-W", "ignore", "-c", LOADED])
    if not loaded.ok:
        return replace(loaded, name=step.name)
    found = json.loads(Path(loaded.log).read_text().splitlines()[-1])
    text = Path(step.log).read_text()
    return replace(step, **judge_build(found["libraries"], text))


def judge_build(libraries: Mapping[str, str | None], text: str) -> dict[str, bool | str]:
    """Whether the build is good, from why each library does not load and what setup.py said."""
    refused = [f"{name}: {why}" for name, why in libraries.items() if why]
    if refused or "_cpu" not in libraries:
        return {"ok": False, "said": "; ".join(refused) or "no CPU kernels were built"}
    if "_cuda" in libraries:
        toolkit = re.search(r"^densesiam: (CUDA [\d.]+) in", text, re.MULTILINE)
        return {"ok": True, "said": f"CPU and {toolkit[1] if toolkit else 'CUDA'}"}
    reason = re.search(r"^densesiam: (.*no CUDA kernels.*)$", text, re.MULTILINE)
    return {"ok": True, "said": f"CPU alone ({reason[1] if reason else 'no reason given'})"}


def train(place: Place) -> Step:
    """The Python of README.md, as it stands there."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (place.tree / "README.md").read_text(), re.M | re.S
    )
    place.logs.mkdir(parents=True, exist_ok=True)
    script = place.logs / "readme.py"
    script.write_text("\n\n".join(blocks))
    # The tree on the path, as in an interactive session there; the libraries are in it.
    path = os.pathsep.join(filter(None, [str(place.tree), place.environment.get("PYTHONPATH")]))
    step = place.run("train", [script.resolve()], variables={"PYTHONPATH": path})
    return replace(step, **judge_losses(Path(step.log).read_text())) if step.ok else step


def judge_losses(text: str) -> dict[str, bool | str]:
    """Whether the loss that was printed step by step has fallen."""
    losses = [float(number) for number in re.findall(r"loss (-?[\d.]+|-?inf|nan)", text)]
    if len(losses) < 2:
        return {"ok": False, "said": f"{len(losses)} losses were printed"}
    fell = losses[-1] < losses[0] and all(map(math.isfinite, losses))
    words = "" if fell else ": it did not fall"
    return {"ok": fell, "said": f"loss {losses[0]:.3f} to {losses[-1]:.3f}{words}"}


def benchmarks(place: Place, *words: str) -> Step:
    """The quick benchmarks, which check every result before they time it."""
    result = place.logs.resolve() / "benchmarks.json"
    result.unlink(missing_ok=True)
    command = ["-W", "ignore", "-m", "benchmarks", "--quick", "--json", result, *words]
    step = place.run("benchmarks", command)
    if not result.exists():
        return step
    verdict = judge_benchmarks(json.loads(result.read_text())["rows"], Path(step.log).read_text())
    return replace(step, **(verdict if step.ok or not verdict["ok"] else {}))


def judge_benchmarks(rows: list[dict], text: str) -> dict[str, bool | str]:
    """Whether every row has a time of ours, and no result was wrong, of ours or of a peer."""
    faults = [
        f"{name} is {error} in {row['op']} ({row['shape']})"
        for row in rows
        for name, error in (*row["refused"].items(), *row["wrong_peers"].items())
        if name in row["refused"] or error.startswith("wrong")
    ]
    faults += re.findall(r"^.*no backend of ours.*$", text, re.MULTILINE)
    if not rows:
        faults.append("nothing was measured")
    return {"ok": not faults, "said": "; ".join(faults) or f"{len(rows)} rows, nothing wrong"}


USES: dict[str, Callable[[Place], Step]] = {
    "build": build,
    "train": train,
    "benchmarks": benchmarks,
}


def uses(place: Place, names: list[str]) -> list[Step]:
    """Run the uses one after the other, and print a line for each; a failed build ends them."""
    steps = []
    for name in names:
        steps.append(USES[name](place))
        print(steps[-1].line(), flush=True)
        if name == "build" and not steps[-1].ok:
            break
    return steps


def fresh_place(output: Path, python: str | None, torch: str, commit: str) -> Place:
    """A clean clone and an environment of its own, or an error that says what is missing."""
    interpreter = find_python(python or PYTHON)
    if interpreter is None and python is None:
        interpreter = Path(sys.executable)
        own = ".".join(map(str, sys.version_info[:2]))
        print(f"there is no Python {PYTHON} here, so this is Python {own}")
    if interpreter is None:
        sys.exit(f"there is no Python {python}: no python{python} on the path, nor among pyenv's")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    variables = clean_environment() | {"TORCH_CUDA_ARCH_LIST": "9.0"}
    place = Place(output / "tree", output / "venv/bin/python", output, variables)
    print(f"commit {commit[:10]}; the working tree: {uncommitted()}", flush=True)
    clone(place.tree, commit)
    step = make_environment(place, interpreter, torch, ["bench"])
    print(step.line(), flush=True)
    if not step.ok:
        sys.exit(1)
    return place


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tools.three_uses", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--python", help=f"such as 3.13; default {PYTHON}, else this one")
    parser.add_argument(
        "--torch", default=TORCH, help="such as 2.10 or 2.14.1; default %(default)s"
    )
    parser.add_argument("--here", action="store_true", help="this tree and this interpreter")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "three_uses")
    parser.add_argument("--uses", nargs="+", choices=USES, default=list(USES), help="default: all")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    commit = None if options.here else git("rev-parse", "HEAD")
    place = (
        Place(ROOT, Path(sys.executable), output)
        if options.here
        else fresh_place(output, options.python, options.torch, commit)
    )
    steps = uses(place, options.uses)
    ok = len(steps) == len(options.uses) and all(step.ok for step in steps)
    report = {"commit": commit, "ok": ok, "steps": [asdict(step) for step in steps]}
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'all uses passed' if ok else 'not all uses passed'}: {output / 'report.json'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
