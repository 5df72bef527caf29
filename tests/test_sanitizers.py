"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
# Without optimisation: half the time to build, and nothing is optimised away before it is checked.
SANITIZE = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Every op, forward and backward, at sizes around the widths of vectors, tiles, bands and groups.
SWEEP = """
import itertools
import torch
from densesiam import _libraries

def load(library):
    if library != "_cpu":
        return "it is not under test"
    torch.ops.load_library("{library}")

_libraries.load = load
from densesiam import ops

torch.manual_seed(0)
torch.set_num_threads(2)

def run(function, *inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    function(*leaves).sum().backward()

with ops.use_backend("cpu"):
    for dtype, last in itertools.product((torch.float64, torch.float32, torch.bfloat16), (0, 1)):
        def maps(*shape):
            x = torch.randn(shape).to(dtype)
            return x.contiguous(memory_format=torch.channels_last) if last else x
        for batch, channels, height, width in ((2, 1, 1, 1), (1, 3, 2, 5), (2, 21, 9, 7),
                                               (1, 18, 13, 21), (0, 4, 3, 3)):
            p, z = maps(batch, channels, height, width), maps(batch, channels, height, width)
            boxes = torch.rand(batch, 4) * 3 - 1
            weight = torch.arange(batch) > 0
            for size in (1, (2, 40), (34, 17)):
                run(lambda p: ops.overlap_sample(p, boxes, size), p)
                for kind in ("cosine", "cross_entropy"):
                    run(lambda p: ops.overlap_similarity(p, z, boxes, None, size, kind, weight), p)
                ops.label_map(p, size)
            for kind, reduction in itertools.product(("cosine", "cross_entropy"), ("mean", "none")):
                run(lambda p: ops.pixel_similarity(p, z, kind, weight, reduction), p)
            run(lambda p: ops.pseudo_label_loss(p, z, "inverse"), p)
            run(lambda p: ops.pseudo_label_loss(p, None, "none", None, "none"), p)
            run(lambda p, z: ops.region_pool(p, z[:, : channels // 2 + 1], normalize=True), p, z)
    for dtype in (torch.uint8, torch.int64):
        values = torch.randint(5, (2, 300), dtype=dtype)
        ops.confusion_matrix(values, values.flip(1), 5, 4, 4)
print("swept")
"""


def runtime_library(name):
    """Full path of one of the compiler's libraries; the bare name where there is none."""
    question = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(question, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_cpu_kernels_are_clean(tmp_path):
    # The C++ library comes along: the sanitizer looks up its functions when it starts.
    preload = [runtime_library("libasan.so"), runtime_library("libstdc++.so.6")]
    if not all(Path(library).is_absolute() for library in preload):
        pytest.skip("the compiler has no shared AddressSanitizer")
    include = Path(torch.__file__).parent / "include"
    flags = [
        *SANITIZE,
        *(
            "-std=c++20",
            "-fPIC",
            "-fvisibility=hidden",
            "-DTORCH_TARGET_VERSION=0x020d000000000000",
        ),
        *("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
    ]

    def compile_source(source):
        target = tmp_path / f"{source.stem}.o"
        subprocess.run([COMPILER, *flags, "-c", source, "-o", target], check=True)
        return target

    sources = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, sources))
    library = tmp_path / "_cpu.so"
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(
        [COMPILER, "-shared", *SANITIZE, *objects, "-o", library, *libraries], check=True
    )
    result = subprocess.run(
        [sys.executable, "-c", SWEEP.replace("{library}", str(library))],
        cwd=ROOT,
        # Python and torch free nothing at exit: leaks are not looked for.
        env={**os.environ, "LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[:4000]
    assert result.stdout == "swept\n"
