"""Executes machine code of GPUs: all threads of some blocks at once, in NumPy.

A launch runs on the memory of this process: its pointers are host pointers. Threads of a warp that
diverge are executed apart and meet again where the code says so (BSSY, BSYNC), as on hardware, so
what is counted is what a GPU would issue. Arithmetic is the hardware's where that is defined (IEEE,
fused multiply-add in double and rounded once more); functions of the special function unit are
NumPy's, which differ in the last bits.
"""

from __future__ import annotations

import ctypes
import operator
import re
import struct
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from tools.sass.program import BYTES, CONSTANTS, SHARED_START, Instruction, Operand, Program

LANES = 32
SECTOR = 32  # bytes that memory moves at once
BANKS = 32  # of shared memory, 4 bytes wide

Array = np.ndarray[Any, Any]
U32, U64, F32, F64 = np.uint32, np.uint64, np.float32, np.float64


class UnknownInstructionError(NotImplementedError):
    """An instruction that this machine does not know."""


@dataclass(frozen=True)
class Launch:
    """What a kernel is started with.

    Attributes:
        grid: blocks in x, y and z.
        block: threads in x, y and z.
        arguments: the bytes of all parameters, in their places.
        shared: bytes of shared memory a block beside the kernel's own.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: bytes
    shared: int = 0

    @property
    def blocks(self) -> int:
        """How many."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.threads // LANES)


@dataclass
class Counts:
    """What the executed blocks did.

    Attributes:
        blocks: how many were executed.
        issued: warp instructions by address: a warp counts where any of its lanes is active.
        lanes: the lanes that were active in them.
        sectors: 32-byte sectors of global memory that warps asked for, by address of instruction.
        requests: warp accesses to global memory that did, by address.
        requested: bytes that their lanes asked for, by address.
        wavefronts: of shared memory, by address: 128 bytes each at the most.
        shared_accesses: warp accesses to it, by address.
        worst: wavefronts over the least that the access could take, the greatest, by address.
        block_sectors: sectors loaded, counted once for each block that reads them.
        loaded: distinct sectors that were loaded.
        stored: distinct sectors that were stored.
        store_sectors: sectors of all stores of warps.
    """

    blocks: int = 0
    issued: Counter[int] = field(default_factory=Counter)
    lanes: Counter[int] = field(default_factory=Counter)
    sectors: Counter[int] = field(default_factory=Counter)
    requests: Counter[int] = field(default_factory=Counter)
    requested: Counter[int] = field(default_factory=Counter)
    wavefronts: Counter[int] = field(default_factory=Counter)
    shared_accesses: Counter[int] = field(default_factory=Counter)
    worst: dict[int, float] = field(default_factory=dict)
    block_sectors: int = 0
    loaded: int = 0
    stored: int = 0
    store_sectors: int = 0


@dataclass(frozen=True)
class Step:
    """One instruction as some warps executed it.

    Attributes:
        address: of the instruction.
        warps: which of the executed ones.
        cost: sectors or wavefronts of each of them, for an access to memory.
        fresh: sectors that their block had not touched before.
        far: those of them that no 64-byte line touched before brought along.
        turns: that an access to global memory takes in the banks of the first cache.
    """

    address: int
    warps: Array
    cost: Array | None
    fresh: Array | None
    far: Array | None
    turns: Array | None = None


