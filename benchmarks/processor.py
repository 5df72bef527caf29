"""One multiprocessor of a GPU, simulated: how long blocks take whose instructions are known.

Warps of the resident blocks issue their instructions in order, each when its operands are there,
its scheduler is free and the unit that executes it is free. Memory answers after its latency, and
after what was asked for before. Nothing is fitted to this project's kernels: the constants are
published, and `benchmarks.published` holds the model to published times.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.devices import DEVICES
from tools.sass.machine import Launch, Step
from tools.sass.program import Instruction, Operand, Program

SCHEDULERS = 4
REGISTERS = 65536
LANES = 32
MOST_ISSUED = 120_000  # instructions that are simulated; what is left is extrapolated


@dataclass(frozen=True)
class Processor:
    """What the model knows of a GPU.

    Attributes:
        device: its public figures.
        clock: of its processors under load, in 10^9 a second.
        shared: bytes of shared memory of a multiprocessor.
        blocks: that a multiprocessor holds at the most.
        cycles: of a scheduler's unit for one warp instruction, by unit.
        tensor: cycles of a scheduler's matrix unit for 1024 multiply-adds of tf32.
        group: the same where four warps or a block multiply together, beside their threads.
        latency: cycles from an instruction to its result, by unit.
        l1: cycles from a load to its value in the first cache.
        l2: the same in the second.
        dram: the same in memory.
        l2_bytes: from the second cache to a multiprocessor in a cycle.
        bandwidth: share of the memory's bandwidth that is reached.
        start: cycles from a block's end until the first instruction of the next in its place.
    """

    device: str
    clock: float
    shared: int
    blocks: int
    cycles: dict[str, float]
    tensor: float
    latency: dict[str, float]
    l1: float
    l2: float
    dram: float
    l2_bytes: float = 64.0
    bandwidth: float = 0.9
    start: float = 400.0
    group: float = 0.0

    @property
    def dram_cycles(self) -> float:
        """Cycles of a multiprocessor's share of the memory for a sector."""
        device = DEVICES[self.device]
        share = self.bandwidth * device.bandwidth / device.multiprocessors / self.clock
        return 32 / share


# Results a cycle and multiprocessor: the table "Throughput of Native Arithmetic Instructions" of
# the CUDA C++ programming guide. Divided by four schedulers, as cycles of a warp.
_CYCLES_80: dict[str, float] = {
    "fma": 2,
    "mad": 2,
    "alu": 2,
    "xu": 8,
    "fp64": 4,
    "uniform": 2,
    "branch": 1,
}
_CYCLES_90: dict[str, float] = {
    "fma": 1,
    "mad": 2,
    "alu": 2,
    "xu": 8,
    "fp64": 2,
    "uniform": 2,
    "branch": 1,
}
_LATENCY: dict[str, float] = {
    "fma": 4,
    "mad": 4,
    "alu": 4,
    "xu": 18,
    "fp64": 8,
    "uniform": 8,
    "branch": 8,
}
_LATENCY |= {"shared": 29, "shuffle": 24, "tensor": 33, "constant": 8, "special": 20}

# The H100's clock is measured (docs/benchmarks.md), the others' are the boost clocks of documents.
PROCESSORS = {
    "sm_80": Processor("A100 80GB SXM", 1.41, 164 << 10, 32, _CYCLES_80, 8, _LATENCY, 38, 262, 560),
    "sm_90": Processor(
        "H100 SXM", 1.98, 228 << 10, 32, _CYCLES_90, 6.4, _LATENCY, 40, 281, 690, group=4
    ),
    "sm_100": Processor(
        "B200 SXM", 1.83, 228 << 10, 32, _CYCLES_90, 6.4, _LATENCY, 40, 295, 860, group=2
    ),
}


# -- What an instruction needs.

