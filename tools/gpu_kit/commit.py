"""``python -m tools.gpu_kit commit REPORT``: keep of a report what belongs in the repository.

A page and one JSON below 1 MB, under ``benchmarks/results/<device>``. The JSON is a result of the
benchmarks, which ``python -m benchmarks report``, ``compare`` and ``roofline --measured`` read;
what the other stages found is beside it under ``visit``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_kit.report import STAGES, Report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LARGEST = 10**6  # bytes
CLIP = 200  # characters of what was said


def main(arguments: Sequence[str]) -> int:
    """Write the two files.

    Raises:
        SystemExit: there is no report, or it is of a rehearsal.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_kit commit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("report", type=Path, help="folder that a visit wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of all results")
    options = parser.parse_args(arguments)
    stages = read(options.report)
    gpu = next(iter(stages.values()))["subject"]["gpu"]
    if gpu.startswith("stand-in") or gpu == "none":
        raise SystemExit(
            f"{options.report} is of a rehearsal ({gpu}): it shows nothing about a GPU"
        )
    name = "-".join(re.findall(r"[a-z0-9]+", gpu.lower()))
    folder = options.results / name
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(condensed(stages), separators=(",", ":")) + "\n"
    if len(text) > LARGEST:
        raise SystemExit(f"the results have {len(text)} bytes, and at most {LARGEST} are committed")
    (folder / "results.json").write_text(text)
    page = (options.report / "report.md").read_text(encoding="utf-8")
    (folder / "report.md").write_text(page[:LARGEST])
    print(f"written to {folder}: report.md, results.json")
    return 0


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """The stages of a report that there are."""
    report = Report(folder) if folder.is_dir() else None
    found = {}
    for number in STAGES if report else ():
        path = folder / report.stage(number, {}).file
        if path.is_file():
            found[number] = json.loads(path.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{folder} holds no report of a visit: it has no {STAGES[1]}.json")
    return found


def condensed(stages: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One result of the benchmarks, with everything else beside it."""
    rows: dict[tuple, dict[str, Any]] = {}
    subject = next(iter(stages.values()))["subject"]
    machine = {"device": subject["gpu"], "torch": subject["torch"]}  # all that is known for certain
    merged: dict[str, Any] = {"machine": machine, "command": "python -m tools.gpu_kit", "rows": []}
    for step in stages.get(3, {}).get("steps", {}).values():
        data = step.get("data") or {}
        merged["machine"] |= data.get("machine", {})
        merged["steps"] = merged.get("steps", {}) | data.get("steps", {})
        if "ceilings" in data:
            merged["ceilings"] = data["ceilings"]
        for row in data.get("rows", []):
            key = (row["group"], row["op"], row["name"], row["shape"], row["layout"], row["dtype"])
            rows[key] = row  # compiled rows come last, and hold everything
    merged["rows"] = list(rows.values())
    merged["visit"] = {
        STAGES[number]: {"subject": stage["subject"], "steps": brief(number, stage["steps"])}
        for number, stage in stages.items()
    }
    return merged


def brief(number: int, steps: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Steps without what is elsewhere: the benchmarks' rows, and tests that passed."""
    kept = {}
    for name, step in steps.items():
        step = step | {"said": (step.get("said") or "")[-CLIP:]}
        data = step.pop("data", None)
        if number == 2:
            step["data"] = [_short(item) for item in data or []]
        elif number == 4 and name == "tests":
            step["data"] = [_clipped(test) for test in data or [] if test["outcome"] != "passed"]
        elif name.startswith(("launches", "ncu")):
            step["data"] = [_clipped(launch) for launch in data or []]
        elif number != 3 and name != "benchmarks --quick":
            step["data"] = data
        kept[name] = step
    return kept


def _clipped(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v[:CLIP] if isinstance(v, str) else v for k, v in values.items()}


def _short(item: dict[str, Any]) -> dict[str, Any]:
    item = _clipped(item)
    pairs = item.pop("compared", [])
    errors = [f"{pair['error']:.1e}/{pair['of']:.1e}" for pair in pairs if "error" in pair]
    return item | ({"errors": errors} if errors else {})