class Machine:
    """Runs launches of one program.

    Args:
        program: the kernel.
        dry: leave global memory as it is: only count.
        at_once: threads that are executed together.
    """

    def __init__(self, program: Program, dry: bool = False, at_once: int = 4096) -> None:
        self.program = program
        self.dry = dry
        self.at_once = at_once
        self.index = {each.address: i for i, each in enumerate(program.instructions)}
        self.maps = _Memory()

    def run(
        self, launch: Launch, blocks: Iterable[int] | None = None, trace: bool = False
    ) -> tuple[Counts, list[Step]]:
        """Execute blocks of a launch.

        Args:
            launch: what to start it with.
            blocks: their numbers; all by default.
            trace: keep the steps; all blocks are then executed together.

        Returns:
            What was counted, and the steps.

        Raises:
            UnknownInstructionError: the code has an instruction that is not known here.
            RuntimeError: the code reads outside of this process's memory, or waits forever.
        """
        numbers = np.array(list(range(launch.blocks) if blocks is None else blocks))
        counts = Counts(blocks=len(numbers))
        loaded: list[Array] = []
        stored: list[Array] = []
        steps: list[Step] | None = [] if trace else None
        size = len(numbers) if trace else max(1, self.at_once // (LANES * launch.warps))
        with np.errstate(all="ignore"):
            for first in range(0, len(numbers), size):
                run = _Run(self, launch, numbers[first : first + size], counts, steps)
                run.execute()
                if run.loaded:
                    block, sector = np.divmod(np.unique(np.concatenate(run.loaded)), 1 << 43)
                    counts.block_sectors += len(block)
                    loaded.append(np.unique(sector))
                if run.stored:
                    stored.append(np.unique(np.concatenate(run.stored)))
        counts.loaded = len(np.unique(np.concatenate(loaded))) if loaded else 0
        counts.stored = len(np.unique(np.concatenate(stored))) if stored else 0
        return counts, steps or []


class _Memory:
    """This process's memory as arrays."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.starts: list[int] = []
        self.views: dict[int, Array] = {}
        self.refresh()

    def refresh(self) -> None:
        self.starts, self.ends = [], []
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if "r" not in rights or start >= 1 << 47:
                continue
            if self.ends and self.ends[-1] == start:
                self.ends[-1] = end
            else:
                self.starts.append(start)
                self.ends.append(end)

    def check(self, low: int, high: int) -> None:
        for attempt in range(2):
            at = bisect(self.starts, low) - 1
            if at >= 0 and high < self.ends[at]:
                return
            at_high = bisect(self.starts, high) - 1
            inside = at >= 0 and low < self.ends[at] and at_high >= 0 and high < self.ends[at_high]
            if inside:
                return
            if attempt == 0:
                self.refresh()
        raise RuntimeError(f"the code accesses {low:#x} to {high:#x}, which is no memory here")

    def view(self, width: int) -> Array:
        """All of it, as numbers of that many bytes; from address 4096 on."""
        if width not in self.views:
            kind = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}[width]
            whole = (kind * ((1 << 47) // width - 4096 // width)).from_address(4096)
            self.views[width] = np.ctypeslib.as_array(whole)
        return self.views[width]


@dataclass
class Copy:
    """Words on their way to shared memory: there when their thread has waited for them."""

    to: Array  # by thread, in words
    values: Array  # by word and thread
    threads: Array  # those whose words are not there yet
    groups: Array  # by thread, how many ended since, its own included


class _Run:
    """Some blocks of a launch, from their first instruction to their end."""

    def __init__(
        self,
        machine: Machine,
        launch: Launch,
        blocks: Array,
        counts: Counts,
        steps: list[Step] | None,
    ) -> None:
        self.machine, self.launch, self.counts, self.steps = machine, launch, counts, steps
        self.program = machine.program
        generation = self.program.architecture // 10
        self.warps = launch.warps * len(blocks)
        self.threads = self.warps * LANES
        self.block_of = np.repeat(np.arange(len(blocks)), launch.warps * LANES)
        self.R = np.zeros((256, self.threads), U32)
        self.UR = np.zeros((64, self.threads), U32)
        self.P = np.zeros((8, self.threads), bool)
        self.UP = np.zeros((8, self.threads), bool)
        self.P[7] = self.UP[7] = True
        thread = np.tile(np.arange(launch.warps * LANES), len(blocks))
        number = np.repeat(blocks, launch.warps * LANES)
        x, y, _ = launch.block
        gx, gy, _ = launch.grid
        self.special = {
            "SR_TID.X": thread % x,
            "SR_TID.Y": thread // x % y,
            "SR_TID.Z": thread // x // y,
            "SR_CTAID.X": number % gx,
            "SR_CTAID.Y": number // gx % gy,
            "SR_CTAID.Z": number // gx // gy,
            "SR_LANEID": thread % LANES,
            "SR_CgaCtaId": np.zeros_like(thread),
            "SR_SWINHI": np.zeros_like(thread),
            "SR_LTMASK": (np.uint64(1) << (thread % LANES).astype(U64)) - np.uint64(1),
            "SR_EQMASK": np.uint64(1) << (thread % LANES).astype(U64),
        }
        block_at, grid_at, arguments_at = CONSTANTS[generation]
        bank = bytearray(arguments_at + len(launch.arguments) + 64)
        struct.pack_into("<3I", bank, block_at, *launch.block)
        struct.pack_into("<3I", bank, grid_at, *launch.grid)
        bank[arguments_at : arguments_at + len(launch.arguments)] = launch.arguments
        self.constants = dict(self.program.constants) | {0: bytes(bank)}
        self.shared_size = SHARED_START[generation] + self.program.shared + launch.shared
        self.shared_size = -(-self.shared_size // 16) * 16
        shared = np.zeros(max(self.shared_size, 16) * len(blocks), np.uint8)
        shared[:] = 0xFF
        self.shared = {1: shared, 2: shared.view(np.uint16), 4: shared.view(U32)}
        self.stack = np.zeros((256, self.threads), U32)
        self.alive = thread < launch.threads
        self.pending: dict[int, Array] = {0: self.alive.copy()}
        self.at_barrier = np.zeros(self.threads, bool)
        self.resume = np.zeros(self.threads, np.int64)  # where to go on after it
        self.expected = np.zeros((16, self.threads), bool)
        self.target = np.zeros((16, self.threads), np.int64)
        self.arrived = np.zeros((16, self.threads), bool)
        self.loaded: list[Array] = []
        self.stored: list[Array] = []
        self.copies: list[Copy] = []  # to shared memory, under way
        self.seen: set[int] = set()  # sectors by block, if steps are kept
        self.seen_lines: set[int] = set()  # of 64 bytes
        self.mask: Array = self.alive  # threads that run
        self.full = False  # all of them do
        self.code = [self.compile(each) for each in self.program.instructions]

    # -- The order of execution.

    def execute(self) -> None:
        """Run all threads to their end, those that are furthest behind first."""
        instructions, counts = self.program.instructions, self.counts
        while self.pending:
            address = min(self.pending)
            self.enter(self.pending.pop(address))
            at = self.machine.index[address]
            other = min(self.pending, default=1 << 60)
            while True:
                instruction = instructions[at]
                if instruction.address == other:
                    self.enter(self.mask | self.pending.pop(other))
                    other = min(self.pending, default=1 << 60)
                elif instruction.address > other:
                    self.wait_at(instruction.address, self.mask)
                    break
                counts.issued[instruction.address] += self.active_warps
                counts.lanes[instruction.address] += self.active_lanes
                self.cost: Array | None = None
                self.fresh: Array | None = None
                self.far: Array | None = None
                self.turns: Array | None = None
                warps = self.warp_mask
                goes_on = self.code[at]()
                if self.steps is not None:
                    step = Step(
                        instruction.address, warps, self.cost, self.fresh, self.far, self.turns
                    )
                    self.steps.append(step)
                if goes_on is False:
                    break
                other = min(self.pending, default=1 << 60)
                at += 1
        if self.alive.any():
            raise RuntimeError(f"{self.program.name}: some threads wait forever")

    def enter(self, mask: Array) -> None:
        """Let these threads run."""
        self.mask = mask
        self.active_lanes = int(mask.sum())
        self.full = self.active_lanes == self.threads
        self.warp_mask = mask.reshape(-1, LANES).any(1)
        self.active_warps = int(self.warp_mask.sum())

    def wait_at(self, address: int, mask: Array) -> None:
        """These threads go on there, later."""
        if mask.any():
            before = self.pending.get(address)
            self.pending[address] = mask.copy() if before is None else before | mask

    def leave(self, mask: Array) -> bool:
        """These threads stop running here; whether any goes on."""
        rest = self.mask & ~mask
        self.enter(rest)
        return self.active_lanes > 0

    def release(self, number: int) -> None:
        """Threads whose whole warp has arrived go on."""
        missing = self.expected[number] & self.alive & ~self.arrived[number]
        complete = ~missing.reshape(-1, LANES).any(1)
        going = self.arrived[number] & np.repeat(complete, LANES)
        if going.any():
            self.arrived[number] &= ~going
            for target in np.unique(self.target[number][going]):
                self.wait_at(int(target), going & (self.target[number] == target))

    def release_blocks(self) -> None:
        """Threads whose whole block stands at its barrier go on."""
        missing = (self.alive & ~self.at_barrier).reshape(-1, self.launch.warps * LANES).any(1)
        going = self.at_barrier & np.repeat(~missing, self.launch.warps * LANES)
        if going.any():
            self.at_barrier &= ~going
            for address in np.unique(self.resume[going]):
                self.wait_at(int(address), going & (self.resume == address))

    # -- Operands.

    def guard(self, instruction: Instruction) -> Array | None:
        """Threads that execute it; None for all threads there are."""
        if instruction.predicate == 7 and not instruction.negated:
            return None if self.full else self.mask
        bank = self.UP if instruction.uniform_predicate else self.P
        predicate = bank[instruction.predicate]
        predicate = ~predicate if instruction.negated else predicate
        return predicate if self.full else predicate & self.mask

    def constant(self, operand: Operand, words: int = 1) -> list[Any]:
        """Words of a constant bank."""
        bank = self.constants.get(operand.index, b"")
        if operand.base is None and operand.uniform is None:
            # What lies behind the parameters is read and not used.
            found = bank[operand.offset : operand.offset + 4 * words].ljust(4 * words, b"\0")
            return [U32(each) for each in struct.unpack(f"<{words}I", found)]
        at = np.full(self.threads, operand.offset, np.int64)
        if operand.base is not None:
            at = at + self.R[operand.base]
        if operand.uniform is not None:
            at = at + self.UR[operand.uniform]
        table = np.frombuffer(bank.ljust(-(-len(bank) // 4) * 4, b"\0"), U32)
        return [table[np.clip(at // 4 + i, 0, len(table) - 1)] for i in range(words)]

    def u(self, operand: Operand) -> Any:
        """A 32-bit integer."""
        if operand.kind == "R":
            value = self.R[operand.index]
        elif operand.kind == "UR":
            value = self.UR[operand.index]
        elif operand.kind == "c":
            value = self.constant(operand)[0]
        elif operand.kind == "SR":
            return U32(0) if operand.value == "SRZ" else self.special[operand.value].astype(U32)
        else:
            return _immediate(operand.value)
        if operand.inverted:
            value = ~value
        return U32(0) - value if operand.negative else value

    def f(self, operand: Operand) -> Any:
        """A float."""
        if operand.kind == "imm":
            value = _float_immediate(operand.value)
        else:
            raw = self.u(
                Operand(
                    operand.kind,
                    operand.index,
                    operand.value,
                    operand.offset,
                    operand.base,
                    operand.uniform,
                )
            )
            value = raw.view(F32) if isinstance(raw, np.ndarray) else np.asarray(raw).view(F32)[()]
        value = np.abs(value) if operand.absolute else value
        return -value if operand.negative else value

    def pair(self, operand: Operand) -> Any:
        """A 64-bit integer."""
        if operand.kind in ("R", "UR"):
            if operand.index == (255 if operand.kind == "R" else 63):
                return U64(0)
            bank = self.R if operand.kind == "R" else self.UR
            low, high = bank[operand.index].astype(U64), bank[operand.index + 1].astype(U64)
        elif operand.kind == "c":
            low, high = (np.asarray(each).astype(U64) for each in self.constant(operand, 2))
        else:
            return U64(int(operand.value, 16) & 0xFFFFFFFFFFFFFFFF)
        return low | high << U64(32)

    def d(self, operand: Operand) -> Any:
        """A double; of an immediate only the high word is there."""
        if operand.kind == "imm":
            value = F64(_double_immediate(operand.value))
        else:
            plain = Operand(operand.kind, operand.index, operand.value, operand.offset)
            value = np.asarray(self.pair(plain)).view(F64)
        value = np.abs(value) if operand.absolute else value
        return -value if operand.negative else value

    def p(self, operand: Operand) -> Array:
        """A predicate."""
        value = (self.UP if operand.kind == "UP" else self.P)[operand.index]
        return ~value if operand.inverted else value

    def set_u(self, operand: Operand, value: Any, where: Array | None, high: int = 0) -> None:
        bank, last = (self.UR, 63) if operand.kind == "UR" else (self.R, 255)
        if operand.index == last:
            return
        if where is None:
            bank[operand.index + high] = value
        else:
            np.copyto(bank[operand.index + high], value, where=where, casting="unsafe")

    def set_f(self, operand: Operand, value: Any, where: Array | None) -> None:
        self.set_u(operand, np.asarray(value, F32).view(U32), where)

    def set_pair(self, operand: Operand, value: Any, where: Array | None) -> None:
        value = np.asarray(value)
        value = value.view(U64) if value.dtype == F64 else value.astype(U64)
        self.set_u(operand, (value & U64(0xFFFFFFFF)).astype(U32), where)
        self.set_u(operand, (value >> U64(32)).astype(U32), where, 1)

    def set_p(self, operand: Operand, value: Any, where: Array | None) -> None:
        if operand.index == 7:
            return
        bank = self.UP if operand.kind == "UP" else self.P
        if where is None:
            bank[operand.index] = value
        else:
            np.copyto(bank[operand.index], value, where=where)

    # -- Instructions.

    def compile(self, instruction: Instruction) -> Callable[[], bool | None]:
        """What executes an instruction; its result False ends the run of its threads."""
        opcode = instruction.opcode
        name = f"op_{opcode.lower()}"
        if not hasattr(self, name) and opcode.startswith("U"):
            name = f"op_{opcode[1:].lower()}"
        execute = getattr(self, name, None)
        if execute is None:

            def unknown() -> bool:
                raise UnknownInstructionError(f"{self.program.name}: {instruction.text}")

            return unknown
        return lambda: execute(instruction, self.guard(instruction))

    def op_nop(self, i: Instruction, where: Array | None) -> None:
        pass

    op_warpsync = op_endcollective = op_yield = op_membar = op_nop
    op_errbar = op_cctl = op_acqbulk = op_fence = op_warpgroup = op_nop

    def op_mov(self, i: Instruction, where: Array | None) -> None:
        self.set_u(i.operands[0], self.u(i.operands[1]), where)

    op_s2r = op_s2ur = op_mov

    def op_r2ur(self, i: Instruction, where: Array | None) -> None:
        self.set_u(i.operands[0], self.u(i.operands[-1]), where)

    def op_cs2r(self, i: Instruction, where: Array | None) -> None:
        self.set_u(i.operands[0], self.u(i.operands[1]), where)
        if "32" not in i.modifiers:
            self.set_u(i.operands[0], U32(0), where, 1)

    def op_ldc(self, i: Instruction, where: Array | None) -> None:
        words = 2 if "64" in i.modifiers else 4 if "128" in i.modifiers else 1
        values = self.constant(i.operands[1], words)
        part = next((kind for kind in ("U8", "S8", "U16", "S16") if kind in i.modifiers), None)
        if part is not None:
            operand = i.operands[1]
            word = self.constant(_moved(operand, operand.offset // 4 * 4))[0]
            bits = 8 if "8" in part else 16
            value = word >> U32(operand.offset % 4 * 8) & U32((1 << bits) - 1)
            if part.startswith("S"):
                value = (value ^ U32(1 << bits - 1)) - U32(1 << bits - 1)
            values = [value]
        for high, value in enumerate(values):
            self.set_u(i.operands[0], value, where, high)

    op_ldcu = op_uldc = op_ldc

    def op_iadd3(self, i: Instruction, where: Array | None) -> None:
        target, *rest = i.operands
        carries = []
        while rest[0].kind in ("P", "UP"):
            carries.append(rest.pop(0))
        extended = "X" in i.modifiers
        total = U64(0)
        for operand in rest[:3]:
            if operand.negative and not extended:
                plain = Operand(**(vars(operand) | {"negative": False}))
                value = (U64(1) << U64(32)) - np.asarray(self.u(plain)).astype(U64)
                # Nothing taken from nothing borrows nothing, but for a carry it must not count.
                if operand.index == 255 and operand.kind == "R":
                    value = U64(0)
            else:
                value = np.asarray(self.u(operand)).astype(U64)
            total = total + value
        if extended:
            for operand in rest[3:]:
                total = total + self.p(operand).astype(U64)
        carry = total >> U64(32)
        for number, operand in enumerate(carries):
            self.set_p(operand, carry > U64(number), where)
        self.set_u(target, (total & U64(0xFFFFFFFF)).astype(U32), where)

    op_uiadd3 = op_iadd3

    def op_iadd(self, i: Instruction, where: Array | None) -> None:
        if "64" in i.modifiers:
            first, second = (self.signed_pair(each) for each in i.operands[1:3])
            self.set_pair(i.operands[0], first + second, where)
        else:
            self.set_u(i.operands[0], self.u(i.operands[1]) + self.u(i.operands[2]), where)

    op_viadd = op_iadd

    def signed_pair(self, operand: Operand) -> Any:
        value = self.pair(operand)
        return U64(0) - value if operand.negative else value

    def op_imad(self, i: Instruction, where: Array | None) -> None:
        kinds, (target, *sources) = i.modifiers, i.operands
        if sources[0].kind in ("P", "UP"):
            raise UnknownInstructionError(i.text)
        if "WIDE" in kinds:
            first, second = (self.extended(each, "U32" in kinds) for each in sources[:2])
            self.set_pair(target, first * second + self.pair(sources[2]), where)
        elif "HI" in kinds:
            first, second = (self.extended(each, "U32" in kinds) for each in sources[:2])
            self.set_u(target, _high(first * second + self.pair(sources[2])), where)
        else:
            total = self.u(sources[0]) * self.u(sources[1]) + self.u(sources[2])
            if "X" in kinds:
                total = total + self.p(sources[3]).astype(U32)
            self.set_u(target, total, where)

    op_uimad = op_imad

    def extended(self, operand: Operand, unsigned: bool) -> Any:
        value = np.asarray(self.u(operand))
        return value.astype(U64) if unsigned else value.view(np.int32).astype(np.int64).view(U64)

    def op_lea(self, i: Instruction, where: Array | None) -> None:
        kinds, (target, *rest) = i.modifiers, i.operands
        carry = rest.pop(0) if rest[0].kind in ("P", "UP") else None
        low, base, *more = rest
        if "HI" in kinds:
            carry_in = more.pop() if "X" in kinds and more[-1].kind in ("P", "UP") else None
            shift = U64(int(more[-1].value, 16))
            if "SX32" in kinds:
                whole = self.extended(low, False)
            else:
                high = np.asarray(self.u(more[0])).astype(U64)
                whole = np.asarray(self.u(low)).astype(U64) | high << U64(32)
            shifted = _high(whole << shift).astype(U64)
            if carry_in is not None:
                shifted = shifted + self.p(carry_in).astype(U64)
        else:
            shifted = np.asarray(self.u(low) << U32(int(more[-1].value, 16))).astype(U64)
        total = shifted + np.asarray(self.u(base)).astype(U64)
        if carry is not None:
            self.set_p(carry, total >> U64(32) > U64(0), where)
        self.set_u(target, (total & U64(0xFFFFFFFF)).astype(U32), where)

    op_ulea = op_lea

    def op_shf(self, i: Instruction, where: Array | None) -> None:
        kinds, (target, low, count, high) = i.modifiers, i.operands
        whole = np.asarray(self.u(low)).astype(U64) | np.asarray(self.u(high)).astype(U64) << U64(
            32
        )
        by = np.asarray(self.u(count)).astype(U64)
        by = by & U64(31 if "W" in kinds and "U64" not in kinds else 0xFFFFFFFF)
        wide = "U64" in kinds or "S64" in kinds
        if "L" in kinds:
            by = np.minimum(by, U64(63))
            if "HI" in kinds:
                value = _high(whole << by)
            else:
                value = np.where(by > U64(31), U64(0), (whole << by) & U64(0xFFFFFFFF))
        elif "HI" in kinds and not wide:
            upper = np.asarray(self.u(high))
            by = np.minimum(by, U64(31 if "S32" in kinds else 63)).astype(U32)
            if "S32" in kinds:
                value = (upper.view(np.int32) >> by.view(np.int32)).view(U32)
            else:
                value = np.where(by > U32(31), U32(0), upper >> np.minimum(by, U32(31)))
        elif "HI" in kinds:
            signed = whole.view(np.int64) if "S64" in kinds else whole
            value = _high((signed >> np.minimum(by, U64(63)).astype(signed.dtype)).view(U64))
        else:
            signed = whole.view(np.int64) if "S64" in kinds else whole
            shifted = (signed >> np.minimum(by, U64(63)).astype(signed.dtype)).view(U64)
            value = shifted & U64(0xFFFFFFFF)
        self.set_u(target, np.asarray(value).astype(U32), where)

    op_ushf = op_shf

    def op_sgxt(self, i: Instruction, where: Array | None) -> None:
        """So many low bits, with the sign of the highest or, U32, without."""
        target, source, bits = i.operands
        if set(i.modifiers) - {"U32"}:
            raise UnknownInstructionError(i.text)
        up = U32(32) - np.minimum(np.asarray(self.u(bits)), U32(32))
        whole = np.asarray(self.u(source)).astype(U64) << up.astype(U64)
        moved = np.asarray(whole & U64(0xFFFFFFFF)).astype(U32)
        if "U32" not in i.modifiers:
            moved = moved.view(np.int32)
        # Numbers of 64 bits, as there may be 32 places to shift.
        value = moved.astype(np.int64) >> up.astype(np.int64)
        self.set_u(target, (value & 0xFFFFFFFF).astype(U32), where)

    op_usgxt = op_sgxt

    def op_lop3(self, i: Instruction, where: Array | None) -> None:
        target, *rest = i.operands
        predicate = None
        if target.kind in ("P", "UP"):
            predicate, target = target, rest.pop(0)
        a, b, c = (self.u(each) for each in rest[:3])
        value = _lookup(int(rest[3].value, 16), a, b, c)
        if predicate is not None:
            self.set_p(predicate, value != U32(0), where)
        self.set_u(target, value, where)

    op_ulop3 = op_lop3

    def op_plop3(self, i: Instruction, where: Array | None) -> None:
        first, second, *sources = i.operands
        values = [self.p(each) for each in sources[:3]]
        for target, table in ((first, sources[3]), (second, sources[4])):
            self.set_p(target, _lookup_bool(int(table.value, 16), *values), where)

    op_uplop3 = op_plop3

    def op_isetp(self, i: Instruction, where: Array | None) -> None:
        kinds = i.modifiers
        first, second, a, b, *rest = i.operands
        x, y = np.asarray(self.u(a)), np.asarray(self.u(b))
        if "U32" not in kinds:
            x, y = x.view(np.int32), y.view(np.int32)
        comparison = kinds[0]
        if "EX" in kinds:
            low = self.p(rest[1])
            strict = {"LE": "LT", "GE": "GT", "EQ": "EQ", "NE": "NE"}.get(comparison, comparison)
            if comparison == "EQ":
                result = (x == y) & low
            elif comparison == "NE":
                result = (x != y) | low
            else:
                result = _COMPARE[strict](x, y) | ((x == y) & low)
        else:
            result = _COMPARE[comparison](x, y)
        self.set_comparison(kinds, first, second, result, rest[0], where)

    op_uisetp = op_isetp

    def op_fsetp(self, i: Instruction, where: Array | None) -> None:
        first, second, a, b, last = i.operands
        result = _compare_floats(i.modifiers[0], self.f(a), self.f(b))
        self.set_comparison(i.modifiers, first, second, result, last, where)

    def op_hsetp2(self, i: Instruction, where: Array | None) -> None:
        """Of two halves each: a predicate for the low ones and one for the high ones."""
        first, second, a, b, last = i.operands
        kinds = [kind for kind in i.modifiers if kind in _COMBINE]
        if kinds != ["AND"] or set(i.modifiers[1:]) - {"AND"} or "imm" in (a.kind, b.kind):
            raise UnknownInstructionError(i.text)
        for target, part in ((first, "H0_H0"), (second, "H1_H1")):
            x, y = (self.half(replace(each, part=each.part or part)) for each in (a, b))
            self.set_p(target, _compare_floats(i.modifiers[0], x, y) & self.p(last), where)

    def op_dsetp(self, i: Instruction, where: Array | None) -> None:
        first, second, a, b, last = i.operands
        if i.modifiers[0] in ("MAX", "MIN"):
            raise UnknownInstructionError(i.text)
        result = _compare_floats(i.modifiers[0], self.d(a), self.d(b))
        self.set_comparison(i.modifiers, first, second, result, last, where)

    def set_comparison(
        self,
        kinds: Sequence[str],
        first: Operand,
        second: Operand,
        result: Any,
        last: Operand,
        where: Array | None,
    ) -> None:
        combine = next(_COMBINE[kind] for kind in kinds if kind in _COMBINE)
        other = self.p(last)
        positive, negative = combine(result, other), combine(~np.asarray(result), other)
        self.set_p(first, positive, where)
        self.set_p(second, negative, where)

    def op_fchk(self, i: Instruction, where: Array | None) -> None:
        """Whether a quotient needs more care than a reciprocal and two corrections."""
        target, a, b = i.operands
        x, y = np.abs(np.asarray(self.f(a))), np.abs(np.asarray(self.f(b)))
        usual = (
            (y > F32(2.0**-125)) & (y < F32(2.0**125)) & (x > F32(2.0**-100)) & (x < F32(2.0**100))
        )
        self.set_p(target, ~(usual & (x / y > F32(2.0**-125)) & (x / y < F32(2.0**125))), where)

    def op_sel(self, i: Instruction, where: Array | None) -> None:
        target, a, b, predicate = i.operands
        self.set_u(target, np.where(self.p(predicate), self.u(a), self.u(b)), where)

    op_usel = op_sel

    def op_fsel(self, i: Instruction, where: Array | None) -> None:
        target, a, b, predicate = i.operands
        self.set_f(target, np.where(self.p(predicate), self.f(a), self.f(b)), where)

    def op_fadd(self, i: Instruction, where: Array | None) -> None:
        """A sum, a product or both; with a 2 in its name of two floats each."""
        execute = _ARITHMETIC[i.opcode.removeprefix("U").removesuffix("2")]
        target, *sources = i.operands
        if not i.opcode.endswith("2"):
            self.set_f(target, execute(i.modifiers, *map(self.f, sources)), where)
            return
        known = ("", "HI_LO", "LO_HI", "HI_LO.NP", "LO_HI.NP")
        if any(each.kind == "c" or each.part not in known for each in sources):
            raise UnknownInstructionError(i.text)
        # Both before one is written: a target may be a source of the other.
        low, high = (
            execute(i.modifiers, *each) for each in zip(*map(self.floats, sources), strict=True)
        )
        self.set_u(target, np.asarray(low, F32).view(U32), where)
        self.set_u(target, np.asarray(high, F32).view(U32), where, 1)

    op_fmul = op_ffma = op_fadd2 = op_fmul2 = op_ffma2 = op_fadd

    def floats(self, operand: Operand) -> tuple[Any, Any]:
        """A register and the next one as its part says, or the same number twice."""
        low = self.f(operand)
        if not operand.part:
            return low, low
        zero = operand.index == (63 if operand.kind == "UR" else 255)
        high = low if zero else self.f(replace(operand, index=operand.index + 1))
        if operand.part.startswith("LO_HI"):
            low, high = high, low
        return low, -high if operand.part.endswith("NP") else high

    def op_fhadd(self, i: Instruction, where: Array | None) -> None:
        """A half added to a float."""
        target, a, b = i.operands
        if i.modifiers not in ((), ("BF16",)):
            raise UnknownInstructionError(i.text)
        self.set_f(target, _sum((), self.half(a, "BF16" in i.modifiers), self.f(b)), where)

    def op_fmnmx(self, i: Instruction, where: Array | None) -> None:
        target, *sources, predicate = i.operands
        values = [np.asarray(self.f(each)) for each in sources]
        least, most = (np.minimum, np.maximum) if "NAN" in i.modifiers else (np.fmin, np.fmax)
        low, high = reduce(least, values), reduce(most, values)
        self.set_f(target, np.where(self.p(predicate), low, high), where)

    op_fmnmx3 = op_fmnmx  # of three

    def op_vimnmx(self, i: Instruction, where: Array | None) -> None:
        target, *operands, predicate = i.operands
        # From sm_100 on, two predicates that 64 bits need.
        if any(each.kind == "P" and each.index != 7 for each in operands):
            raise UnknownInstructionError(i.text)
        values = [self.ordered(i, each) for each in operands if each.kind != "P"]
        low, high = reduce(np.minimum, values), reduce(np.maximum, values)
        self.set_u(target, np.where(self.p(predicate), low, high).view(U32), where)

    op_vimnmx3 = op_vimnmx  # of three
    op_imnmx = op_vimnmx

    def op_viaddmnmx(self, i: Instruction, where: Array | None) -> None:
        target, a, b, c, predicate = i.operands
        x, y = np.asarray(self.u(a) + self.u(b)), self.ordered(i, c)
        x = x if "U32" in i.modifiers else x.view(np.int32)
        value = np.where(self.p(predicate), np.minimum(x, y), np.maximum(x, y))
        self.set_u(target, value.view(U32), where)

    def ordered(self, i: Instruction, operand: Operand) -> Any:
        value = np.asarray(self.u(operand))
        return value if "U32" in i.modifiers else value.view(np.int32)

    def op_mufu(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands
        kind = i.modifiers[0]
        if kind.endswith("64H"):
            high = np.asarray(self.u(source)).astype(U64) << U64(32)
            value = 1 / high.view(F64) if kind == "RCP64H" else 1 / np.sqrt(high.view(F64))
            self.set_u(target, _high(value.view(U64)), where)
            return
        x = np.asarray(self.f(source))
        self.set_f(target, _FUNCTIONS[kind](x), where)

    def op_i2f(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands
        kinds = i.modifiers
        if "U64" in kinds or "S64" in kinds:
            whole = self.pair(source)
            whole = whole if "U64" in kinds else np.asarray(whole).view(np.int64)
        else:
            whole = np.asarray(self.u(source))
            if "U16" in kinds or "S16" in kinds or "U8" in kinds or "S8" in kinds:
                raise UnknownInstructionError(i.text)
            whole = whole if "U32" in kinds else whole.view(np.int32)
        exact = whole.astype(F64)
        if "F64" in kinds:
            self.set_pair(target, exact, where)
        else:
            self.set_f(target, _to_float(exact, kinds), where)

    op_i2fp = op_i2f

    def op_f2i(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands
        kinds = i.modifiers
        value = self.d(source) if "F64" in kinds else np.asarray(self.f(source)).astype(F64)
        if "S64" in kinds or "U64" in kinds:
            raise UnknownInstructionError(i.text)
        rounded = _ROUND[next((k for k in kinds if k in _ROUND), "RN")](value)
        low, high = (0, 2**32 - 1) if "U32" in kinds else (-(2**31), 2**31 - 1)
        rounded = np.nan_to_num(np.clip(rounded, low, high), nan=0.0)
        self.set_u(target, rounded.astype(np.int64).astype(U32), where)

    def op_frnd(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands
        round_it = _ROUND[next((k for k in i.modifiers if k in _ROUND), "RN")]
        if "F64" in i.modifiers:
            self.set_pair(target, round_it(self.d(source)), where)
        else:
            self.set_f(target, round_it(self.f(source)), where)

    def op_f2f(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands
        to, of = i.modifiers[-2:]
        if (to, of) == ("F32", "F64"):
            self.set_f(target, np.asarray(self.d(source)).astype(F32), where)
        elif (to, of) == ("F64", "F32"):
            self.set_pair(target, np.asarray(self.f(source)).astype(F64), where)
        elif (to, of) in (("F16", "F32"), ("BF16", "F32")):
            pack = _to_half if to == "F16" else _to_bfloat16
            self.set_u(target, pack(self.f(source)), where)
        else:
            raise UnknownInstructionError(i.text)

    def op_f2fp(self, i: Instruction, where: Array | None) -> None:
        target, high, low = i.operands[0], *i.operands[-2:]
        pack = _to_bfloat16 if "BF16" in i.modifiers else _to_half
        value = pack(self.f(low)) | pack(self.f(high)) << U32(16)
        self.set_u(target, value, where)

    def half(self, operand: Operand, brain: bool = False) -> Any:
        """One half of a register as a float; of bfloat16 or of float16."""
        if operand.kind == "imm":
            return _float_immediate(operand.value)
        bits = np.asarray(self.u(Operand(operand.kind, operand.index, offset=operand.offset)))
        shift = U32(16 if operand.part.startswith("H1") else 0)
        value = (bits >> shift).astype(np.uint16)
        value = (
            (value.astype(U32) << U32(16)).view(F32)
            if brain
            else value.view(np.float16).astype(F32)
        )
        value = np.abs(value) if operand.absolute else value
        return -value if operand.negative else value

    def op_hadd2(self, i: Instruction, where: Array | None) -> None:
        if i.modifiers != ("F32",):
            raise UnknownInstructionError(i.text)
        target, a, b = i.operands
        # How a half becomes a float: it is added to minus zero.
        first = F32(-0.0) if a.index == 255 and a.kind == "R" else self.half(a)
        self.set_f(target, np.asarray(first + self.half(b)).astype(F32), where)

    def op_hfma2(self, i: Instruction, where: Array | None) -> None:
        target, a, b, *rest = i.operands
        if not (a.index == 255 and b.index == 255 and len(rest) == 2):
            raise UnknownInstructionError(i.text)
        high, low = (_to_half(_float_immediate(each.value)) for each in rest)
        self.set_u(target, low | high << U32(16), where)

    def op_prmt(self, i: Instruction, where: Array | None) -> None:
        target, a, selector, b = i.operands
        if i.modifiers:
            raise UnknownInstructionError(i.text)
        whole = np.asarray(self.u(a)).astype(U64) | np.asarray(self.u(b)).astype(U64) << U64(32)
        which = np.asarray(self.u(selector)).astype(U64)
        value = U64(0)
        for byte in range(4):
            nibble = which >> U64(4 * byte)
            found = whole >> (nibble & U64(7)) * U64(8) & U64(0xFF)
            sign = np.where(found & U64(0x80), U64(0xFF), U64(0))
            value = value | np.where(nibble & U64(8), sign, found) << U64(8 * byte)
        self.set_u(target, np.asarray(value).astype(U32), where)

    op_uprmt = op_prmt

    def op_popc(self, i: Instruction, where: Array | None) -> None:
        self.set_u(i.operands[0], np.bitwise_count(self.u(i.operands[-1])).astype(U32), where)

    def op_brev(self, i: Instruction, where: Array | None) -> None:
        value = np.asarray(self.u(i.operands[-1]))
        for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
            value = (value >> U32(shift) & U32(mask)) | (value & U32(mask)) << U32(shift)
        self.set_u(i.operands[0], value >> U32(16) | value << U32(16), where)

    def op_flo(self, i: Instruction, where: Array | None) -> None:
        value = np.asarray(self.u(i.operands[-1])).astype(F64)
        highest = np.floor(np.log2(np.maximum(value, 1))).astype(np.int64)
        highest = 31 - highest if "SH" in i.modifiers else highest
        result = np.where(value > 0, highest, 0xFFFFFFFF).astype(U32)
        self.set_u(i.operands[0], result, where)

    def op_iabs(self, i: Instruction, where: Array | None) -> None:
        value = np.abs(np.asarray(self.u(i.operands[1])).view(np.int32))
        self.set_u(i.operands[0], value.view(U32), where)

    def op_p2r(self, i: Instruction, where: Array | None) -> None:
        target, _, base, mask = i.operands
        bits = U32(0)
        for number in range(7):
            bits = bits | self.P[number].astype(U32) << U32(number)
        kept = U32(_immediate(mask.value))
        self.set_u(target, (self.u(base) & ~kept) | (bits & kept), where)

    def op_r2p(self, i: Instruction, where: Array | None) -> None:
        value, mask = self.u(i.operands[1]), _immediate(i.operands[2].value)
        for number in range(7):
            if int(mask) >> number & 1:
                self.set_p(Operand("P", number), value >> U32(number) & U32(1) != 0, where)

    def op_dadd(self, i: Instruction, where: Array | None) -> None:
        target, a, b = i.operands[0], i.operands[1], i.operands[-1]
        self.set_pair(target, np.asarray(self.d(a) + self.d(b)), where)

    def op_dmul(self, i: Instruction, where: Array | None) -> None:
        self.set_pair(
            i.operands[0], np.asarray(self.d(i.operands[1]) * self.d(i.operands[2])), where
        )

    def op_dfma(self, i: Instruction, where: Array | None) -> None:
        a, b, c = (np.asarray(self.d(each)).astype(np.longdouble) for each in i.operands[1:])
        self.set_pair(i.operands[0], np.asarray((a * b + c).astype(F64)), where)

    def op_hmma(self, i: Instruction, where: Array | None) -> None:
        target, a, b, c = i.operands
        if i.modifiers[:2] == ("1688", "F32") and "TF32" in i.modifiers:
            # Of each number the 19 bits of tf32 are read; the compiler counts on it.
            left, right = (
                [(tile & ~U32(0x1FFF)).view(F32) for tile in self.tiles(operand, count, U32)]
                for operand, count in ((a, 4), (b, 2))
            )
            rows = np.empty((self.warps, 16, 8), F32)
            rows[:, :8, :4], rows[:, 8:, :4] = left[0], left[1]
            rows[:, :8, 4:], rows[:, 8:, 4:] = left[2], left[3]
            columns = np.concatenate([right[0], right[1]], axis=2)  # [warp][g][k]
        elif i.modifiers[:2] in (("16816", "F32"), ("1688", "F32")):
            deep = i.modifiers[0] == "16816"
            kind = "BF16" if "BF16" in i.modifiers else "F16"
            left = self.half_tiles(a, 4 if deep else 2, kind)
            right = self.half_tiles(b, 2 if deep else 1, kind)
            parts = [np.concatenate([left[0], left[1]], axis=1)]
            if deep:
                parts.append(np.concatenate([left[2], left[3]], axis=1))
            rows = np.concatenate(parts, axis=2)
            columns = np.concatenate(right, axis=2)
        else:
            raise UnknownInstructionError(i.text)
        product = rows @ columns.transpose(0, 2, 1)  # [warp][16][8]
        for part in range(4):
            row, odd = part // 2 * 8, part % 2
            lanes = product[:, row : row + 8, odd::2].reshape(self.threads)
            before = self.f(c) if c.index == 255 else self.R[c.index + part].view(F32)
            value = (lanes + before).astype(F32)
            self.set_u(target, value.view(U32), where, part)

    # -- Products that are made beside the threads: counted, and not computed.

    def uncomputed(self, i: Instruction, where: Array | None) -> None:
        """What only a dry run may pass over, as nothing that is counted hangs on its results."""
        if not self.machine.dry:
            raise UnknownInstructionError(f"{self.program.name}: {i.text} is counted, not computed")

    op_utcbar = op_sttm = op_ldtm = op_uvirtcount = op_nanosleep = op_bpt = uncomputed

    def op_hgmma(self, i: Instruction, where: Array | None) -> None:
        """Of four warps together; its cost is in products of m16n8k8 (of tf32) a warp."""
        self.uncomputed(i, where)
        columns = int(i.modifiers[0].split("x")[1])
        self.cost = np.where(self.warp_mask, columns // 8, 0)

    def op_utchmma(self, i: Instruction, where: Array | None) -> None:
        """Of one thread for its block; its cost is in products of m16n8k8 (of tf32)."""
        self.uncomputed(i, where)
        active = (self.mask if where is None else where).reshape(-1, LANES)
        name = next(o.value for o in i.operands if o.value.startswith("idesc"))
        described = self.UR[int(re.sub(r"\D", "", name))].reshape(-1, LANES).astype(np.int64)
        # Of PTX's instruction descriptor: N / 8 from bit 17 on, M / 16 from bit 24 on.
        products = (described >> 17 & 63) * (described >> 24 & 31)
        self.cost = np.where(active, products, 0).max(1)

    def op_syncs(self, i: Instruction, where: Array | None) -> None:
        """A barrier of asynchronous work, that of it is always done."""
        self.uncomputed(i, where)
        for operand in i.operands[:1]:
            if operand.kind == "P":
                self.set_p(operand, True, where)

    def op_utcatomsws(self, i: Instruction, where: Array | None) -> None:
        """Room in the memory of the tensor cores: there is always some."""
        self.uncomputed(i, where)
        for operand, value in zip(i.operands[:2], (True, U32(0)), strict=False):
            if operand.kind == "UP":
                self.set_p(operand, value, where)
            elif operand.kind == "UR" and "FIND_AND_SET" in i.modifiers:
                self.set_u(operand, value, where)

    def op_elect(self, i: Instruction, where: Array | None) -> None:
        """The first lane of those that execute it."""
        active = (self.mask if where is None else where).reshape(-1, LANES)
        first = active & (active.cumsum(1) == 1)
        self.set_p(i.operands[0], first.reshape(-1), where)

    def tiles(self, operand: Operand, count: int, kind: Any) -> list[Array]:
        """Registers as [warp][g][t], lane 4 g + t."""
        return [
            self.R[operand.index + n].view(kind).reshape(self.warps, 8, 4) for n in range(count)
        ]

    def half_tiles(self, operand: Operand, count: int, kind: str) -> list[Array]:
        result = []
        for tile in self.tiles(operand, count, U32):
            low, high = tile & U32(0xFFFF), tile >> U32(16)
            both = np.stack([low, high], axis=3).reshape(self.warps, 8, 8)
            if kind == "BF16":
                result.append((both << U32(16)).view(F32))
            else:
                result.append(both.astype(np.uint16).view(np.float16).astype(F32))
        return result

    # -- Between the lanes of a warp.

    def op_redux(self, i: Instruction, where: Array | None) -> None:
        """Of all lanes that execute it; AND is not printed."""
        target, source = i.operands
        name, *kinds = i.modifiers or ("AND",)
        if name not in _REDUCE or set(kinds) - {"S32", "F32", "NAN"}:
            raise UnknownInstructionError(i.text)
        floats = "F32" in kinds
        bits = np.asarray(self.f(source) if floats else self.u(source)).view(U32)
        lanes = np.broadcast_to(bits, (self.threads,)).reshape(-1, LANES)
        lanes = lanes.view(np.int32) if kinds else lanes
        active = (self.mask if where is None else where).reshape(-1, LANES)
        no_number = np.isnan(lanes.view(F32)) if floats else np.zeros_like(active)
        lanes = _in_order(lanes) if floats else lanes
        limits = np.iinfo(lanes.dtype)
        neutral = {"MIN": limits.max, "MAX": limits.min, "AND": ~lanes.dtype.type(0)}.get(name, 0)
        each = _REDUCE[name].reduce(
            lanes, axis=1, dtype=lanes.dtype, where=active & ~no_number, initial=neutral
        )
        if floats:
            each = _in_order(each)
            spoiled = (active & no_number).any(1) & ("NAN" in kinds)
            each = np.where(np.isnan(each.view(F32)) | spoiled, np.int32(0x7FFFFFFF), each)
        self.set_u(target, np.repeat(each, LANES).view(U32), where)

    op_credux = op_redux

    def op_shfl(self, i: Instruction, where: Array | None) -> None:
        inside, target, value, by, clamp = i.operands
        lanes = self.u(value) * np.ones(self.threads, U32)
        lane = np.tile(np.arange(LANES), self.warps)
        count = np.asarray(self.u(by)).astype(np.int64)
        bound = np.asarray(self.u(clamp)).astype(np.int64)
        segment, last = bound >> 8 & 31, bound & 31
        low = lane & segment
        limit = low | (last & ~segment)
        kind = i.modifiers[0]
        if kind == "BFLY":
            source, fits = lane ^ count, (lane ^ count) <= limit
        elif kind == "DOWN":
            source, fits = lane + count, lane + count <= limit
        elif kind == "UP":
            source, fits = lane - count, lane - count >= limit
        else:
            source, fits = low | (count & ~segment), (low | (count & ~segment)) <= limit
        source = np.where(fits, source, lane)
        found = lanes[np.arange(self.threads) // LANES * LANES + source]
        self.set_p(inside, fits, where)
        self.set_u(target, found, where)
        self.cost = self.warp_mask.astype(np.int64)

    def op_vote(self, i: Instruction, where: Array | None) -> None:
        *targets, source = i.operands
        active = self.mask if where is None else where
        weights = U64(1) << np.arange(LANES, dtype=U64)

        def bits(values: Array) -> Array:
            return np.repeat((values.reshape(-1, LANES) * weights).sum(1), LANES).astype(U32)

        ballot = bits(self.p(source) & active)
        for target in targets:
            if target.kind in ("R", "UR"):
                self.set_u(target, ballot, where)
            elif "ANY" in i.modifiers:
                self.set_p(target, ballot != U32(0), where)
            elif "ALL" in i.modifiers:
                self.set_p(target, ballot == bits(active), where)
            elif target.index != 7:
                raise UnknownInstructionError(i.text)

    op_voteu = op_vote

    def op_match(self, i: Instruction, where: Array | None) -> None:
        if i.modifiers[0] != "ANY":
            raise UnknownInstructionError(i.text)
        target, value = i.operands[0], i.operands[-1]
        lanes = np.asarray(self.u(value)).reshape(-1, LANES)
        active = (self.mask if where is None else where).reshape(-1, LANES)
        same = (lanes[:, :, None] == lanes[:, None, :]) & active[:, None, :]
        weights = U64(1) << np.arange(LANES, dtype=U64)
        self.set_u(target, (same * weights).sum(2).reshape(-1).astype(U32), where)

    # -- Memory.

    def width(self, i: Instruction) -> int:
        for kind, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
            if kind in i.modifiers:
                return size
        return 4

    def global_address(self, operand: Operand) -> Array:
        at: Any = np.full(self.threads, operand.offset, np.int64)
        if operand.base is not None and operand.base != 255:
            low = self.R[operand.base].astype(np.int64)
            at = at + (low | self.R[operand.base + 1].astype(np.int64) << 32)
        if operand.uniform is not None and operand.uniform != 63:
            low = self.UR[operand.uniform].astype(np.int64)
            at = at + (low | self.UR[operand.uniform + 1].astype(np.int64) << 32)
        return at

    def shared_address(self, operand: Operand) -> Array:
        at: Any = np.full(self.threads, operand.offset, np.int64)
        if operand.base is not None and operand.base != 255:
            at = at + self.R[operand.base].astype(np.int64) * operand.scale
        if operand.uniform is not None and operand.uniform != 63:
            at = at + self.UR[operand.uniform].astype(np.int64)
        return at & 0xFFFFFF  # above is the block's number in its cluster

    def count_global(self, i: Instruction, at: Array, active: Array, width: int) -> Array:
        """Count one access; the sectors of each warp."""
        counts = self.counts
        sectors = np.where(active, at // SECTOR, -1).reshape(-1, LANES)
        ordered = np.sort(sectors, axis=1)
        first = np.ones(ordered.shape, bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        first &= ordered >= 0
        each = first.sum(1)
        counts.sectors[i.address] += int(each.sum())
        counts.requests[i.address] += int((each > 0).sum())
        counts.requested[i.address] += width * int(active.sum())
        self.cost = each
        touched = ordered[first]
        block = np.repeat(self.block_of[::LANES], each)
        self.touched = block.astype(np.int64) << 43 | touched
        if self.steps is not None:
            keys = self.touched.tolist()
            lines = (self.touched // 2).tolist()
            new = np.array([key not in self.seen for key in keys], bool)
            unseen = np.array([line not in self.seen_lines for line in lines], bool)
            self.seen.update(keys)
            self.seen_lines.update(lines)
            warp = np.repeat(np.arange(self.warps), each)
            self.fresh = np.bincount(warp[new], minlength=self.warps)
            self.far = np.bincount(warp[unseen], minlength=self.warps)
            self.turns = self.bank_turns(at, active, width).reshape(self.warps, -1).sum(1)
        return touched

    def count_shared(self, i: Instruction, at: Array, active: Array, width: int) -> None:
        """Count one access."""
        counts = self.counts
        load = self.bank_turns(at, active, width)
        per_warp = load.reshape(self.warps, -1).sum(1)
        ideal = (load > 0).reshape(self.warps, -1).sum(1)
        counts.wavefronts[i.address] += int(per_warp.sum())
        counts.shared_accesses[i.address] += int((ideal > 0).sum())
        if (ideal > 0).any():
            worst = float((per_warp[ideal > 0] / ideal[ideal > 0]).max())
            counts.worst[i.address] = max(worst, counts.worst.get(i.address, 0.0))
        self.cost = per_warp

    def bank_turns(self, at: Array, active: Array, width: int) -> Array:
        """Turns of an access, by group: 128 bytes' lanes at once, a bank one word at a time."""
        group_lanes = LANES if width <= 4 else LANES * 4 // width
        words = max(width // 4, 1)
        group = np.arange(self.threads) // group_lanes
        first = int(at[active].min()) // (4 * BANKS) * (4 * BANKS)  # addresses have 47 bits
        word = (at[:, None] - first) // 4 + np.arange(words)
        key = (group[:, None].astype(np.int64) << 40 | word)[active].reshape(-1)
        key = np.unique(key)
        groups = self.threads // group_lanes
        place = (key >> 40) * BANKS + (key & 0xFFFFFFFFFF) % BANKS
        return np.bincount(place, minlength=groups * BANKS).reshape(groups, BANKS).max(1)

    def op_ldg(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands[0], next(o for o in i.operands if o.kind == "mem")
        at, width = self.global_address(source), self.width(i)
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return
        self.check(at, active, width, i)
        self.count_global(i, at, active, width)
        self.loaded.append(self.touched)
        self.read(self.machine.maps.view, at - 4096, width, i, target, active)

    def op_lds(self, i: Instruction, where: Array | None) -> None:
        target, source = i.operands[0], next(o for o in i.operands if o.kind == "mem")
        at, width = self.shared_address(source), self.width(i)
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return
        self.inside(at, active, width, i)
        self.count_shared(i, at, active, width)
        own = at + self.block_of * max(self.shared_size, 16)
        self.read(self.shared.__getitem__, own, width, i, target, active)

    def op_stl(self, i: Instruction, where: Array | None) -> None:
        """Spilled registers, of each thread apart; the accesses are not counted."""
        for word, place in enumerate(self.places_in_stack(i)):
            active = self.mask if where is None else where
            self.stack[place[active], np.flatnonzero(active)] = self.R[i.operands[-1].index + word][
                active
            ]

    def op_ldl(self, i: Instruction, where: Array | None) -> None:
        lanes = np.arange(self.threads)
        for word, place in enumerate(self.places_in_stack(i)):
            self.set_u(i.operands[0], self.stack[place, lanes], where, word)

    def places_in_stack(self, i: Instruction) -> list[Array]:
        """Of each word that is accessed: the stack ends at 0, and grows down from there."""
        at = self.shared_address(next(each for each in i.operands if each.kind == "mem"))
        if self.width(i) < 4:
            raise UnknownInstructionError(i.text)
        return [(at // 4 + word) % len(self.stack) for word in range(self.width(i) // 4)]

    def op_ldsm(self, i: Instruction, where: Array | None) -> None:
        """Matrices of 8 rows of 16 bytes: to each lane two elements of a row, or of a column."""
        for number, places in enumerate(self.places_in_matrices(i, where)):
            low, high = (self.shared[2][each].astype(U32) for each in places)
            self.set_u(i.operands[0], low | high << U32(16), where, number)

    def op_stsm(self, i: Instruction, where: Array | None) -> None:
        """The other way."""
        active = self.mask if where is None else where
        for number, places in enumerate(self.places_in_matrices(i, where)):
            pair = self.R[i.operands[-1].index + number]
            for half, place in enumerate(places):
                self.shared[2][place[active]] = (pair[active] >> U32(16 * half)).astype(np.uint16)

    def places_in_matrices(self, i: Instruction, where: Array | None) -> list[list[Array]]:
        """Of each matrix, where in shared memory each lane has its two elements, in 2 bytes."""
        if i.modifiers[:2] not in (("16", "M88"), ("16", "MT88")):
            raise UnknownInstructionError(i.text)
        matrices = int((*i.modifiers[2:], "1")[0])
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return []
        at = self.shared_address(next(each for each in i.operands if each.kind == "mem"))
        lane = np.tile(np.arange(LANES), self.warps)
        rows = active & (lane < 8 * matrices)  # a lane has the address of one row
        self.inside(at, rows, 16, i)
        self.count_shared(i, at, rows, 16)
        own = np.where(rows, at + self.block_of * max(self.shared_size, 16), 0) // 2
        first = np.arange(self.threads) // LANES * LANES
        across, along = (lane // 4, lane % 4 * 2)
        result = []
        for number in range(matrices):
            start = first + 8 * number
            if i.modifiers[1] == "M88":
                result.append([own[start + across] + along + n for n in range(2)])
            else:
                result.append([own[start + along + n] + across for n in range(2)])
        return result

    def op_ldgsts(self, i: Instruction, where: Array | None) -> None:
        """From global to shared memory, or zeros where its predicate is false: starts a copy."""
        to, source, *last = i.operands
        active = self.mask if where is None else where
        read = active & self.p(last[0]) if last else active
        width = self.width(i)
        self.cost = np.zeros(self.warps, np.int64)
        if not active.any():
            return
        own = self.shared_address(to)
        self.inside(own, active, width, i)
        self.count_shared(i, own, active, width)
        written = self.cost
        own = own + self.block_of * max(self.shared_size, 16)
        words = max(width // 4, 1)
        copied = np.zeros((words, self.threads), U32)
        self.cost = np.zeros(self.warps, np.int64)
        if read.any():
            at = self.global_address(source)
            self.check(at, read, width, i)
            self.count_global(i, at, read, width)
            self.loaded.append(self.touched)
            memory = self.machine.maps.view(4)
            for word in range(words):
                copied[word][read] = memory[(at[read] - 4096) // 4 + word]
            if self.turns is not None:
                self.turns = self.turns + written
        self.copies.append(Copy(own // 4, copied, active.copy(), np.zeros(self.threads, np.int64)))

    def op_ldgdepbar(self, i: Instruction, where: Array | None) -> None:
        """What a thread copies up to here is a group."""
        active = self.mask if where is None else where
        for copy in self.copies:
            copy.groups[active] += 1

    def op_depbar(self, i: Instruction, where: Array | None) -> None:
        """Waits until as many groups of a thread's copies are under way as it says, or fewer."""
        active = self.mask if where is None else where
        most = int(str(i.operands[-1].value), 0)
        for copy in self.copies:
            done = active & copy.threads & (copy.groups > most)
            for word, values in enumerate(copy.values):
                self.shared[4][copy.to[done] + word] = values[done]
            copy.threads &= ~done
        self.copies = [copy for copy in self.copies if copy.threads.any()]

    def read(
        self,
        view: Callable[[int], Array],
        at: Array,
        width: int,
        i: Instruction,
        target: Operand,
        active: Array,
    ) -> None:
        unit = min(width, 4)
        base = np.where(active, at, at[active][0]) // unit
        memory = view(unit)
        for word in range(max(width // 4, 1)):
            value = memory[base + word].astype(U32)
            if "S16" in i.modifiers:
                value = value.astype(np.uint16).view(np.int16).astype(np.int32).view(U32)
            elif "S8" in i.modifiers:
                value = value.astype(np.uint8).view(np.int8).astype(np.int32).view(U32)
            self.set_u(target, value, active, word)

    def op_stg(self, i: Instruction, where: Array | None) -> None:
        place, value = next(o for o in i.operands if o.kind == "mem"), i.operands[-1]
        at, width = self.global_address(place), self.width(i)
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return
        self.check(at, active, width, i)
        self.stored.append(self.count_global(i, at, active, width))
        self.counts.store_sectors += int(self.cost.sum()) if self.cost is not None else 0
        if not self.machine.dry:
            self.write(self.machine.maps.view, at - 4096, width, value, active)

    def op_sts(self, i: Instruction, where: Array | None) -> None:
        place, value = next(o for o in i.operands if o.kind == "mem"), i.operands[-1]
        at, width = self.shared_address(place), self.width(i)
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return
        self.inside(at, active, width, i)
        self.count_shared(i, at, active, width)
        own = at + self.block_of * max(self.shared_size, 16)
        self.write(self.shared.__getitem__, own, width, value, active)

    def write(
        self, view: Callable[[int], Array], at: Array, width: int, value: Operand, active: Array
    ) -> None:
        unit = min(width, 4)
        base = at[active] // unit
        memory = view(unit)
        for word in range(max(width // 4, 1)):
            if value.index == (63 if value.kind == "UR" else 255):
                stored = np.zeros(len(base), U32)
            else:
                stored = (self.UR if value.kind == "UR" else self.R)[value.index + word][active]
            memory[base + word] = stored.astype(memory.dtype)

    def op_red(self, i: Instruction, where: Array | None) -> None:
        """Integer additions, of which the order does not matter."""
        self.atomic(i, i.operands[-1], None, where, in_shared=False)

    op_redg = op_red

    def op_atoms(self, i: Instruction, where: Array | None) -> None:
        self.atomic(i, i.operands[-1], i.operands[0], where, in_shared=True)

    def op_atomg(self, i: Instruction, where: Array | None) -> None:
        targets = [o for o in i.operands if o.kind == "R"]
        self.atomic(i, targets[-1], targets[0], where, in_shared=False)

    def atomic(
        self,
        i: Instruction,
        value: Operand,
        target: Operand | None,
        where: Array | None,
        in_shared: bool,
    ) -> None:
        known = {"ADD": operator.add, "POPC": operator.add} | _COMBINE
        combine = next((known[kind] for kind in i.modifiers if kind in known), None)
        if combine is None:
            raise UnknownInstructionError(i.text)
        active = self.mask if where is None else where
        if not active.any():
            self.cost = np.zeros(self.warps, np.int64)
            return
        place = next(o for o in i.operands if o.kind == "mem")
        wide = "64" in i.modifiers
        unit = 8 if wide else 4
        if in_shared:
            at = self.shared_address(place)
            self.inside(at, active, unit, i)
            self.count_shared(i, at, active, unit)
            memory, at = self.shared[4], at + self.block_of * max(self.shared_size, 16)
        else:
            at = self.global_address(place)
            self.check(at, active, unit, i)
            self.stored.append(self.count_global(i, at, active, unit))
            memory, at = self.machine.maps.view(4), at - 4096
            if self.machine.dry and target is None:
                return
        added = self.pair(value) if wide else np.asarray(self.u(value)).astype(U64)
        added = np.broadcast_to(np.asarray(added), (self.threads,))
        if "POPC" in i.modifiers:
            added = np.ones(self.threads, U64)
        for thread in np.flatnonzero(active):
            word = int(at[thread]) // 4
            before = int(memory[word]) | (int(memory[word + 1]) << 32 if wide else 0)
            if target is not None and target.index != 255:
                self.R[target.index][thread] = before & 0xFFFFFFFF
            if self.machine.dry and not in_shared:
                continue
            after = combine(before, int(added[thread]))
            memory[word] = after & 0xFFFFFFFF
            if wide:
                memory[word + 1] = after >> 32 & 0xFFFFFFFF

    def check(self, at: Array, active: Array, width: int, i: Instruction) -> None:
        used = at[active]
        if (used % width).any():
            raise RuntimeError(f"{self.program.name}: misaligned {i.text}")
        self.machine.maps.check(int(used.min()), int(used.max()) + width - 1)

    def inside(self, at: Array, active: Array, width: int, i: Instruction) -> None:
        used = at[active]
        if (used % width).any() or used.max() + width > self.shared_size:
            raise RuntimeError(f"{self.program.name}: outside shared memory, {i.text}")

    # -- The order of execution.

    def op_bra(self, i: Instruction, where: Array | None) -> bool | None:
        if "DIV" in i.modifiers:  # it is for warps that have diverged where they should not
            return None
        predicates = [o for o in i.operands if o.kind in ("P", "UP")]
        taken = self.mask if where is None else where
        for operand in predicates:
            taken = taken & self.p(operand)
        target = int(i.operands[-1].value, 16)
        self.wait_at(target, taken)
        return None if self.leave(taken) else False

    def op_brx(self, i: Instruction, where: Array | None) -> bool | None:
        taken = self.mask if where is None else where
        offset = int(i.operands[-1].value, 16) + i.address + BYTES
        targets = self.u(i.operands[0]).astype(np.int64) + offset & 0xFFFFFFFF
        for target in np.unique(targets[taken]):
            self.wait_at(int(target), taken & (targets == target))
        return None if self.leave(taken) else False

    op_brxu = op_brx

    def op_call(self, i: Instruction, where: Array | None) -> bool | None:
        taken = self.mask if where is None else where
        self.wait_at(int(i.operands[-1].value, 16), taken)
        return None if self.leave(taken) else False

    def op_ret(self, i: Instruction, where: Array | None) -> bool | None:
        taken = self.mask if where is None else where
        targets = self.R[i.operands[0].index]
        for target in np.unique(targets[taken]):
            self.wait_at(int(target), taken & (targets == target))
        return None if self.leave(taken) else False

    def op_exit(self, i: Instruction, where: Array | None) -> bool | None:
        gone = self.mask.copy() if where is None else where.copy()
        if not gone.any():
            return None
        self.alive &= ~gone
        for number in range(16):
            if self.arrived[number].any():
                self.release(number)
        if self.at_barrier.any():
            self.release_blocks()
        return None if self.leave(gone) else False

    def op_bssy(self, i: Instruction, where: Array | None) -> None:
        number = i.operands[-2].index
        warps = np.repeat(self.warp_mask, LANES)
        active = self.mask if where is None else where
        np.copyto(self.expected[number], active, where=warps)
        np.copyto(self.target[number], int(i.operands[-1].value, 16), where=active)

    def op_bsync(self, i: Instruction, where: Array | None) -> bool | None:
        number = i.operands[-1].index
        active = (self.mask if where is None else where).copy()
        self.arrived[number] |= active
        goes_on = self.leave(active)
        self.release(number)
        return None if goes_on else False

    def op_break(self, i: Instruction, where: Array | None) -> None:
        number = i.operands[-1].index
        active = self.mask if where is None else where
        self.expected[number] &= ~active
        self.release(number)

    def op_bar(self, i: Instruction, where: Array | None) -> bool | None:
        active = (self.mask if where is None else where).copy()
        self.resume[active] = i.address + BYTES
        self.at_barrier |= active
        goes_on = self.leave(active)
        self.release_blocks()
        return None if goes_on else False


# -- Numbers.


def _moved(operand: Operand, offset: int) -> Operand:
    return Operand(**(vars(operand) | {"offset": offset}))


def _immediate(text: str) -> Any:
    if text.startswith(("0x", "-0x")):
        return U32(int(text, 16) & 0xFFFFFFFF)
    return np.asarray(_float_immediate(text)).view(U32)[()]


def _float_immediate(text: str) -> Any:
    special = {"+INF": np.inf, "-INF": -np.inf, "INF": np.inf}
    if text in special:
        return F32(special[text])
    if "NAN" in text:
        return F32(-np.nan if text.startswith("-") else np.nan)
    if text.startswith("0x"):
        return np.asarray(U32(int(text, 16))).view(F32)[()]
    return F32(float(text))


def _double_immediate(text: str) -> float:
    special = {"+INF": np.inf, "-INF": -np.inf}
    if text in special:
        return special[text]
    if "NAN" in text:
        return float("nan")
    return float(text)


def _high(value: Any) -> Any:
    return (np.asarray(value) >> U64(32)).astype(U32)


def _lookup(table: int, a: Any, b: Any, c: Any) -> Any:
    """A truth table on every bit; the usual ones at once."""
    simple: dict[int, Callable[[], Any]] = {
        0xC0: lambda: a & b,
        0xFC: lambda: a | b,
        0x3C: lambda: a ^ b,
        0xF8: lambda: a | (b & c),
        0xEA: lambda: (a & b) | c,
        0xFE: lambda: a | b | c,
        0x80: lambda: a & b & c,
        0x33: lambda: ~b,
        0x0C: lambda: ~a & b,
        0x30: lambda: a & ~b,
    }
    if table in simple:
        return simple[table]()
    result: Any = U32(0)
    for number in range(8):
        if table >> number & 1:
            part = a if number & 4 else ~a
            part = part & (b if number & 2 else ~b)
            result = result | (part & (c if number & 1 else ~c))
    return result


def _lookup_bool(table: int, a: Array, b: Array, c: Array) -> Array:
    number = a.astype(np.int64) * 4 + b.astype(np.int64) * 2 + c.astype(np.int64)
    return (table >> number & 1).astype(bool)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
    "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_REDUCE: dict[str, np.ufunc] = {
    "SUM": np.add, "MIN": np.minimum, "MAX": np.maximum,
    "OR": np.bitwise_or, "AND": np.bitwise_and, "XOR": np.bitwise_xor,
}  # fmt: skip
_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "AND": operator.and_, "OR": operator.or_, "XOR": operator.xor,
}  # fmt: skip


def _in_order(bits: Array) -> Array:
    """Signed numbers that are ordered as the floats of these bits are; and back."""
    return bits ^ (bits >> np.int32(31) & np.int32(0x7FFFFFFF))


def _compare_floats(kind: str, x: Any, y: Any) -> Any:
    x, y = np.asarray(x), np.asarray(y)
    unordered = np.isnan(x) | np.isnan(y)
    if kind == "NAN":
        return unordered
    if kind == "NUM":
        return ~unordered
    if kind == "NE":
        return (x != y) & ~unordered
    if kind.endswith("U"):
        return _COMPARE[kind[:-1]](x, y) | unordered
    return _COMPARE[kind](x, y)


def _to_float(exact: Any, kinds: Sequence[str]) -> Any:
    """A double rounded to float as the instruction says."""
    exact = np.asarray(exact)
    value = exact.astype(F32)
    if "RM" in kinds:
        value = np.where(value > exact, np.nextafter(value, F32(-np.inf)), value)
    elif "RP" in kinds:
        value = np.where(value < exact, np.nextafter(value, F32(np.inf)), value)
    elif "RZ" in kinds:
        value = np.where(np.abs(value) > np.abs(exact), np.nextafter(value, F32(0)), value)
    if "SAT" in kinds:
        value = np.nan_to_num(np.clip(value, F32(0), F32(1)), nan=0.0)
    return value


def _sum(kinds: Sequence[str], x: Any, y: Any) -> Any:
    if not {"RM", "RP", "RZ", "SAT"} & set(kinds):
        return np.asarray(x + y)
    return _to_float(np.asarray(x).astype(F64) + np.asarray(y).astype(F64), kinds)


def _product(kinds: Sequence[str], x: Any, y: Any) -> Any:
    return _to_float(np.asarray(x).astype(F64) * np.asarray(y).astype(F64), kinds)


def _fused(kinds: Sequence[str], x: Any, y: Any, z: Any) -> Any:
    product = np.asarray(x).astype(F64) * np.asarray(y).astype(F64)
    return _to_float(product + np.asarray(z).astype(F64), kinds)


_ARITHMETIC: dict[str, Callable[..., Any]] = {"FADD": _sum, "FMUL": _product, "FFMA": _fused}


def _to_half(value: Any) -> Any:
    return np.asarray(value).astype(np.float16).view(np.uint16).astype(U32)


def _to_bfloat16(value: Any) -> Any:
    bits = np.asarray(value, F32).view(U32)
    rounded = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))
    return np.where(np.isnan(value), U32(0x7FFF), rounded >> U32(16))


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "RCP": lambda x: F32(1) / x,
    "RSQ": lambda x: F32(1) / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "TANH": np.tanh,
    "SIN": np.sin,
    "COS": np.cos,
}
_ROUND: dict[str, Callable[[Any], Any]] = {
    "TRUNC": np.trunc, "CEIL": np.ceil, "FLOOR": np.floor, "RN": np.rint,
}  # fmt: skip
