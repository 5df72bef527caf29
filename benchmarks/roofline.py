"""``python -m benchmarks roofline``: what the GPU kernels do, counted, and their share of a roof.

The machine code that nvcc made is executed here (`tools.sass`): the host code of the emulator
launches it, on the real shapes, and some blocks of each launch are run and counted. So trip counts,
divergence, sectors of global memory and conflicts in shared memory are those of the code itself.
From the counts `benchmarks.processor` predicts a time, and the roof is the time that no kernel can
beat: the largest of mandatory bytes, instructions that there must be (counted by hand in
``benchmarks/ops``), exponentials, matrix products, and launches.

A share of the roof is a prediction and no claim of speed. What holds whatever the constants are the
counts: instructions and sectors a mandatory byte, widest load, worst conflict, launches.

Not modelled: caches (what a block reads twice is in the first, what blocks share in the second, so
that a launch reads no byte of its inputs from memory twice; what the call before left there is
taken to be gone), rows of the memory, instruction fetch, register banks, power, writes of parts of
a sector, several kernels at once. A block starts a fixed time after another has ended. Triton's
kernels (``--backend triton``) are compiled here. Matrix products that are made beside the threads
(HGMMA of sm_90, UTCHMMA of sm_100) are counted with their shapes and not computed, as no other
instruction hangs on what they give, and barriers of asynchronous work are taken to be reached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import ops
from benchmarks.devices import DEVICES
from benchmarks.problem import Problem, Setting
from benchmarks.processor import (
    LANES,
    PROCESSORS,
    SCHEDULERS,
    Processor,
    resident_blocks,
    simulate,
    warp_traces,
)
from benchmarks.results import Results
from tools.audit import demangled
from tools.gpu_kit.beside import compared
from tools.sass.machine import Counts, Launch, Machine
from tools.sass.program import Program

BASELINES = {
    "cuda": Path(__file__).with_suffix(".json"),
    "triton": Path(__file__).with_name("roofline_triton.json"),
}
HOT = ("overlap_sample", "pixel_similarity", "region_pool", "pseudo_label_loss")
BATCH = 64
LAUNCH = 2.0  # microseconds that a kernel takes at the least, in a graph
NEIGHBOURS = 2  # sampled blocks stand in pairs, over the whole grid
FEW, MANY = 4, 32  # sampled blocks: of those whose warps execute much, and of others
GOLDEN = (math.sqrt(5) - 1) / 2
LONG = 8000  # instructions of a warp
PERTURB = -6  # of mallopt: new memory is filled with the complement of this byte


@dataclass(frozen=True)
class Case:
    """One operation at one of its shapes, forward or backward.

    Attributes:
        op: the operation.
        shape: the shape's name.
        layout: of the maps.
        dtype: of the maps.
        direction: "forward" or "backward".
    """

    op: str
    shape: str
    layout: str
    dtype: str
    direction: str

    def __str__(self) -> str:
        return ", ".join((self.op, self.shape, self.layout, self.dtype, self.direction))


@dataclass(frozen=True)
class Row:
    """What was counted of a case on one architecture, and what follows from it.

    Attributes:
        microseconds: predicted.
        share: of the roof, predicted.
        bound: what the predicted time goes to, in the slowest kernel.
        roof: microseconds that no kernel can beat.
        roof_bound: of what.
        launches: kernels.
        clears: memory that is filled before.
        instructions: thread instructions a mandatory byte.
        sectors: bytes of the sectors that blocks touch, a mandatory byte.
        widest: bytes of the widest load from global memory.
        conflict: wavefronts of shared memory over the least, in the worst access.
        registers: of the kernel that has the most.
        warps: resident on a multiprocessor, of the kernel with the fewest.
        in_flight: bytes of loads under way on a multiprocessor, in the slowest kernel.
        tail: microseconds of kernels of a single block.
        slowest: the kernel that takes longest.
    """

    microseconds: float
    share: float
    bound: str
    roof: float
    roof_bound: str
    launches: int
    clears: int
    instructions: float
    sectors: float
    widest: int
    conflict: float
    registers: int
    warps: int
    in_flight: int
    tail: float
    slowest: str


@dataclass(frozen=True)
class Sample:
    """One launch on one architecture: some of its blocks, executed."""

    program: Program
    launch: Launch
    counts: Counts
    traces: list


def cases(
    names: Collection[str] = HOT, batch: int = BATCH
) -> Iterator[tuple[Case, Problem, Setting]]:
    """Forward and backward of each operation at the method's own shapes."""
    for op in names:
        for shape in (shape for shape in ops.MODULES[op].SHAPES if shape.own):
            for dtype in (torch.float32, torch.float16):
                for channels_last in (False, True):
                    setting = Setting(batch, dtype, channels_last)
                    problem = ops.MODULES[op].problem(shape, setting)
                    for direction in ("forward", "backward"):
                        name = str(dtype).removeprefix("torch.")
                        case = Case(op, shape.name, setting.layout, name, direction)
                        yield case, problem, setting


