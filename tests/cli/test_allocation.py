"""Large blocks stay with a command's process."""

import os
import subprocess
import sys

import pytest

# 48 MiB, above what glibc maps at most by itself; a page is 4 KiB.
CODE = """
import resource, sys, torch
from densesiam.cli.allocation import keep_memory
print(keep_memory())
x = torch.zeros(12 * 2**20)
for _ in range(3):
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    x + 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / (4 * 12 * 2**10))
"""


def run(**variables):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    was_set, share = result.stdout.split()
    return was_set == "True", float(share)


def test_a_block_that_was_freed_is_used_again():
    was_set, share = run()
    if not was_set:
        pytest.skip("this C library has no mallopt")
    assert share < 0.1


def test_settings_in_the_environment_stay():
    was_set, _ = run(MALLOC_MMAP_THRESHOLD_="65536")
    assert not was_set
