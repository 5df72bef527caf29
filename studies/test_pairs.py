"""Differences of pairs, and their intervals."""

import math

import pytest

from studies.pairs import difference, paired


def test_the_interval_is_students():
    # Differences 1, 2, 3: mean 2, standard deviation 1, t of 2 degrees of freedom 4.303.
    half = 4.3027 / math.sqrt(3)
    expected = f"+2.00 ({2 - half:+.2f} to {2 + half:+.2f})"
    assert difference([10, 20, 30], [11, 22, 33], 2) == expected


def test_rows_have_what_all_their_runs_have():
    pairs = [({"mIoU": 10.0, "last loss": 2.0}, {"mIoU": m, "last loss": 2.0}) for m in (11, 13)]
    lines = paired({("a", "b"): pairs, ("alone",): pairs[:1]}).splitlines()
    assert lines[2].startswith("| a, b | 2 | mIoU | 10.0 | 12.0 | +2.0 (-10.7 to +14.7) |")
    assert lines[3].startswith("| a, b | 2 | last loss | 2.0000 | 2.0000 | ")
    assert len(lines) == 4


@pytest.mark.parametrize("pairs", [[], [({"mIoU": 1.0}, {"mIoU": 1.0})]])
def test_one_seed_says_nothing_of_an_interval(pairs):
    assert len(paired({("a",): pairs}).splitlines()) == 2
