"""What each stage does: its steps, most valuable first."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.gpu_kit.process import Outcome
from tools.gpu_kit.visit import Record, Step, Visit
from tools.three_uses import judge_losses

ROOT = Path(__file__).parents[2]
FIRST = ["overlap_sample", "pixel_similarity", "overlap_similarity", "region_pool"]
"""The most valuable operations; the others come after them."""


def named_after(folder: str) -> list[str]:
    """Operations with a file there: this program loads neither torch nor the package."""
    names = sorted(path.stem for path in (ROOT / folder).glob("[a-z]*.py"))
    return [*(name for name in FIRST if name in names), *(n for n in names if n not in FIRST)]


OPERATIONS = named_after("densesiam/ops")
COMPOSITES = ("segmentation", "pretraining")
WITHOUT_TRITON = set(OPERATIONS) - set(named_after("kernels"))
GPU_TESTS = (
    *("tests/ops", "tests/csrc/cuda/test_gpu.py", "tests/benchmarks/test_host.py"),
    *("tests/benchmarks/test_measure.py", "tests/benchmarks/test_run.py"),
    "tests/reference/test_confusion_matrix.py",
)
"""Where tests marked gpu are: each worker would import all others for nothing."""
SILENCE = 120.0  # seconds: a kernel that takes so long to compile or to run hangs
MOST_RESTARTS = 20
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/nsight-compute*", "/opt/nvidia/nsight-compute/*")
SPIN = "spin_kernel"
"""torch's kernel of `torch.cuda._sleep`."""
METRICS = {
    "gpu__time_duration.sum": "nanoseconds",
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of memory's peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "% of the processors' peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of warps",
    "smsp__inst_executed.sum": "warp instructions",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads a block",
}


def record(outcome: Outcome, right: bool, said: str | None = None, data: Any = None) -> Record:
    """A step's record, of the one program that it ran."""
    last = said or "\n".join(outcome.text.strip().splitlines()[-3:])
    state = "timed out" if outcome.state == "hung" else outcome.state
    return {"state": state, "right": right, "said": last[-2000:], "data": data}


def read_json(path: Path) -> Any:
    """What a file holds; None if it holds nothing that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# -- 1: the build and the uses ---------------------------------------------------------------------


def build(visit: Visit, step: Step, seconds: float) -> Record:
    """Build for the GPU that is here; if that fails, the libraries brought along are used."""
    if not visit.is_kit and list((visit.source / "densesiam").glob("_cuda*.so")):
        said = "built before: the repository's own libraries are used"
        return {"state": "done", "right": True, "said": said}
    done = visit.program("build", [sys.executable, "setup.py", "build_ext", "--inplace"], seconds)
    problem = f"the build {done.state}" if done.state != "done" else None
    if problem is None:
        backends = look(visit, "what was built").get("backends")
        known = isinstance(backends, dict)
        problem = backends["cuda"] if known else f"the backends of this build: {backends}"
    if problem is None:
        visit.keep_libraries()
        return record(done, True, "built for this machine")
    if visit.is_kit:
        problem += f"; the libraries are now those {visit.use_brought_libraries()}"
    return record(done, False, problem)


def libraries(visit: Visit, step: Step, seconds: float) -> Record:
    """What the machine is, and which backends it can run."""
    facts = look(visit, step.name)
    backends = facts.get("backends")
    faults = [f"backends {backends}"]
    if isinstance(backends, dict):
        faults = [f"{name}: {why}" for name, why in backends.items() if why]
    said = "; ".join(faults) or "every backend can run"
    return {"state": "done", "right": not faults, "said": said, "data": facts}


def look(visit: Visit, title: str) -> dict[str, Any]:
    """The machine's facts, with the libraries that are there now."""
    file, limit = visit.work / "facts.json", 120 * visit.patience
    file.unlink(missing_ok=True)
    visit.program(title, visit.module("tools.gpu_kit.environment", "--json", file), limit)
    return read_json(file) or {}


