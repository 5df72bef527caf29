"""What a visit found, as a page for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tools.gpu_kit.beside import Counts, before_and_after, compared, counted
from tools.gpu_kit.report import FINAL, STAGES, Stage

REHEARSAL = (
    "**A rehearsal: the emulator stood in for the GPU. Nothing here is evidence about any GPU.**"
)
MOST_ROWS = 200
PREDICTED = (
    "Counted without a GPU / measured. Times and shares were predicted for the GPU that "
    "docs/benchmarks.md names for this architecture; instructions and bytes are per mandatory byte."
)
BEFORE = (
    "By torch's profiler, in one visit: the commit that came along to be compared with / this one."
)
BATCH = 64  # images that benchmarks/roofline.json was counted with


def verdict(stages: dict[int, Stage], wanted: dict[int, list[str]]) -> tuple[str, int]:
    """In one line what came out, and the exit code.

    Args:
        stages: what was recorded.
        wanted: names of each stage's steps.
    """
    faults, missing = [], []
    for number, names in wanted.items():
        for name in names:
            step = stages[number].steps.get(name, {})
            if step.get("state") not in FINAL:
                missing.append(number)
            elif not step.get("right"):
                faults.append(f"{number} {name}")
    told = [f"wrong or failed: {', '.join(faults)}"] if faults else []
    left = ", ".join(f"{steps} of stage {n}" for n, steps in sorted(Counter(missing).items()))
    told += [f"steps not finished: {left}"] if missing else []
    return "; ".join(told) or "everything ran and is right", 1 if faults else 3 if missing else 0


def render(stages: dict[int, Stage], facts: dict[str, Any], rehearsal: bool) -> str:
    """The report as Markdown."""
    parts = ["# GPU report", "", *([REHEARSAL, ""] if rehearsal else []), *_machine(facts), ""]
    parts += ["| stage | step | | state | seconds | said |", "|---|---|---|---|---|---|"]
    for number, stage in stages.items():
        for name, step in stage.steps.items():
            ended = step.get("state") in FINAL  # what was cut off is neither right nor wrong
            mark = {True: "right", False: "WRONG"}.get(step.get("right"), "") if ended else ""
            cells = [f"{number} {STAGES[number]}", name, mark, step.get("state", "")]
            cells += [f"{step.get('seconds', '')}", _line(step.get("said"))]
            parts.append("| " + " | ".join(cells) + " |")
    counts = counted(facts.get("gpus"))
    parts += _accuracy(stages[2]) + _benchmarks(stages[3], counts)
    parts += _tests(stages[4]) + _before(stages[4]) + _counted(stages[4], counts)
    parts += _kernels(stages[4])
    return "\n".join(parts) + "\n"


def _machine(facts: dict[str, Any]) -> list[str]:
    gpus, torch = facts.get("gpus"), facts.get("torch")
    lines = [f"- GPU: {gpu}" for gpu in (gpus if isinstance(gpus, list) else [])]
    lines = lines or [f"- GPU: none ({gpus})"]
    machine = facts.get("machine")
    return [*lines, f"- torch: {torch}", f"- machine: {machine}"]


def _line(text: Any, most: int = 160) -> str:
    line = " ".join(str(text or "").split()).replace("|", "/")
    return line if len(line) <= most else line[: most - 3] + "..."


def _accuracy(stage: Stage) -> list[str]:
    """Verdicts by operation and backend, the largest error, and all that is not right.

    An error is measured by what rounding allows: one relative to a result that is zero but for
    rounding would say nothing. What is held to a share of its largest element is not in it.
    """
    rows, wrong = [], []
    for name, step in stage.steps.items():
        items = step.get("data") or []
        counts = Counter(item["verdict"] for item in items)
        worst = [
            (pair["error"] / pair["allowed"], item["item"])
            for item in items
            for pair in item.get("compared") or []
            if pair.get("allowed") and "error" in pair
        ]
        error, where = max(worst, default=(0.0, ""))
        told = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        rows.append(f"| {name} | {told} | {error:.0%} | {_line(where)} |")
        wrong += [
            f"| {name} | {_line(item['item'])} | {item['verdict']} | {_line(item.get('said'))} |"
            for item in items
            if item["verdict"] != "right"
        ]
    if not rows:
        return []
    head = ["", "## Accuracy", "", "Against the reference in float64, forward and backward.", ""]
    head += [
        "| operation, backend | cases | largest error, of what rounding allows | in |",
        "|---|---|---|---|",
    ]
    more = [f"\n{len(wrong) - MOST_ROWS} more are in the JSON"] if len(wrong) > MOST_ROWS else []
    listed = ["", "| | case | verdict | said |", "|---|---|---|---|", *wrong[:MOST_ROWS], *more]
    return [*head, *rows, *(listed if wrong else [])]


def _benchmarks(stage: Stage, counts: Counts) -> list[str]:
    """Times by operation, shape and backend, beside everyone else's and the prediction."""
    lines = []
    for step in stage.steps.values():
        data = step.get("data") or {}
        for row in data.get("rows", []) if isinstance(data, dict) else []:
            times, called = row["milliseconds"], row.get("called_milliseconds", {})
            told = [
                f"{who} {_ms(timing)}"
                + (f" ({_ms(called[who])} from Python)" if who in called else "")
                for who, timing in (times | row["parts"]).items()
            ]
            told += _predicted(row, counts)
            told += [
                f"{who}: {error}" for who, error in (row["refused"] | row["wrong_peers"]).items()
            ]
            lines.append(
                f"| {row['op']} | {row['name']}: {row['shape']} | {row['layout']}, {row['dtype']} "
                f"| {_line('; '.join(told), 600)} |"
            )
    if not lines:
        return []
    head = ["", "## Benchmarks", "", "Milliseconds, forward and backward: of a graph's replay", ""]
    return [*head, "| operation | shape | | ms |", "|---|---|---|---|", *lines]


