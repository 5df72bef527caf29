"""Every array that a kernel is given has its shape beside it: `// [B, C, P]`, `# [B, C, P]`.

Pointers have none, and Triton's parameters not even a type.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = [*ROOT.glob("csrc/cpu/*.cpp"), *ROOT.glob("csrc/cpu/*.h")]
CUDA = sorted(ROOT.glob("csrc/cuda/**/*.cuh"))
TRITON = sorted(ROOT.glob("kernels/*.py"))

BOUNDS = r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)"
CUDA_KERNEL = re.compile(rf"__global__ void(?:\s+{BOUNDS})?\s+(\w+)\(([^{{]*)\)\s*\{{")
CPU_FUNCTION = re.compile(r"^(?:[\w:<>]+ )+(\w+)\((?!const char\*)([^;{}]*?)\)\s*\{", re.MULTILINE)
# What a parameter of another kind is: a number, a word, a loss, or the shape itself.
SCALAR = re.compile(r"(?:const )?(?:unsigned|bool|int|A|std::int64_t|Layout|Rebalance)$")
SHAPE = re.compile(r"(?:const )?(?:\w*(?:Shape|Split)(?:<\w+>)?|Tiling|Maps|SampleTiles|Rois|Axis)")
# Of structures: their members have shapes.
STRUCTURE = re.compile(r"(?:LossOutput|LabelOutput|LabelStatistics|ClassCounts|Parts)<")
TRITON_SCALARS = {"batch", "channels", "pixels", "classes", "regions", "count", "splits", "steps"}


def parameters(text):
    """(type, name, whether its shape follows) of each parameter of a C++ function."""
    found, depth, start = [], 0, 0
    code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), text)
    ends = []
    for at, character in enumerate(code):
        depth += (character in "<(") - (character in ">)")
        if character == "," and depth == 0:
            ends.append(at)
    for end in [*ends, len(code)]:
        declared = " ".join(code[start:end].split())
        last = start + len(code[start:end].rstrip())
        type_, name = re.fullmatch(r"(.*?)\s*(\w+)", declared).groups()
        found.append((type_, name, re.match(r",?\s*// \[", text[last:]) is not None))
        start = end + 1
    return found


def without_shape(text):
    return [
        name
        for type_, name, shaped in parameters(text)
        if not shaped and not SCALAR.match(type_) and not STRUCTURE.match(type_)
        if not SHAPE.match(type_)
    ]


def test_of_every_cuda_kernel():
    kernels = [match for path in CUDA for match in CUDA_KERNEL.finditer(path.read_text())]
    assert len(kernels) == sum(path.read_text().count("__global__ void") for path in CUDA)
    assert not [(kernel[1], names) for kernel in kernels if (names := without_shape(kernel[2]))]


def test_of_every_structure_of_cuda_kernels():
    found = 0
    for path in CUDA:
        for struct in re.finditer(r"^struct (\w+) \{\n(.*?)^\};", path.read_text(), re.M | re.S):
            if STRUCTURE.match(f"{struct[1]}<"):
                found += 1
                lines = struct[2].splitlines()
                members = [line for line in lines if "*" in line and "(" not in line]
                assert not [line for line in members if not re.search(r"\w+;\s*// \[", line)]
    assert found == STRUCTURE.pattern.count("|") + 1


def test_of_every_function_of_the_cpu():
    """Of those with a pointer; parameters that hold one are theirs too."""
    found = 0
    for path in CPU:
        for function in CPU_FUNCTION.finditer(path.read_text()):
            arrays = [p for p in parameters(function[2]) if "*" in p[0]]
            found += len(arrays)
            assert all(shaped for *_, shaped in arrays), (path.name, function[1], arrays)
    assert found > 60


def triton_kernels():
    for path in TRITON:
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and re.search(rf"launch\(\s*{node.name},", source):
                yield pytest.param(source.splitlines(), node, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize(("lines", "kernel"), list(triton_kernels()))
def test_of_every_triton_kernel(lines, kernel):
    for argument in kernel.args.args:
        constant = argument.annotation is not None  # tl.constexpr
        if constant or argument.arg in TRITON_SCALARS or argument.arg.startswith("shape"):
            continue
        line = lines[argument.lineno - 1]
        assert re.search(rf"\b{argument.arg},  # \[", line), argument.arg