_UNITS = {
    "fma": "FFMA FADD FMUL FHADD HADD2 HFMA2 FFMA2 FADD2 FMUL2 HMUL2",
    "mad": "IMAD",
    "alu": "IADD3 IADD VIADD LOP3 SHF SGXT LEA ISETP FSETP HSETP2 SEL FSEL PRMT FMNMX FMNMX3 "
    "VIMNMX VIMNMX3 VIADDMNMX IMNMX MOV IABS PLOP3 P2R R2P F2FP I2FP VOTE CS2R LOP FCHK",
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV MATCH REDUX CREDUX",
    "fp64": "DADD DMUL DFMA DSETP",
    "branch": "BRA BRX BRXU EXIT BSSY BSYNC BREAK CALL RET NOP WARPSYNC JMP "
    "WARPGROUP FENCE SYNCS UTCBAR",
    "tensor": "HMMA",
    "group": "HGMMA",
    "block": "UTCHMMA",
    "shared": "LDS STS ATOMS LDSM STSM",
    "shuffle": "SHFL",
    "global": "LDG LDGSTS STG RED REDG ATOMG",
    "barrier": "BAR",
    "constant": "LDC ULDC LDCU",
    "special": "S2R S2UR R2UR",
}
UNITS = {name: unit for unit, names in _UNITS.items() for name in names.split()}
PACKED = ("FFMA2", "FADD2", "FMUL2")  # two floats of each lane, at the table's results a cycle


def unit_of(instruction: Instruction, architecture: int) -> str:
    """The unit that executes it on an architecture, such as 90."""
    opcode = instruction.opcode
    unit = UNITS.get(opcode) or ("uniform" if opcode.startswith("U") else "alu")
    # An A100 multiplies integers in the unit of its floats (Nsight Compute's guide, pipelines).
    return "fma" if (unit, architecture) == ("mad", 80) else unit


_KEYS = {"R": 0, "UR": 256, "P": 320, "UP": 328}
_COPIES = 336  # stands for the copies to shared memory that are under way
_PRODUCTS = 337  # for products that are made beside the threads


class Need(NamedTuple):
    """What an instruction needs.

    Attributes:
        unit: that executes it.
        reads: registers, as numbers.
        writes: registers.
        load: it loads from global memory.
        times: that it takes its unit's cycles.
    """

    unit: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    load: bool
    times: int


Event = tuple[Need, int, int, bool, int]
"""What a warp executed, the sectors or wavefronts of it, those that are new to its block, whether
any of these comes from memory itself, and the turns of sectors in the first cache's banks."""
Traces = list[list[list[Event]]]
"""By block and warp."""


