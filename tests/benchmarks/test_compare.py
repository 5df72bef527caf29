import random
from dataclasses import replace

import pytest

from benchmarks.__main__ import main
from benchmarks.compare import compare
from benchmarks.measure import Timing

from .synthetic import results, row

ROWS = 60


def run(seed, scale=None, slow=(), noise=0.03):
    """A run of many rows; those in `slow` have their candidates' times scaled."""
    rng = random.Random(seed)
    rows = [row(rng, name=f"row {k}", scale=scale if k in slow else {}) for k in range(ROWS)]
    if noise != 0.03:
        rows = [row(rng, name=f"row {k}", noise=noise) for k in range(ROWS)]
    return results(rows)


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1, 0.3])
def test_noise_is_quiet(noise):
    alarms = 0
    for seed in range(8):
        found = compare(run(2 * seed, noise=noise), run(2 * seed + 1, noise=noise))
        assert found.compared == ROWS
        alarms += len(found.slower) + len(found.faster)
    assert alarms <= 1  # of 480 a noise; one comparison out of a hundred may have one


def test_a_fifth_slower_is_found_and_only_that():
    for seed in range(8):
        slow = {3, 30, 55}
        found = compare(run(2 * seed), run(2 * seed + 1, {"cpu": 1.2}, slow))
        assert {c.row.name for c in found.slower} == {f"row {k}" for k in slow}
        assert not found.faster
        assert all(c.ratio == pytest.approx(1.2, rel=0.1) for c in found.slower)


def test_a_fifth_faster_is_found_too():
    found = compare(run(0), run(1, {"cpu": 1 / 1.2}, {5}))
    assert [c.row.name for c in found.faster] == ["row 5"]
    assert not found.slower


def test_a_slower_machine_is_no_change():
    everyone = dict.fromkeys(("eager", "compile", "release", "cpu", "clone"), 1.3)
    found = compare(run(0), run(1, everyone, range(ROWS)))
    assert not found.slower
    assert found.drift == pytest.approx(1.3, rel=0.03)


def test_ours_slower_on_a_slower_machine_is_found():
    everyone = dict.fromkeys(("eager", "compile", "release", "clone"), 1.3) | {"cpu": 1.3 * 1.2}
    found = compare(run(0), run(1, everyone, range(ROWS)))
    assert len(found.slower) == ROWS


def test_a_neighbours_burst_of_work_is_no_change():
    burst = dict.fromkeys(("eager", "compile", "release", "cpu", "clone"), 1.5)
    found = compare(run(0), run(1, burst, {10, 11, 12}))
    assert not found.slower


def test_a_noisy_row_needs_more_than_a_quiet_one():
    def one(median, spread):
        times = {"cpu": Timing(median, median - spread / 2, median + spread / 2)}
        return results([replace(row(), milliseconds=times | {"clone": Timing(4, 4, 4)})])

    assert compare(one(8, 0.2), one(9.6, 0.2)).slower
    assert not compare(one(8, 3), one(9.6, 3)).slower
    assert compare(one(8, 3), one(16, 3)).slower


def test_growing_memory_is_found():
    before = row()
    after = replace(before, extra_bytes=before.extra_bytes | {"cpu": 900_000})
    assert compare(results([before]), results([after])).memory == [(after, "cpu")]
    assert not compare(results([after]), results([before])).memory


def test_rows_of_other_shapes_are_not_compared():
    found = compare(results([row()]), results([row(name="another")]))
    assert found.compared == 0
    assert [r.name for r in found.missing] == ["segmentation"]


def test_command(tmp_path, capsys):
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    for path, result in zip(paths, (run(0), run(1), run(2, {"cpu": 1.2}, {7})), strict=True):
        result.write(path)
    assert main(["compare", str(paths[0]), str(paths[1])]) == 0
    assert "nothing changed beyond the noise" in capsys.readouterr().out
    assert main(["compare", str(paths[0]), str(paths[2])]) == 1
    assert "SLOWER 1.2" in capsys.readouterr().out
    assert main(["compare", str(paths[0]), str(paths[2]), "--least", "0.5"]) == 0


def test_command_on_something_else(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text('{"rows": [{"op": "overlap_sample"}]}')
    with pytest.raises(SystemExit):
        main(["compare", str(path), str(path)])
    assert "holds no results of `python -m benchmarks`" in capsys.readouterr().err