def use(name: str) -> Callable[[Visit, Step, float], Record]:
    """One of the three uses (tools/three_uses.py)."""

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        output = visit.work / f"use-{name}"
        command = [sys.executable, "-W", "ignore", "-m", "tools.three_uses", "--here"]
        done = visit.program(step.name, [*command, "--uses", name, "--output", output], seconds)
        visit.take_logs(output, step.name)
        data = {"results": read_json(output / "benchmarks.json")} if name == "benchmarks" else None
        return record(done, done.state == "done", data=data)

    return run


OF_SAMPLES = (
    *("--data.train", "samples", "--data.num_workers", "0"),
    # All parts of the loss from the first step on: one that joins later lets the sum rise.
    *("--model.region_start", "0", "--trainer.max_epochs", "3", "--trainer.accelerator", "auto"),
    *("--output", "{output}"),
)
"""Trainings of a few steps on photographs that libraries bring along: nothing is downloaded."""
FIT = (
    *("fit", "--config", "configs/folder.yaml", *OF_SAMPLES),
    *("--model.backbone", "resnet18", "--model.weights", "null", "--model.backbone_lr_factor", "1"),
    *("--data.batch_size", "8", "--data.samples_per_epoch", "64"),
    *("--data.views.init_args.resize", "128", "--data.views.init_args.size", "96"),
    "--trainer.precision",
)
PRETRAIN = (
    *("pretrain", "--config", "configs/pretrain/small.yaml", *OF_SAMPLES),
    *("--data.samples_per_epoch", "256"),
)
CHECKPOINT = "{output}/checkpoints/last.ckpt"
PREDICT = ("predict", CHECKPOINT, "samples", "--output", "{output}/predictions")
EXPORT = ("export", CHECKPOINT, "--format", "torch", "--output", "{output}/model.pt2")


def command_line(
    training: Sequence[str], *others: Sequence[str]
) -> Callable[[Visit, Step, float], Record]:
    """Commands of densesiam's, one after the other: a training, and what goes on from it.

    Each must end with 0, and the training's loss must fall.
    """

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        if visit.options.rehearse and "16-mixed" in training:
            return {
                "state": "absent",
                "right": True,
                "said": "float16 is not trained without a GPU",
            }
        output = visit.work / step.name.replace(" ", "-")
        shutil.rmtree(output, ignore_errors=True)  # of a step that was cut off
        deadline = time.monotonic() + seconds
        said = ""
        for command in (training, *others):
            words = [word.format(output=output) for word in command]
            done = visit.program(
                f"{step.name} {command[0]}",
                [sys.executable, "-W", "ignore", "-m", "densesiam", *words],
                deadline - time.monotonic(),
            )
            if done.state != "done":
                return record(done, False)
            if command is training:
                losses = judge_losses(done.text)
                said = str(losses["said"])
                if not losses["ok"]:
                    return record(done, False, said)
        return record(done, True, said)

    return run


# -- 2: every operation against the reference ------------------------------------------------------


def sweep(op: str, backend: str) -> Callable[[Visit, Step, float], Record]:
    """One operation on one backend (tools/gpu_kit/sweep.py), begun again after each crash."""

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        earlier = visit.earlier(2, step) or []
        told = {item["item"]: item for item in earlier}
        names = visit.work / f"{op}-{backend}.txt"
        deadline = time.monotonic() + seconds

        def note(text: str) -> None:
            now = told | {item["item"]: item for item in told_in(text) if "verdict" in item}
            visit.note_data(2, step, list(now.values()))

        for _ in range(MOST_RESTARTS):
            names.write_text("\n".join(told), encoding="utf-8")
            batch = 8
            if visit.options.rehearse:  # an interpreter is too slow for the method's own shapes
                batch = 0 if backend == "triton" else 1
            done = visit.program(
                step.name,
                visit.module(
                    "tools.gpu_kit.sweep", op, backend, "--skip", names, "--batch", f"{batch}"
                ),
                deadline - time.monotonic(),
                variables={"OMP_NUM_THREADS": "1"},  # as many run side by side as there are cores
                silence=SILENCE * visit.patience,
                tick=note,
            )
            begun = None
            for item in told_in(done.text):
                begun = None if "verdict" in item else item["item"]
                if "verdict" in item:
                    told[item["item"]] = item
            if done.state not in ("failed", "hung") or visit.stopped:
                break
            if begun is None and not any(told_in(done.text)):
                break  # it cannot even begin
            if begun is not None:
                why = "it hung" if done.state == "hung" else f"the process ended with {done.code}"
                told[begun] = {"item": begun, "verdict": "crash", "said": why}
        counts = Counter(item["verdict"] for item in told.values())
        said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        right = done.state == "done" and set(counts) == {"right"}
        return unfinished(record(done, right, said or None, list(told.values())), len(earlier))

    return run