def need(instruction: Instruction, architecture: int) -> Need:
    """What one instruction needs on an architecture, such as 90."""
    opcode, kinds = instruction.opcode, set(instruction.modifiers)
    packed = opcode in PACKED
    double = packed or opcode in ("DADD", "DMUL", "DFMA", "DSETP")
    words = 4 if "128" in kinds or opcode == "HMMA" else 2 if "64" in kinds or double else 1
    if opcode in ("LDSM", "STSM"):
        words = next((int(kind) for kind in kinds & {"2", "4"}), 1)
    wide = opcode in ("IMAD", "UIMAD") and "WIDE" in kinds
    stores = opcode in ("STG", "STS", "STSM", "RED", "REDG", "LDGSTS")
    reads: set[int] = set()
    writes: set[int] = set()

    def add(where: set[int], operand: Operand, count: int) -> None:
        last = {"R": 255, "UR": 63}.get(operand.kind, 7)
        if operand.kind in _KEYS and operand.index != last:
            where.update(_KEYS[operand.kind] + operand.index + n for n in range(count))

    operands = instruction.operands
    if opcode == "HGMMA":  # of its sums, which the next one takes over, nothing is waited for
        add(reads, operands[1], 4)
        operands = ()
    targets = 0 if stores or opcode in _WITHOUT_RESULT else 1
    if targets and _has_two_results(opcode, operands):
        targets = 2
    for place, operand in enumerate(operands):
        if place < targets:
            add(writes, operand, 2 if wide else words)
        else:
            deep = 2 if wide and place == len(operands) - 1 else words if stores or double else 1
            deep = 1 if packed and not operand.part else deep  # the same number twice
            # The second factor of a matrix product has half as many registers as the others.
            add(reads, operand, (2 if place == 2 else 4) if opcode == "HMMA" else deep)
        if operand.base is not None and operand.base != 255:
            reads.update({operand.base, operand.base + int(operand.wide)})
        if operand.uniform is not None and operand.uniform != 63:
            reads.add(256 + operand.uniform)
    if instruction.predicate != 7:
        reads.add((328 if instruction.uniform_predicate else 320) + instruction.predicate)
    if opcode == "LDGSTS":
        writes.add(_COPIES)
    elif opcode == "DEPBAR" and operands[-1].value == "0x0":  # until none is under way
        reads.add(_COPIES)
    elif opcode in _ASYNCHRONOUS:
        writes.add(_PRODUCTS)
    elif {"DEPBAR", "TRYWAIT"} & kinds and opcode in ("WARPGROUP", "SYNCS"):
        reads.add(_PRODUCTS)
    unit = unit_of(instruction, architecture)
    loads = opcode in ("LDG", "LDGSTS")
    return Need(unit, tuple(sorted(reads)), tuple(sorted(writes)), loads, 2 if packed else 1)


_ASYNCHRONOUS = ("HGMMA", "UTCHMMA")
_WITHOUT_RESULT = (
    *("BRA", "EXIT", "BAR", "BSSY", "BSYNC", "BREAK", "RET", "CALL", "BRX", "BRXU"),
    *("WARPGROUP", "FENCE", "HGMMA", "UTCHMMA", "UTCBAR", "STTM"),
)


def _has_two_results(opcode: str, operands: tuple[Operand, ...]) -> bool:
    """Two predicates, or a predicate beside a number."""
    if opcode.endswith("SETP") or opcode in ("PLOP3", "UPLOP3", "SHFL"):
        return True
    predicates = [each.kind in ("P", "UP") for each in operands[:2]]
    carries = opcode.lstrip("U") in ("IADD3", "LEA")
    return len(predicates) > 1 and (predicates[0] or (predicates[1] and carries))


# -- Residence.


