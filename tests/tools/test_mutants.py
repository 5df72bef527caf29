"""Planted faults: what is drawn, and which tests are to notice it."""

from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="cosmic-ray comes with `make mutants`")

from tools import mutants

SOURCE = '''
def larger(a: int | None, *, b: int | None = 2) -> int | None:
    """Either."""
    return a if a > b else b
'''


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "densesiam" / "ops").mkdir(parents=True)
    (tmp_path / "densesiam" / "ops" / "pair.py").write_text(SOURCE)
    return tmp_path


def test_what_is_drawn_is_python_and_changes_what_runs(tree):
    drawn = mutants.draw(tree, ["densesiam/ops"], 100, seed=0)
    codes = [mutant.code(tree) for mutant in drawn]
    assert len(drawn) >= 2  # at the least the default and the comparison
    for code in codes:
        assert code.count("int | None") == 3, code
        assert mutants.change(SOURCE, code)
    assert len(set(codes)) == len(codes)


def test_a_seed_draws_the_same_again_and_another_other_ones(tree):
    first, again, other = (mutants.draw(tree, ["densesiam"], 2, seed) for seed in (0, 0, 5))
    assert first == again != other


def test_a_module_is_tested_by_its_own_file_or_by_its_layer():
    own = mutants.tests_of(Path("densesiam/ops/label_map.py"), mutants.ROOT)
    assert own == ["tests/ops/test_label_map.py", "tests/ops/test_citizens.py"]
    shared = mutants.tests_of(Path("densesiam/ops/_checks.py"), mutants.ROOT)
    assert "tests/ops/test_citizens.py" in shared
    assert len(shared) == len(mutants.SHARED)
    region = Path("densesiam/methods/losses/region.py")
    assert mutants.tests_of(region, mutants.ROOT) == ["tests/methods"]


def test_a_fault_is_noticed_in_a_tree_of_its_own(tree):
    module = Path("densesiam/ops/pair.py")
    (tree / "densesiam/ops/__init__.py").write_text("")
    tests = tree / "tests/ops/test_pair.py"
    tests.parent.mkdir(parents=True)
    tests.write_text("from densesiam.ops.pair import larger\n\ndef test(): assert larger(1) == 2\n")
    (tree / "densesiam/__init__.py").write_text("")
    assert not mutants.noticed(tree, module)
    (tree / module).write_text(SOURCE.replace(">", "<"))
    assert mutants.noticed(tree, module)
    (tree / module).write_text(SOURCE.replace("return", "while True: pass\n    return"))
    assert mutants.noticed(tree, module, limit=1)


def test_another_path_is_named(tree):
    with pytest.raises(SystemExit, match="densesiam/none: there is no such file"):
        mutants.draw(tree, ["densesiam/none"], 1, 0)
