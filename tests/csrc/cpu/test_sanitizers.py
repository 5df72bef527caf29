"""The op suite on CPU kernels built with AddressSanitizer and UndefinedBehaviorSanitizer."""

from pathlib import Path

import pytest

from tests.csrc.cpu.build import COMPILER, build_cpu, runtime_library
from tests.csrc.cpu.suite import ELSEWHERE, run_suite

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.mark.faults
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_cpu_kernels_are_clean():
    # The C++ library comes along: the sanitizer looks up its functions when it starts.
    preload = [runtime_library("libasan.so"), runtime_library("libstdc++.so.6")]
    if not all(Path(library).is_absolute() for library in preload):
        pytest.skip("the compiler has no shared AddressSanitizer")
    library = build_cpu("sanitized", *SANITIZE)
    # Python and torch free nothing at exit: leaks are not looked for.
    environment = {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    # Vectors of other widths end elsewhere.
    for capability in ("baseline", "avx2", "avx512"):
        run_suite(
            library,
            {**environment, "DENSESIAM_CPU_CAPABILITY": capability},
            without=[*ELSEWHERE, "random_calls"],  # four minutes each
        )
