"""Static audit of the CUDA and Triton kernels: what compilers made of them, without a GPU.

    python -m tools.audit [--backend cuda triton] [--library PATH] [--update]

The CUDA kernels are those of ``densesiam/_cuda.abi3.so``, for each architecture in it; the Triton
kernels are compiled here (``tools/triton_kernels.py``). The cuobjdump of Triton's wheel reads both:
registers, stack, shared and local memory, instructions, 16-byte loads and stores, tensor-core
instructions, floating-point atomics. It fails where a rule is broken (`broken_rules`) or where a
number is worse than in ``tools/audit.json``; ``--update`` writes that file anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASELINE = Path(__file__).with_suffix(".json")
TRITON = "triton "  # before the names of Triton's kernels
LIBRARY = ROOT / "densesiam" / "_cuda.abi3.so"
OLDEST = "sm_80"

SHARED = 99 * 1024  # bytes a block may have on the smallest: sm_86, sm_89 and sm_120


@dataclass
class Kernel:
    """What one kernel on one architecture uses.

    Attributes:
        registers: a thread's.
        stack: bytes of a thread's stack, where spilled registers go.
        shared: bytes of shared memory a block, without what a launch adds.
        instructions: of its code, each counted once.
        local: instructions that access local memory.
        wide_loads: 16-byte loads from global memory.
        wide_stores: 16-byte stores to global memory.
        tensor: tensor-core instructions.
        float_atomics: floating-point atomics and reductions in memory.
        bfloat16: kinds of arithmetic on bfloat16, by Triton's intermediate code.
    """

    registers: int = 0
    stack: int = 0
    shared: int = 0
    instructions: int = 0
    local: int = 0
    wide_loads: int = 0
    wide_stores: int = 0
    tensor: int = 0
    float_atomics: int = 0
    bfloat16: int = 0


OPCODES = {
    "local": re.compile(r"\b(LDL|STL)\b"),
    "wide_loads": re.compile(r"\bLDG(STS)?\.E(\.\w+)*\.128\b"),
    "wide_stores": re.compile(r"\bSTG\.E(\.\w+)*\.128\b"),
    "tensor": re.compile(r"\b([DHIQU]?G?MMA\.\d|UTC[A-Z]*MMA\b)"),
    "float_atomics": re.compile(r"\b(ATOM|ATOMG|ATOMS|RED|REDG)\.\S*(F16|F32|F64|BF16)"),
}

INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?!NOP)")
NOTEWORTHY = re.compile(r"LDL|STL|\.128|MMA|ATOM|RED")  # quick to see that most lines are not


def tool(name: str) -> Path:
    """Path of a CUDA binary utility in Triton's wheel.

    Raises:
        FileNotFoundError: Triton is not installed, or its wheel carries no such tool.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the audit needs Triton's cuobjdump: pip install triton")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"Triton's wheel carries no {name} at {path}")
    return path