# -- Counting.


def sampled_blocks(count: int, wanted: int) -> list[int]:
    """Numbers of blocks that stand for a launch: neighbours, in several places of the grid."""
    if count <= wanted:
        return list(range(count))
    # Multiples of the golden ratio: no period of the grid is hit again and again.
    starts = [int(n * GOLDEN % 1 * (count - 1)) for n in range(1, wanted // NEIGHBOURS + 1)]
    return [start + n for start in starts for n in range(NEIGHBOURS)]


def sample(program: Program, launch: Launch) -> Sample:
    """Execute some blocks of a launch, and leave its results alone."""
    blocks = sampled_blocks(launch.blocks, FEW)
    counts, steps = Machine(program, dry=True).run(launch, blocks, trace=True)
    if len(blocks) < launch.blocks and len(steps) < LONG:
        blocks = sampled_blocks(launch.blocks, MANY)
        counts, steps = Machine(program, dry=True).run(launch, blocks, trace=True)
    return Sample(program, launch, counts, warp_traces(program, steps, len(blocks)))


@dataclass(frozen=True)
class Sampled:
    """A direction of a problem.

    Attributes:
        samples: of every launch, by architecture.
        clears: memory that is filled before.
        inputs: bytes of what its launches read, but for what they leave to each other.
    """

    samples: dict[str, list[Sample]]
    clears: int
    inputs: int


def launches(
    problem: Problem, architectures: Sequence[str], backend: str = "cuda"
) -> dict[str, Sampled]:
    """Every launch of forward and of backward, sampled for each architecture.

    Kernels do not run, so what one leaves to the next is what memory is filled with: zeros. What
    this process used before would be taken for labels and read far outside of any tensor.
    """
    # It builds the emulator, where it is of CUDA.
    from tests.emulator.machine_code import observed, observed_triton, program

    found: dict[str, list[Sample]] = {}

    def observe(architecture: str, code: Program, launch: Launch) -> None:
        found.setdefault(architecture, []).append(sample(code, launch))

    def observe_all(name: str, launch: Launch) -> bool:
        for architecture in architectures:
            observe(architecture, program(architecture, name), launch)
        return True

    def observing() -> AbstractContextManager[None]:
        return (
            observed(observe_all) if backend == "cuda" else observed_triton(architectures, observe)
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same boxes every time: work depends on them
        inputs = problem.make()
    result: dict[str, Sampled] = {}

    def record(direction: str, read: Sequence[Tensor], call: Callable[[], Any]) -> Any:
        found.clear()
        with observing(), profile(activities=[ProfilerActivity.CPU]) as events:
            value = call()
        clears = sum(map(_clears, events.events()))
        size = sum(each.untyped_storage().nbytes() for each in read)
        result[direction] = Sampled(dict(found), clears, size)
        return value

    with zeros_in_new_memory():
        value: Tensor = record("forward", inputs, lambda: problem.ours(*inputs))
        grad = torch.ones_like(value)
        wanted = [inputs[number] for number in problem.differentiable]
        record("backward", [*inputs, grad], lambda: torch.autograd.grad(value, wanted, grad))
    return result


@contextmanager
def zeros_in_new_memory() -> Iterator[None]:
    """Let malloc fill what it hands out; of glibc, and of more than about a kilobyte."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(PERTURB, 0xFF)
    try:
        yield
    finally:
        mallopt(PERTURB, 0)


def _clears(event: Any) -> bool:
    """Whether memory is filled: by the operation, and not by the check of boxes on the CPU."""
    parent = event.cpu_parent.name if event.cpu_parent is not None else ""
    return event.name in ("aten::fill_", "aten::zero_") and parent not in (
        "aten::zero_",
        "aten::sum",
    )


# -- Predicting.


def roof(problem: Problem, direction: str, half: bool, processor: Processor) -> tuple[float, str]:
    """Microseconds that no kernel can beat, and what they go to."""
    device = DEVICES[processor.device]
    forward = direction == "forward"
    cycles = device.multiprocessors * processor.clock * 1e3  # a microsecond, all together
    size = problem.forward_bytes if forward else problem.backward_bytes
    count = problem.forward_instructions if forward else problem.backward_instructions
    # A product forward, two backward.
    products = problem.products * (1 if forward else 2) / 3
    rate = device.tensor * 1e6 / (1 if half else 3)  # float32 as the sum of two numbers of tf32
    seconds = {
        "memory": size / (processor.bandwidth * device.bandwidth * 1e3),
        "instructions": count / LANES / (SCHEDULERS * cycles),
        "exponentials": problem.exponentials / 2 / (16 * cycles),
        "products": products / rate,
        "launches": LAUNCH * (2 if forward and problem.mean else 1),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def predict(
    problem: Problem,
    direction: str,
    half: bool,
    sampled: Sampled,
    architecture: str,
    processor: Processor,
) -> Row:
    """What the samples of a direction come to."""
    samples, clears = sampled.samples[architecture], sampled.clears
    size = problem.forward_bytes if direction == "forward" else problem.backward_bytes
    total, tail, slowest = LAUNCH * clears, 0.0, (0.0, "", "", 0)
    instructions = sectors = 0.0
    for each in samples:
        counts, times = each.counts, each.launch.blocks / each.counts.blocks
        touched = counts.block_sectors + counts.stored
        distinct = counts.loaded + counts.stored
        # Some blocks show what neighbours share, and only all of them what far ones do.
        once = min(counts.loaded, sampled.inputs / 32 / times) + counts.stored
        share = once / touched if touched else 1.0
        timing = simulate(each.program, each.launch, each.traces, processor, share)
        total += LAUNCH + timing.microseconds
        if each.launch.blocks == 1:
            tail += timing.microseconds
        bound = next(iter(timing.busy))
        if timing.busy[bound] < 0.6:
            bound = "latency"
        short = demangled([each.program.name])[each.program.name]
        slowest = max(slowest, (timing.microseconds, short, bound, round(timing.in_flight)))
        instructions += times * LANES * sum(counts.issued.values())
        sectors += times * 32 * distinct
    limit, limit_bound = roof(problem, direction, half, processor)
    return Row(
        microseconds=_round(total),
        share=_round(limit / total),
        bound=slowest[2],
        roof=_round(limit),
        roof_bound=limit_bound,
        launches=len(samples),
        clears=clears,
        instructions=_round(instructions / size),
        sectors=_round(sectors / size),
        widest=max(_widest(each) for each in samples),
        conflict=_round(max(max(each.counts.worst.values(), default=0.0) for each in samples)),
        registers=max(each.program.registers for each in samples),
        warps=min(_warps(each, processor) for each in samples),
        in_flight=slowest[3],
        tail=_round(tail),
        slowest=slowest[1],
    )


def _round(value: float) -> float:
    """Three digits: what is left is noise of the sample."""
    return float(f"{value:.3g}")


def _widest(each: Sample) -> int:
    """Bytes of a lane of the widest load that was executed."""
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return max(
        (
            next((widths[kind] for kind in i.modifiers if kind in widths), 4)
            for i in each.program.instructions
            if i.opcode in ("LDG", "LDGSTS") and each.counts.requests[i.address]
        ),
        default=0,
    )


def _warps(each: Sample, processor: Processor) -> int:
    return resident_blocks(each.program, each.launch, processor) * each.launch.warps


def measure(
    processors: Mapping[str, Processor],
    names: Collection[str] = HOT,
    batch: int = BATCH,
    only: str = "",
    backend: str = "cuda",
) -> Iterator[tuple[str, Case, Row]]:
    """Count and predict, a case and architecture after the other.

    Args:
        processors: a GPU for each architecture.
        names: operations.
        batch: images.
        only: cases whose name has it.
        backend: "cuda", or "triton", which compiles its kernels here.
    """
    seen: dict[tuple, dict] = {}
    for case, problem, setting in cases(names, batch):
        if only not in str(case):
            continue
        key = (case.op, case.shape, setting)
        if key not in seen:
            seen.clear()
            seen[key] = launches(problem, list(processors), backend)
        sampled = seen[key][case.direction]
        half = setting.dtype == torch.float16
        for architecture in sampled.samples:
            processor = processors[architecture]
            row = predict(problem, case.direction, half, sampled, architecture, processor)
            yield architecture, case, row


# -- The baseline.


def read_baseline(backend: str = "cuda") -> dict[str, dict[str, Row]]:
    """The committed rows: ``{architecture: {case: row}}``."""
    if not BASELINES[backend].exists():
        return {}
    return {
        architecture: {name: Row(**row) for name, row in rows.items()}
        for architecture, rows in json.loads(BASELINES[backend].read_text()).items()
    }


def write_baseline(rows: dict[str, dict[str, Row]], backend: str = "cuda") -> None:
    """One line a row, beside those that were not counted this time."""
    every = read_baseline(backend)
    for architecture, each in rows.items():
        every.setdefault(architecture, {}).update(each)
    parts = []
    for architecture, each in sorted(every.items()):
        lines = (f"{json.dumps(n)}: {json.dumps(asdict(r))}" for n, r in each.items())
        parts.append(f"{json.dumps(architecture)}: {{\n" + ",\n".join(lines) + "\n}")
    BASELINES[backend].write_text("{\n" + ",\n".join(parts) + "\n}\n")


COUNTS = ("launches", "clears", "instructions", "sectors", "conflict")
SLACK = 1.05  # another compiler's release moves counts by a little


def worse(now: Row, before: Row) -> list[str]:
    """Counts that are worse than they were."""
    problems = [
        f"{name} {getattr(before, name)} -> {getattr(now, name)}"
        for name in COUNTS
        if getattr(now, name) > SLACK * getattr(before, name)
    ]
    if now.widest < before.widest:
        problems.append(f"widest load {before.widest} -> {now.widest} bytes")
    return problems


# -- Bars that no constant of a GPU moves.

MOST_LAUNCHES = {"forward": 2, "backward": 1}
MOST_CONFLICTS = 2.0
WIDEST = 16
MOST_SECTORS = 1.1  # each byte once, and the pixels' statistics
MOST_TAIL = 2.0  # microseconds of a single block: as long as a launch takes


def broken_bars(case: str, row: Row) -> set[str]:
    """Which of the bars a row does not keep: names of `Row`'s counts.

    Two launches forward and one backward (region_pool has a gradient more, and a launch for it);
    nothing is filled beforehand; no access to shared memory takes more than twice the wavefronts
    that it could; 16-byte loads; each sector once; no kernel of one block that takes longer than
    its launch.
    """
    op, direction = case.split(", ")[0], case.rpartition(", ")[2]
    gradients = 2 if op == "region_pool" and direction == "backward" else 1
    kept = {
        "launches": row.launches <= MOST_LAUNCHES[direction] * gradients,
        "clears": row.clears == 0,
        "conflict": row.conflict <= MOST_CONFLICTS,
        "widest": row.widest >= WIDEST,
        "sectors": row.sectors <= MOST_SECTORS,
        "tail": row.tail <= MOST_TAIL,
    }
    return {name for name, is_kept in kept.items() if not is_kept}


@dataclass(frozen=True)
class Measured:
    """What a GPU took.

    Attributes:
        device: its name; empty where the file does not say.
        results: of the benchmarks, forward with backward; None where the file has none.
        launches: as `tools.gpu_kit.launches` tells of them, or Nsight Compute.
    """

    device: str
    results: Results | None
    launches: list[dict[str, Any]]


LAUNCHES = "launches cuda"  # the kit's step


def read_measured(path: Path) -> Measured:
    """Read a result of the benchmarks, a table of launches, or the kit's file with one.

    Raises:
        ValueError: the file holds none of them.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list):
            return Measured("", None, [dict(launch) for launch in found])
        if "rows" in found:  # of the benchmarks, or what is kept of a visit
            results = Results.read(path)
            steps = found.get("visit", {}).get("tests", {}).get("steps", {})
            device = results.machine.get("device", "")
        else:
            results, steps, device = None, found["steps"], found["subject"]["gpu"]
        return Measured(device, results, steps.get(LAUNCHES, {}).get("data") or [])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no result of `python -m benchmarks`, no table of "
            f"`python -m tools.gpu_kit.launches` and no 4-tests.json of the GPU kit: {error!r}"
        ) from None


def measured_times(results: Results) -> dict[tuple[str, ...], float]:
    """Microseconds of the backend cuda, forward with backward, by case without its direction."""
    names = {(case.op, problem.shape): case.shape for case, problem, _ in cases()}
    return {
        (row.op, names[row.op, row.shape], row.layout, row.dtype): 1e3
        * row.milliseconds["cuda"].median
        for row in results.rows
        if (row.op, row.shape) in names and "cuda" in row.milliseconds
    }


def processors_of(architectures: Sequence[str], measured: str = "") -> dict[str, Processor]:
    """The model's GPU of each architecture; where it is one of these, the one that was measured."""
    chosen = {name: PROCESSORS[name] for name in architectures}
    for device in DEVICES.values():
        if device.name.split()[0] in measured.split() and device.architecture in chosen:
            before = chosen[device.architecture]
            chosen[device.architecture] = replace(before, device=device.name)
    return chosen


HEADER = (
    f"{'case':74}{'us':>8}{'share':>7} {'bound':12}{'roof us':>8} {'of':13}{'launches':>8}"
    f"{'instr/B':>8}{'sect/B':>7}{'load B':>7}{'conflict':>9}{'regs':>5}{'warps':>6}{'KB fly':>7}"
    f"{'tail us':>8}"
)


def render(case: str, row: Row) -> str:
    """A line of the table."""
    counts = f"{row.launches}+{row.clears}" if row.clears else f"{row.launches}"
    return (
        f"{case:74}{row.microseconds:8.1f}{row.share:7.0%} {row.bound:12}{row.roof:8.1f} "
        f"{row.roof_bound:13}{counts:>8}{row.instructions:8.2f}{row.sectors:7.2f}{row.widest:7}"
        f"{row.conflict:9.1f}{row.registers:5}{row.warps:6}{row.in_flight / 1024:7.1f}"
        f"{row.tail:8.1f}"
    )


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", nargs="+", default=list(PROCESSORS), choices=PROCESSORS)
    parser.add_argument("--backend", default="cuda", choices=BASELINES)
    parser.add_argument("--ops", nargs="+", default=list(HOT), choices=list(ops.MODULES))
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images (default {BATCH})")
    parser.add_argument("--update", action="store_true", help="write the committed table anew")
    parser.add_argument("--kept", action="store_true", help="print what is committed instead")
    parser.add_argument(
        "--measured",
        type=Path,
        help="JSON of a run on one of the devices: benchmarks, or a table of launches",
    )
    options = parser.parse_args(arguments)
    measured = read_measured(options.measured) if options.measured else Measured("", None, [])
    processors = processors_of(options.arch, measured.device)
    if options.kept and processors != processors_of(options.arch):
        parser.error(f"--kept has no predictions for {measured.device}: count anew")
    print("PREDICTION from counts, not a measurement.\n")
    for architecture, processor in processors.items():
        print(f"{architecture}: {processor.device}")
    rows: dict[str, dict[str, Row]] = {}
    print(HEADER)
    if options.kept:
        every = (
            (architecture, name, row)
            for architecture, kept in read_baseline(options.backend).items()
            for name, row in kept.items()
            if architecture in options.arch and options.only in name
        )
    else:
        every = (
            (architecture, str(case), row)
            for architecture, case, row in measure(
                processors, options.ops, options.batch, options.only, options.backend
            )
        )
    for architecture, name, row in every:
        rows.setdefault(architecture, {})[name] = row
        print(render(f"{architecture} {name}", row), flush=True)
    if measured.results is not None:
        _print_measured(rows, measured_times(measured.results))
    _print_launches(rows, measured.launches)
    if options.update:
        write_baseline(rows, options.backend)
    return 0


def _print_measured(rows: dict[str, dict[str, Row]], times: dict[tuple[str, ...], float]) -> None:
    """Predicted and measured times side by side, forward with backward."""
    for architecture, each in rows.items():
        for key, microseconds in times.items():
            both = [each.get(", ".join((*key, way))) for way in ("forward", "backward")]
            found = [row for row in both if row is not None]
            if len(found) == 2:
                predicted = math.fsum(row.microseconds for row in found)
                print(
                    f"{architecture} {', '.join(key):64} predicted {predicted:8.1f} us, "
                    f"measured {microseconds:8.1f} us ({predicted / microseconds - 1:+.0%})"
                )


NEAR = 0.25  # the model's goal, either way


def _print_launches(rows: dict[str, dict[str, Row]], launches: Sequence[Mapping[str, Any]]) -> None:
    """Predicted and measured side by side, a line a case, and how many are near."""
    for architecture, each in rows.items():
        beside = compared(launches, {name: asdict(row) for name, row in each.items()})
        off = []
        for row in beside:
            told = []
            for name, digits in (("microseconds", 1), ("instructions", 2), ("bytes", 2)):
                predicted, measured = row[name]
                if measured:
                    far = predicted / measured - 1
                    off += [far] if name == "microseconds" else []
                    told.append(
                        f"{name} {predicted:.{digits}f} / {measured:.{digits}f} ({far:+.0%})"
                    )
            print(f"{architecture} {row['of']:74} {', '.join(told)}")
        if off:
            near = sum(abs(far) <= NEAR for far in off)
            print(f"{architecture}: predicted / measured; {near} of {len(off)} times within 25 %")