def unfinished(made: Record, before: int) -> Record:
    """A list that the time limit cut short, but that has grown: more of it another time."""
    more = len(made["data"]) > before
    return made | ({"state": "cut off"} if made["state"] == "timed out" and more else {})


def told_in(text: str) -> Iterator[dict[str, Any]]:
    """The lines that a sweep tells, in what it printed; the last may be cut off."""
    for line in text.splitlines():
        if line.startswith("@ ") and line.endswith("}"):
            yield json.loads(line[2:])


# -- 3: benchmarks ---------------------------------------------------------------------------------


SMALLER = {"benchmarks.training_step": ["--tiny", "--rounds", "1"]}
"""What a rehearsal adds to a module that has no shapes of its own for it."""


def measured(*arguments: str, module: str = "benchmarks") -> Callable[[Visit, Step, float], Record]:
    """``python -m benchmarks`` with those arguments; each row is kept as it comes."""

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        file = visit.work / f"{step.name.replace(' ', '-').replace(',', '')}.json"
        extra = []
        if "--ops" in arguments:
            # Two images: heads normalise by their batch.
            extra += ["--batch", "2", "--rounds", "1"] if visit.options.rehearse else []
            extra += ["--quick"] if visit.options.quick else []
        elif visit.options.rehearse:
            extra += SMALLER.get(module, [])
        done = visit.program(
            step.name,
            visit.module(module, *arguments, *extra, "--json", file),
            seconds,
            tick=lambda _: visit.note_data(3, step, read_json(file)),
        )
        results = read_json(file)
        return record(done, done.state == "done", data=results)

    return run


# -- 4: tests, sanitizer, profiler -----------------------------------------------------------------


def tests(visit: Visit, step: Step, seconds: float) -> Record:
    """Pytest on what is marked gpu; each test's outcome is kept as it comes."""
    told = visit.work / "tests.jsonl"
    skip = visit.work / "tests-before.txt"
    before = visit.earlier(4, step) or []
    skip.write_text("\n".join(test["test"] for test in before), encoding="utf-8")
    told.write_text("")

    def so_far() -> list[dict[str, Any]]:
        lines = told.read_text(encoding="utf-8").splitlines()
        return [*before, *(json.loads(line) for line in lines if line.endswith("}"))]

    workers = str(min(8, os.cpu_count() or 1))
    parallel = ["-p", "xdist.plugin", "-n", workers, "--max-worker-restart", "100"]
    packages = (visit.facts.get("packages") or {}).get("pytest-xdist", "not installed")
    arguments = [
        *("-m", "gpu", "-p", "tools.gpu_kit.recorder", "-p", "no:cacheprovider", "-q"),
        *("--continue-on-collection-errors", "--tb=short"),
        *(parallel if packages != "not installed" else []),
        *(visit.options.tests or GPU_TESTS),
    ]
    done = visit.program(
        step.name,
        visit.module("pytest", *arguments),
        seconds,
        variables={"DENSESIAM_RECORD": str(told), "DENSESIAM_RECORDED": str(skip)},
        tick=lambda _: visit.note_data(4, step, so_far()),
    )
    counts = Counter(test["outcome"].split(",")[0] for test in so_far())
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    nothing_left = done.code == 5 and bool(before)  # pytest: every test was deselected
    right = (done.state == "done" or nothing_left) and counts["passed"] > 0 and not counts["failed"]
    return unfinished(record(done, right, said or None, so_far()), len(before))