def read_kernels(library: Path) -> dict[str, dict[str, Kernel]]:
    """Every kernel of a library: ``{architecture: {kernel: what it uses}}``."""
    kernels: dict[str, dict[str, Kernel]] = defaultdict(dict)
    architecture = name = ""
    kernel = Kernel()
    resources = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for line in _dump(library, "-res-usage"):
        if found := re.match(r"arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        elif found := resources.search(line):
            registers, stack = int(found[1]), int(found[2]) + int(found[4])
            kernels[architecture][name] = Kernel(registers, stack, int(found[3]))
    for line in _dump(library, "-sass"):
        if found := re.match(r"arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            name = found[1]
            # Sources that share a kernel bring a copy each: the last one is as good as the first.
            resource = kernels[architecture][name]
            kernel = Kernel(resource.registers, resource.stack, resource.shared)
            kernels[architecture][name] = kernel
        elif INSTRUCTION.match(line):
            kernel.instructions += 1
            if NOTEWORTHY.search(line):
                for field, pattern in OPCODES.items():
                    if pattern.search(line):
                        setattr(kernel, field, getattr(kernel, field) + 1)
    names = demangled(sorted({name for each in kernels.values() for name in each}))
    return {
        architecture: {names[name]: kernel for name, kernel in each.items()}
        for architecture, each in sorted(kernels.items())
    }


def read_triton_kernels() -> dict[str, dict[str, Kernel]]:
    """Every Triton kernel, compiled for the architectures, types and layouts of its audit.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, which leaves nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: unset it, so that Triton compiles")
    from tools.triton_kernels import VARIANTS, compile_kernels

    kernels: dict[str, dict[str, Kernel]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        for variant in VARIANTS:
            for compiled in compile_kernels(variant):
                cubin.write_bytes(compiled.cubin)
                # The listing of a cubin, unlike that of a library, does not say what it is for.
                ((_, each),) = read_kernels(cubin).items()
                (kernel,) = each.values()
                kernel.shared = compiled.shared
                kernel.bfloat16 = len(compiled.bfloat16_arithmetic)
                kernels[f"sm_{variant.arch}"][f"{TRITON}{compiled.name}"] = kernel
    return kernels


def _dump(library: Path, what: str) -> list[str]:
    command = [tool("cuobjdump"), what, library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def demangled(names: list[str], target: str = "device") -> dict[str, str]:
    """Short names such as ``label_map_pixels<4, float>``.

    Args:
        names: mangled ones.
        target: the inline namespace of device code: "device", or "emulated" in the emulator.
    """
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    result = {}
    for name, full in zip(names, text.stdout.splitlines(), strict=True):
        full = full.replace("densesiam::half", "__half")  # the emulator's own types
        full = full.replace("densesiam::bfloat16", "__nv_bfloat16")
        short = re.sub(rf"densesiam::({target}::)?", "", full.removeprefix("void "))
        result[name] = re.sub(r"\(.*", "", re.sub(r"\((\w+)\)(?=[\w-])", "", short))
    return result


def broken_rules(architecture: str, name: str, kernel: Kernel) -> list[str]:
    """What the project promises of every kernel, and this one breaks."""
    problems = []
    if kernel.stack or kernel.local:
        problems.append(f"{kernel.stack} bytes of stack, {kernel.local} local accesses, not 0")
    if kernel.float_atomics:
        problems.append(f"{kernel.float_atomics} floating-point atomics, not 0")
    if reads_packs(name) and not kernel.wide_loads:
        problems.append("no 16-byte loads, though its inputs are aligned")
    if multiplies(name) and not kernel.tensor:
        problems.append("no tensor-core instructions")
    if kernel.bfloat16:
        problems.append(f"{kernel.bfloat16} kinds of arithmetic on bfloat16, not 0")
    if kernel.shared > SHARED:
        problems.append(f"{kernel.shared} bytes of shared memory, and some GPUs have {SHARED}")
    return [f"{architecture} {name}: {problem}" for problem in problems]


def multiplies(name: str) -> bool:
    """Whether a kernel promises its products to tensor cores."""
    if name.startswith(f"{TRITON}region_pool."):  # consumer GPUs have none for float64
        return not re.search(r"_log_sum|_add_parts|float64", name)
    return name.startswith("region_pool_") and not re.search("double|_operands", name)


def reads_packs(name: str) -> bool:
    """Whether a kernel is the variant for aligned inputs."""
    source = r"(Planar|Pixels)Source<\w+, [248]>|SampledSource<\w+, [248],"
    direct = r"^((overlap_sample|roi_align)\w*_pixels|label_map_pixels)<(\w+Taps, )?[248],"
    whole_planes = r"^overlap_sample\w*_narrow<"
    pooled = r"^region_pool_\w+<\d+, \w+, true"  # regions, channels last, packs of features
    return (
        bool(re.search(f"{source}|{direct}|{whole_planes}|{pooled}", name))
        or "count_pairs<true, " in name
    )


def regressions(now: dict[str, dict[str, Kernel]], before: dict) -> list[str]:
    """What is worse than in the baseline; what is not in both is passed over."""
    problems = []
    for architecture, kernels in now.items():
        for name, kernel in kernels.items():
            old = before.get(architecture, {}).get(name)
            if old is None:
                continue
            for field, factor, margin in (
                ("registers", 1, 8),
                ("instructions", 1.1, 32),
                ("shared", 1, 1024),
            ):
                if field in old and getattr(kernel, field) > factor * old[field] + margin:
                    change = f"{field} {old[field]} -> {getattr(kernel, field)}"
                    problems.append(f"{architecture} {name}: {change}")
            for field in ("wide_loads", "wide_stores", "tensor"):
                if getattr(kernel, field) == 0 and old[field] > 0:
                    problems.append(f"{architecture} {name}: {field} {old[field]} -> 0")
    return problems


def read_baseline(built: Collection[str] = (OLDEST,)) -> dict:
    """The committed numbers, of those kernels that were made here as they were made there.

    Triton's are compared where its version is the same, CUDA's where the library is built for the
    same oldest architecture, whose intermediate code every other is made of. What another compiler
    makes is neither better nor worse work of this project.

    Args:
        built: architectures of the CUDA library.
    """
    if not BASELINE.exists():
        return {}
    baseline = json.loads(BASELINE.read_text())
    others: set[bool] = set()  # whether those made otherwise are Triton's
    made, here = baseline.pop("triton", None), importlib.metadata.version("triton")
    if made != here:
        print(f"the baseline is of Triton {made}, not {here}: its kernels are held to rules alone")
        others.add(True)
    if OLDEST not in built:
        print(f"the baseline is of a library for {OLDEST} too: this one is held to rules alone")
        others.add(False)
    for each in baseline.values():
        for name in [name for name in each if name.startswith(TRITON) in others]:
            del each[name]
    return baseline


def write_baseline(kernels: dict[str, dict[str, Kernel]]) -> None:
    """One line a kernel, so that a change of one is a change of one line.

    The numbers of a backend, or of one of its architectures, that was not audited stay.
    """

    def of_triton(name: str) -> bool:
        return name.startswith(TRITON)

    rows: dict[str, dict[str, dict]] = defaultdict(dict)
    audited_here = {(each, of_triton(name)) for each, found in kernels.items() for name in found}
    kept = json.loads(BASELINE.read_text())
    triton = kept.pop("triton")
    if any(is_triton for _, is_triton in audited_here):
        triton = importlib.metadata.version("triton")
    for architecture, each in kept.items():
        for name, numbers in each.items():
            if (architecture, of_triton(name)) not in audited_here:
                rows[architecture][name] = numbers
    for architecture, audited in kernels.items():
        rows[architecture] |= {name: asdict(kernel) for name, kernel in audited.items()}
    lines = [f'"triton": "{triton}"']
    for architecture, each in sorted(rows.items()):
        entries = (f"{json.dumps(n)}: {json.dumps(k)}" for n, k in sorted(each.items()))
        lines.append(f"{json.dumps(architecture)}: {{\n" + ",\n".join(entries) + "\n}")
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def print_table(kernels: dict[str, dict[str, Kernel]]) -> None:
    """One line a kernel function, the worst or the sum over its variants."""
    fields = (
        "variants",
        "registers",
        "stack",
        "shared",
        "instr.",
        "local",
        "128 loads",
        "128 stores",
        "tensor",
        "f atom",
    )
    print(f"{'arch':7s} {'kernel':42s} " + " ".join(f"{f:>10s}" for f in fields))
    for architecture, each in kernels.items():
        families: dict[str, list[Kernel]] = defaultdict(list)
        for name, kernel in each.items():
            families[name.split("<")[0]].append(kernel)
        for family, members in sorted(families.items()):
            numbers = [
                len(members),
                max(k.registers for k in members),
                max(k.stack for k in members),
                max(k.shared for k in members),
                max(k.instructions for k in members),
                sum(k.local for k in members),
                sum(k.wide_loads for k in members),
                sum(k.wide_stores for k in members),
                sum(k.tensor for k in members),
                sum(k.float_atomics for k in members),
            ]
            print(f"{architecture:7s} {family:42s} " + " ".join(f"{n:10d}" for n in numbers))


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    backends = ("cuda", "triton")
    parser.add_argument("--backend", nargs="+", default=backends, choices=backends)
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    options = parser.parse_args(arguments)
    kernels: dict[str, dict[str, Kernel]] = defaultdict(dict)
    if "cuda" in options.backend:
        if not options.library.exists():
            print(f"there is no {options.library}: build it first (FORCE_CUDA=1)", file=sys.stderr)
            return 2
        kernels |= read_kernels(options.library)
    built = list(kernels) or [OLDEST]
    if "triton" in options.backend:
        for architecture, each in read_triton_kernels().items():
            kernels[architecture] |= each
    print_table(kernels)
    problems = [
        problem
        for architecture, each in kernels.items()
        for name, kernel in each.items()
        for problem in broken_rules(architecture, name, kernel)
    ]
    if options.update:
        write_baseline(kernels)
    else:
        problems += regressions(kernels, read_baseline(built))
    print(f"{sum(map(len, kernels.values()))} kernels, {len(problems)} problems")
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
