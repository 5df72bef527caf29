"""The machine code of a kernel, as cuobjdump prints it, and what a launch of it needs."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools.audit import tool

BYTES = 16  # of an instruction

# Where a launch's numbers are in the constant bank 0, by generation: blockDim, gridDim, parameters.
CONSTANTS = {8: (0x0, 0xC, 0x160), 9: (0x0, 0xC, 0x210), 10: (0x360, 0x370, 0x380)}
SHARED_START = {8: 0, 9: 0x400, 10: 0x400}  # what the system has of a block's shared memory


@dataclass(frozen=True)
class Operand:
    """One operand of an instruction.

    Attributes:
        kind: "R", "P", "UR", "UP" (registers), "B" (barrier), "SR" (special), "imm", "c"
            (constant) or "mem".
        index: of the register; the bank of a constant.
        value: of an immediate, as text; the name of a special register.
        offset: in bytes, of a constant or an address.
        base: register of an address, or of a constant's; None without.
        uniform: uniform register that is added to it; None without.
        scale: that the base is multiplied by.
        wide: the base is a pair of registers.
        negative: a minus before it.
        absolute: bars around it.
        inverted: "~" or "!" before it.
        part: what is read of a register: a half, "H0_H0", "H1_H1" or "H1"; or it and the next,
            "HI_LO", or the other way round, "LO_HI", and the second of them with the other sign,
            "HI_LO.NP" or "LO_HI.NP"; or "".
    """

    kind: str
    index: int = 0
    value: str = ""
    offset: int = 0
    base: int | None = None
    uniform: int | None = None
    scale: int = 1
    wide: bool = False
    negative: bool = False
    absolute: bool = False
    inverted: bool = False
    part: str = ""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in the kernel's code.
        predicate: register of the guard, 7 for none.
        uniform_predicate: the guard is a uniform one.
        negated: the guard is inverted.
        opcode: without its modifiers.
        modifiers: in their order.
        operands: as printed.
        text: the line.
    """

    address: int
    predicate: int
    uniform_predicate: bool
    negated: bool
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str


@dataclass
class Program:
    """One kernel on one architecture.

    Attributes:
        name: the mangled one.
        architecture: such as 90.
        instructions: in their order.
        registers: a thread's.
        shared: bytes a block, without what a launch adds.
        constants: initial content of the constant banks, by number.
    """

    name: str
    architecture: int
    instructions: list[Instruction]
    registers: int = 0
    shared: int = 0
    constants: dict[int, bytes] = field(default_factory=dict)


LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P)(\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
REGISTER = re.compile(
    r"^(?P<sign>[-~!]*)(?P<bar>\|?)(?P<kind>UR|UP|R|P|SB|B)(?P<number>\d+|Z|T)(?P<rest>[.\w]*)\|?"
    r"(?P<more>[.\w]*)$"
)
ADDRESS = re.compile(r"^(?:desc\[UR\d+\])?\[(?P<inner>[^\]]*)\]")
CONSTANT = re.compile(r"^(?P<sign>[-~]*)(?P<bar>\|?)c\[(0x[0-9a-f]+)\]\[([^\]]*)\]\|?(\.\w+)?")


def parse_operand(text: str) -> Operand:
    """Read one operand."""
    if found := REGISTER.match(text):
        kind, number = found["kind"], found["number"]
        last = {"R": 255, "UR": 63, "P": 7, "UP": 7}.get(kind, 15)
        index = last if number in ("Z", "T") else int(number)
        part = re.search(r"H[01]_H[01]|H1|(?<=F32x2\.)[\w.]+", found["rest"] + found["more"])
        return Operand(
            "B" if kind in ("B", "SB") else kind,
            index,
            negative="-" in found["sign"],
            inverted="~" in found["sign"] or "!" in found["sign"],
            absolute=bool(found["bar"]),
            part=part[0] if part else "",
        )
    if found := CONSTANT.match(text):
        base, uniform, offset, _, _ = _address(found[4])
        return Operand(
            "c",
            int(found[3], 16),
            offset=offset,
            base=base,
            uniform=uniform,
            negative="-" in found["sign"],
            inverted="~" in found["sign"],
            absolute=bool(found["bar"]),
        )
    if found := ADDRESS.match(text):
        base, uniform, offset, scale, wide = _address(found["inner"])
        return Operand("mem", offset=offset, base=base, uniform=uniform, scale=scale, wide=wide)
    if text.startswith("SR"):
        return Operand("SR", value=text)
    return Operand("imm", value=text)


def _address(inner: str) -> tuple[int | None, int | None, int, int, bool]:
    """Base register, uniform register, offset, scale, whether the base is a pair."""
    base = uniform = None
    offset, scale, wide = 0, 1, False
    for part in re.findall(r"[+-]?[^+-]+", inner):
        sign = -1 if part.startswith("-") else 1
        part = part.strip("+-")
        if part.startswith("UR"):
            # Not ignored for nothing: a number follows by the pattern that found this part.
            uniform = 63 if part[2] == "Z" else int(re.match(r"\d+", part[2:])[0])  # type: ignore[index]
        elif part.startswith("R"):
            # As above.
            base = 255 if part[1] == "Z" else int(re.match(r"\d+", part[1:])[0])  # type: ignore[index]
            wide = ".64" in part
            if by := re.search(r"\.X(\d+)", part):
                scale = int(by[1])
        else:
            offset += sign * int(part, 16)
    return base, uniform, offset, scale, wide


def parse_line(line: str) -> Instruction | None:
    """Read one line of a listing; None if it holds no instruction."""
    found = LINE.match(line)
    if found is None:
        return None
    address, negated, kind, predicate, name, rest = found.groups()
    opcode, *modifiers = name.split(".")
    operands = [
        part for part in re.split(r",\s*|\s+(?=-?0x|R\d)", re.sub(r"\(.*", "", rest)) if part
    ]
    return Instruction(
        int(address, 16),
        7 if predicate in (None, "T") else int(predicate),
        kind == "UP",
        bool(negated),
        opcode,
        tuple(modifiers),
        tuple(parse_operand(part.strip()) for part in operands),
        " ".join(line.split("*/", 1)[1].split(";")[0].split()),
    )


@cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when Python ends."""
    return tempfile.TemporaryDirectory(prefix="sass-")


@cache
def compiled(source: Path, architecture: str = "sm_90") -> Path:
    """The cubin of a source file without includes of this project.

    Raises:
        FileNotFoundError: there is no nvcc.
        subprocess.CalledProcessError: it does not compile.
    """
    if shutil.which("nvcc") is None:
        raise FileNotFoundError(f"{source} is compiled here: nvcc is not on the PATH")
    cubin = Path(tempfile.mkdtemp(dir=scratch().name)) / f"{source.stem}.{architecture}.cubin"
    command = ["nvcc", f"-arch={architecture}", "-O3", "-std=c++17", "-cubin", "-o"]
    subprocess.run([*command, str(cubin), str(source)], check=True, capture_output=True)
    return cubin


@cache
def symbols(cubin: Path) -> list[str]:
    """Names of the kernels in a cubin."""
    return [name[6:] for name in _sections(cubin) if name.startswith(".text.")]


def _told(cubin: Path, *words: str) -> str:
    """What cuobjdump tells of a file."""
    command = [tool("cuobjdump"), *words, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def read_program(cubin: Path, name: str) -> Program:
    """Read one kernel of a cubin.

    Args:
        cubin: a file for one architecture.
        name: the kernel's mangled name.
    """
    listing = _told(cubin, "-sass", "-fun", name)
    architecture = re.search(r"code for sm_(\d+)", listing)
    if architecture is None:
        raise ValueError(f"{cubin} has no kernel {name}: it has {', '.join(symbols(cubin))}")
    instructions = [found for line in listing.splitlines() if (found := parse_line(line))]
    usage = _told(cubin, "-res-usage", "-fun", name)
    resources = re.search(rf"Function {name}:\s*REG:(\d+) STACK:\d+ SHARED:(\d+)", usage)
    assert resources is not None, usage
    constants = {
        int(found[1]): content
        for section, content in _sections(cubin).items()
        if (found := re.fullmatch(rf"\.nv\.constant(\d+)(\.{re.escape(name)})?", section))
    }
    return Program(
        name,
        int(architecture[1]),
        instructions,
        int(resources[1]),
        # From sm_90 on it counts what the system has of it.
        max(int(resources[2]) - SHARED_START[int(architecture[1]) // 10], 0),
        constants,
    )


@cache
def _sections(elf: Path) -> dict[str, bytes]:
    """Sections of a 64-bit little-endian ELF file."""
    data = elf.read_bytes()
    start = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, start + i * size) for i in range(count)]
    strings = headers[names][4]
    result = {}
    for name, kind, _, _, offset, length in headers:
        end = data.index(b"\0", strings + name)
        content = b"" if kind == 8 else data[offset : offset + length]
        result[data[strings + name : end].decode()] = content
    return result