def find_tool(name: str) -> str | None:
    """A program of CUDA's, where it is usually put."""
    if found := shutil.which(name):
        return found
    for pattern in PLACES:
        for folder in sorted(Path("/").glob(pattern[1:]), reverse=True):
            if (folder / name).is_file():
                return str(folder / name)
    return None


def table(backend: str, before: bool = False) -> Callable[[Visit, Step, float], Record]:
    """Launches of each case of the method's own, by torch's profiler: no tool has to be there.

    Args:
        backend: whose.
        before: of the commit that came along to be compared with.
    """

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        if before and (visit.before is None or visit.options.rehearse):
            why = "the emulator is built for one commit" if visit.before else "no commit came along"
            said = f"nothing to run: {why} (build --before COMMIT)"
            return {"state": "absent", "right": True, "said": said}
        file = visit.work / f"{step.name.replace(' ', '-').replace(',', '')}.json"
        file.unlink(missing_ok=True)
        small = 2 if visit.options.rehearse else 64
        launch = visit.module("tools.gpu_kit.launches", "--warm", "--batch", f"{small}")
        command = [*launch, "--backend", backend, "--table", file, *until(seconds)]
        done = visit.program(step.name, command, seconds, source=visit.before if before else None)
        kernels = read_json(file)
        right = done.state == "done"
        if not kernels:
            said = "torch's profiler told of no launch; the log has what it said" if right else None
            return record(done, right, said)
        return record(done, right, f"{len(kernels)} launches{left_out(done.text)}", kernels)

    return run


def left_out(text: str) -> str:
    """What `tools.gpu_kit.launches` says of cases that it had no time for."""
    lines = [line for line in text.splitlines() if line.startswith("left out: ")]
    return f"; {lines[-1]}" if lines else ""


def sanitizer(tool: str) -> Callable[[Visit, Step, float], Record]:
    """compute-sanitizer over every kernel: all shapes that its record has, made small."""

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        program = find_tool("compute-sanitizer")
        if program is None:
            return {"state": "absent", "right": True, "said": "compute-sanitizer is not here"}
        launch = visit.module("tools.gpu_kit.launches", "--every", "--side", "14")
        launch += until(seconds)
        flags = ["--tool", tool, "--print-limit", "20", "--error-exitcode", "86"]
        done = visit.program(
            step.name,
            [program, *flags, *launch],
            seconds,
            variables={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # each tensor with bounds of its own
        )
        found = [line for line in done.text.splitlines() if line.startswith("=========")]
        summary = [line for line in found if "SUMMARY" in line]
        if not summary:
            return record(done, True, "its output was not understood; it is in the log")
        clean = done.state == "done" and re.search(r"\b0 errors", summary[-1]) is not None
        said = summary[-1].strip("= ") + left_out(done.text)
        return record(done, clean, said, found[:400])

    return run


def profile(backend: str) -> Callable[[Visit, Step, float], Record]:
    """Nsight Compute over every kernel at the method's own shapes."""

    def run(visit: Visit, step: Step, seconds: float) -> Record:
        program = find_tool("ncu")
        if program is None:
            return {"state": "absent", "right": True, "said": "ncu is not here"}
        flags = ["--csv", "--print-units", "base", "--clock-control", "none"]
        flags += ["--profile-from-start", "off", "--target-processes", "all"]
        launch = visit.module("tools.gpu_kit.launches", "--warm", "--batch", "64")
        command = [*launch, "--backend", backend, *until(seconds)]
        metrics = ["--metrics", ",".join(METRICS)]
        done = visit.program(step.name, [program, *flags, *metrics, *command], seconds)
        kernels = kernels_in(done.text)
        if not kernels:
            return record(done, True, "its output was not understood; it is in the log")
        return record(done, True, f"{len(kernels)} launches{left_out(done.text)}", kernels)

    return run


def until(seconds: float) -> list[str]:
    """The launches' own end, early enough for a tool to tell what it saw."""
    return ["--seconds", f"{0.6 * seconds:.0f}"]


def kernels_in(text: str) -> list[dict[str, Any]]:
    """One entry a launch, of ncu's table of comma-separated values and what else was printed.

    A launch of `SPIN` stands before those of each case; what they were is printed in that order.
    """
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if not heads:
        return []
    start = "launched: {"
    launched = [
        json.loads(line[len(start) - 1 :])
        for line in lines
        if line.startswith(start) and line.endswith("}")
    ]
    problem = -1
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in lines[heads[0] :] if line.startswith('"')):
        name, value = row.get("Metric Name"), (row.get("Metric Value") or "").replace(",", "")
        if name not in METRICS:
            continue
        if row["ID"] not in kernels:
            problem += SPIN in row.get("Kernel Name", "")
            what = launched[problem] if 0 <= problem < len(launched) else {"of": ""}
            kernels[row["ID"]] = what | {"kernel": row.get("Kernel Name", "")[:300]}
        kernel = kernels[row["ID"]]
        try:
            kernel[METRICS[name]] = float(value)
        except ValueError:  # "n/a": this GPU does not count it
            kernel[METRICS[name]] = None
    return [kernel for kernel in kernels.values() if SPIN not in kernel["kernel"]]