def _predicted(row: dict[str, Any], counts: Counts) -> list[str]:
    """What was predicted of CUDA, for the number of images that was counted."""
    case = f"{row['op']}, {row['name']}, {row['layout']}, {row['dtype']}"
    found = [counts.get(f"{case}, {direction}") for direction in ("forward", "backward")]
    both = [each for each in found if each is not None]
    if len(both) < 2 or not row["shape"].startswith(f"{BATCH}x"):
        return []
    time, roof = (1e-3 * sum(each[key] for each in both) for key in ("microseconds", "roof"))
    return [f"cuda predicted {time:.3f}, roof {roof:.3f}"]


def _ms(timing: dict[str, float]) -> str:
    return f"{timing['median']:.3f}"


def _tests(stage: Stage) -> list[str]:
    """What did not pass."""
    parts = []
    tests = (stage.steps.get("tests") or {}).get("data") or []
    skipped = Counter(
        _line(test.get("said")) for test in tests if test["outcome"].startswith("skipped")
    )
    failed = [t for t in tests if t["outcome"] != "passed" and not t["outcome"].startswith("skip")]
    if skipped:
        parts += ["", "## Tests that were skipped", "", "| tests | said |", "|---|---|"]
        parts += [f"| {count} | {reason} |" for reason, count in skipped.most_common()]
    if failed:
        parts += ["", "## Tests that did not pass", "", "| test | | said |", "|---|---|---|"]
        parts += [
            f"| {_line(test['test'])} | {test['outcome']} | {_line(test.get('said'))} |"
            for test in failed[:MOST_ROWS]
        ]
    return parts


def _launches(stage: Stage, *names: str) -> list[dict[str, Any]]:
    """Of the steps of these names."""
    return [kernel for name in names for kernel in stage.steps.get(name, {}).get("data") or []]


def _before(stage: Stage) -> list[str]:
    """CUDA's kernels as they were, and as they are."""
    rows = before_and_after(
        _launches(stage, "launches cuda, before"), _launches(stage, "launches cuda")
    )
    return ["", "## Before / after", "", BEFORE, "", *_rows(rows)] if rows else []


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    """A table of them."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return lines + ["| " + " | ".join(_pair(cell) for cell in row.values()) + " |" for row in rows]


def _counted(stage: Stage, counts: Counts) -> list[str]:
    """CUDA's kernels: what was counted without a GPU beside what this one did."""
    parts: list[str] = []
    for tool, name in (("launches cuda", "torch's profiler"), ("ncu cuda", "Nsight Compute")):
        if rows := compared(_launches(stage, tool), counts):
            parts += ["", f"## Counted, and measured by {name}", "", PREDICTED, ""]
            parts += _rows(rows)
    return parts


def _pair(value: Any) -> str:
    if isinstance(value, tuple):
        return " / ".join(_pair(each) for each in value)
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return _line(str(value))


def _kernels(stage: Stage) -> list[str]:
    """Every launch, with what the tools told of it."""
    parts: list[str] = []
    for tool, title in (("launches", "Launches"), ("ncu", "Kernels, profiled")):
        if kernels := _launches(stage, f"{tool} cuda", f"{tool} triton"):
            columns = list(dict.fromkeys(column for kernel in kernels for column in kernel))
            parts += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
            parts += ["|" + "---|" * len(columns)]
            parts += [
                "| " + " | ".join(_cell(k.get(c)) for c in columns) + " |" for k in kernels[:400]
            ]
    return parts


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _line(value, 100)