def resident_blocks(program: Program, launch: Launch, processor: Processor) -> int:
    """Blocks that a multiprocessor holds at once."""
    a_warp = -(-max(program.registers, 24) // 8) * 8 * LANES
    by_registers = REGISTERS // SCHEDULERS // a_warp * SCHEDULERS // launch.warps
    shared = program.shared + launch.shared
    by_shared = processor.shared // (shared + 1024) if shared else processor.blocks
    by_warps = DEVICES[processor.device].warps // launch.warps
    return max(1, min(by_registers, by_shared, by_warps, processor.blocks))


# -- The simulation.


@dataclass(frozen=True)
class Timing:
    """A kernel's predicted time.

    Attributes:
        microseconds: of the launch.
        busy: share of it that each unit was at work, the busiest first.
        in_flight: bytes of loads under way on a multiprocessor, in the mean.
        resident: blocks at once on a multiprocessor.
    """

    microseconds: float
    busy: dict[str, float]
    in_flight: float
    resident: int


def warp_traces(program: Program, steps: Sequence[Step], blocks: int, most: int = 16) -> Traces:
    """What each warp of some of the executed blocks did.

    Args:
        program: the kernel.
        steps: that the machine kept.
        blocks: how many were executed.
        most: blocks to take, spread over them.
    """
    needs = {each.address: need(each, program.architecture) for each in program.instructions}
    each_block = len(steps[0].warps) // blocks
    chosen = [n * blocks // min(most, blocks) for n in range(min(most, blocks))]
    places = [block * each_block + warp for block in chosen for warp in range(each_block)]
    warps: list[list[Event]] = [[] for _ in places]
    for step in steps:
        executed = needs[step.address]
        active = step.warps[places].tolist()
        if step.cost is None:
            event = (executed, 0, 0, False, 0)
            for warp, runs in zip(warps, active, strict=True):
                if runs:
                    warp.append(event)
            continue
        cost = step.cost[places].tolist()
        fresh = cost if step.fresh is None else step.fresh[places].tolist()
        far = [0] * len(places) if step.far is None else step.far[places].tolist()
        turns = cost if step.turns is None else step.turns[places].tolist()
        for n, warp in enumerate(warps):
            if active[n]:
                warp.append((executed, cost[n], fresh[n], far[n] > 0, turns[n]))
    return [warps[n : n + each_block] for n in range(0, len(warps), each_block)]


def simulate(
    program: Program,
    launch: Launch,
    traces: Traces,
    processor: Processor,
    dram_share: float = 1.0,
    blocks: int | None = None,
) -> Timing:
    """Predict a launch.

    Args:
        program: the kernel.
        launch: its configuration.
        traces: of some typical blocks, which are repeated.
        processor: the GPU.
        dram_share: of the sectors that a block touches first, those that come from memory or go
            there; the others are in the second cache.
        blocks: of the launch, where it is larger than the traced one.
    """
    resident = resident_blocks(program, launch, processor)
    count = launch.blocks if blocks is None else blocks
    each_processor = -(-count // DEVICES[processor.device].multiprocessors)
    issued = sum(len(warp) for block in traces for warp in block) / len(traces)
    simulated = max(min(int(MOST_ISSUED / max(issued, 1)), 4 * resident), min(resident, 2))
    simulated = min(each_processor, max(simulated, 1))
    run = _Simulation(processor, traces, min(resident, simulated), simulated, dram_share)
    ends = sorted(run.execute())
    total = ends[-1]
    if each_processor > simulated:
        first = min(resident, simulated)
        rest = each_processor - simulated
        if simulated > first:
            total += rest * (ends[-1] - ends[first - 1]) / (simulated - first)
        else:
            total += rest * ends[-1] / simulated
    busy = {name: time / ends[-1] for name, time in run.busy.items()}
    return Timing(
        total / processor.clock / 1e3,
        dict(sorted(busy.items(), key=lambda item: -item[1])),
        run.in_flight / ends[-1],
        resident,
    )


class _Simulation:
    def __init__(
        self,
        processor: Processor,
        traces: Traces,
        slots: int,
        blocks: int,
        dram_share: float,
    ) -> None:
        self.processor, self.traces = processor, traces
        self.slots, self.blocks, self.dram_share = slots, blocks, dram_share
        self.busy: dict[str, float] = defaultdict(float)
        self.in_flight = 0.0

    def execute(self) -> list[float]:
        """Run all blocks; when each ended."""
        processor, dram_share = self.processor, self.dram_share
        dram_cycles = processor.dram_cycles
        scheduler_free = [0.0] * SCHEDULERS
        unit_free: dict[tuple[str, int], float] = defaultdict(float)
        lsu_free = l2_free = dram_free = 0.0
        heap: list[tuple[float, int, int]] = []
        warps: dict[int, list] = {}
        waiting: dict[int, list[int]] = defaultdict(list)
        alive: dict[int, int] = {}
        ends: list[float] = []
        order = number = started = 0

        def start(at: float) -> None:
            nonlocal number, order, started
            if started == self.blocks:
                return
            block = self.traces[started % len(self.traces)]
            alive[started] = len(block)
            for trace in block:
                # trace, place, earliest next issue, ready times, block, scheduler
                warps[number] = [trace, 0, at, {}, started, number % SCHEDULERS]
                heapq.heappush(heap, (at, order, number))
                number, order = number + 1, order + 1
            started += 1

        def finish(block: int, at: float) -> None:
            if alive[block] == 0:
                ends.append(at)
                start(at + processor.start)

        for _ in range(self.slots):
            start(0.0)
        while heap:
            popped, _, name = heapq.heappop(heap)
            warp = warps[name]
            trace, place, at, ready, block, scheduler = warp
            if place == len(trace):
                alive[block] -= 1
                del warps[name]
                if waiting[block] and len(waiting[block]) == alive[block]:
                    for other in waiting.pop(block):
                        warps[other][2] = max(warps[other][2], popped)
                        heapq.heappush(heap, (warps[other][2], order, other))
                        order += 1
                finish(block, max(popped, at))
                continue
            (unit, reads, writes, load, times), cost, fresh, far, turns = trace[place]
            for register in reads:
                if register in ready and ready[register] > at:
                    at = ready[register]
            at = max(at, scheduler_free[scheduler])
            if unit in processor.cycles:
                at = max(at, unit_free[unit, scheduler])
            elif unit == "tensor":
                at = max(at, unit_free["tensor", scheduler])
            elif unit in ("group", "block"):  # they wait in a queue
                at = max(at, unit_free["tensor", scheduler] - 64)
            elif unit in ("shared", "shuffle", "global"):
                # Some accesses wait in a queue; a full one holds the warp back.
                at = max(at, lsu_free - 64)
            if at > popped:
                heapq.heappush(heap, (at, order, name))
                order += 1
                continue
            scheduler_free[scheduler] = at + 1
            self.busy["issue"] += 1 / SCHEDULERS
            warp[1], warp[2] = place + 1, at + 1
            done = at + processor.latency.get(unit, 8)
            if unit in processor.cycles:
                cycles = times * processor.cycles[unit]
                unit_free[unit, scheduler] = at + cycles
                self.busy[unit] += cycles / SCHEDULERS
            elif unit == "tensor":
                cycles = processor.tensor
                unit_free["tensor", scheduler] = at + cycles
                self.busy["tensor"] += cycles / SCHEDULERS
            elif unit in ("group", "block"):  # a block's have the units of all schedulers
                shared_by = SCHEDULERS if unit == "block" else 1
                cycles = cost * processor.group / shared_by
                begin = max(at, unit_free["tensor", scheduler])
                unit_free["tensor", scheduler] = begin + cycles
                self.busy["tensor"] += cycles * shared_by / SCHEDULERS
                done = begin + cycles + processor.latency["tensor"]
            elif unit in ("shared", "shuffle"):
                begin = max(at, lsu_free)
                lsu_free = begin + max(cost, 1)
                self.busy["shared"] += max(cost, 1)
                done = lsu_free + processor.latency[unit] - 1
            elif unit == "global" and cost:
                begin = max(at, lsu_free)
                taken = max(1, cost / 4, turns)
                lsu_free = begin + taken
                self.busy["shared"] += taken
                done = lsu_free + processor.l1
                if fresh:
                    l2_free = max(l2_free, lsu_free) + fresh * 32 / processor.l2_bytes
                    self.busy["l2"] += fresh * 32 / processor.l2_bytes
                    done = l2_free + processor.l2
                    moved = fresh * dram_share
                    if moved:
                        dram_free = max(dram_free, lsu_free) + moved * dram_cycles
                        self.busy["memory"] += moved * dram_cycles
                        if far and dram_share > 0.5:
                            done = max(done, dram_free + processor.dram)
                        else:
                            done = max(done, dram_free + processor.l2)
                if load:
                    self.in_flight += cost * 32 * (done - at)
            elif unit == "barrier":
                waiting[block].append(name)
                if len(waiting[block]) < alive[block]:
                    continue
                for other in waiting.pop(block):
                    warps[other][2] = at + 20
                    heapq.heappush(heap, (at + 20, order, other))
                    order += 1
                continue
            for register in writes:
                ready[register] = done
            heapq.heappush(heap, (at + 1, order, name))
            order += 1
        return ends