# Ranks, for a visit of a few minutes: 0 what is right, all side by side, 1 the launches, 2 the
# method's own shapes, 3 Triton's kernels. A build comes last: what it would replace was measured.
STEPS: dict[int, list[Step]] = {
    1: [
        Step("build", 5 * 60, build, rank=10),
        Step("libraries", 120, libraries),
        Step("README's loop", 90, use("train")),
        Step("benchmarks --quick", 240, use("benchmarks")),
        *(
            Step(name, 4 * 60, run, together="sweep", rank=0)
            for name, run in {
                "fit, predict, export": command_line((*FIT, "32-true"), PREDICT, EXPORT),
                "fit in float16": command_line((*FIT, "16-mixed")),
                "fit in bfloat16": command_line((*FIT, "bf16-mixed")),
                "pretrain": command_line(PRETRAIN),
            }.items()
        ),
    ],
    2: [
        Step(f"{op} {backend}", 7 * 60, sweep(op, backend), together="sweep", rank=rank)
        for backend, rank in (("cuda", 0), ("triton", 3))
        for op in OPERATIONS
        if not (backend == "triton" and op in WITHOUT_TRITON)
    ],
    3: [
        Step("ceilings", 60, measured("ceilings")),
        *(Step(op, 90, measured("--ops", op, "--no-compile"), rank=2) for op in OPERATIONS),
        *(Step(op, 120, measured("--ops", op, "--no-compile")) for op in COMPOSITES),
        Step("half types", 120, measured("--groups", "half", "--ops", *OPERATIONS)),
        *(Step(f"{op} compiled", 120, measured("--ops", op)) for op in OPERATIONS),
        Step("training steps", 120, measured(module="benchmarks.training_step")),
    ],
    4: [
        Step("tests", 4 * 60, tests, together="sweep", rank=0),
        Step("launches cuda", 60, table("cuda"), rank=1),
        Step("launches cuda, before", 60, table("cuda", before=True), rank=1),
        Step("ncu cuda", 150, profile("cuda")),
        Step("memcheck", 100, sanitizer("memcheck")),
        Step("launches triton", 90, table("triton"), rank=3),
        Step("ncu triton", 100, profile("triton")),
        Step("racecheck", 150, sanitizer("racecheck")),
    ],
}
