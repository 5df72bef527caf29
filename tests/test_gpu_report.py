"""The GPU report's form, from results given; and its plain word where there is no GPU."""

import sys

import pytest
import torch

from tools import gpu_report
from tools.gpu_report import Outcome

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a.TestA" name="test_one[x]" />
<testcase classname="tests.test_a" name="test_two"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped message="needs 16 GiB | or more" /></testcase>
<testcase classname="tests.test_a" name="test_four"><error message="fixture" /></testcase>
</testsuite></testsuites>"""  # noqa: E501  # as pytest writes it


@pytest.fixture
def fake(monkeypatch):
    """Stands in for the programs that are run: name -> (exit code, output, JUnit XML)."""
    programs = {
        "pytest": (0, "", JUNIT.replace("failure", "skipped").replace("error", "skipped")),
        "benchmarks": (0, "overlap_sample 1.5 ms\n", ""),
        "densesiam.collect_env": (0, "torch 9.9\n", ""),
    }

    def logged(log, module, *arguments):
        code, text, junit = programs[module]
        for argument in arguments:
            if argument.startswith("--junitxml=") and junit:
                (log.parent / "tests.xml").write_text(junit)
        return code, text

    monkeypatch.setattr(gpu_report, "_logged", logged)
    return programs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_fails(tmp_path, capsys):
    assert gpu_report.main(["--output", str(tmp_path / "out")]) == 2
    assert "there is no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_outcomes_are_read(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    assert gpu_report.read_outcomes(tmp_path / "tests.xml") == [
        Outcome("tests.test_a.TestA::test_one[x]", "passed"),
        Outcome("tests.test_a::test_two", "failed", "assert 1 == 2"),
        Outcome("tests.test_a::test_three", "skipped", "needs 16 GiB | or more"),
        Outcome("tests.test_a::test_four", "error", "fixture"),
    ]


def test_report(fake, tmp_path):
    assert gpu_report.main(["--allow-cpu", "--output", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "- Tests: 1 passed, 3 skipped" in report
    assert "- Verdict: everything passed" in report
    assert "| skipped | `tests.test_a::test_three` | needs 16 GiB / or more |" in report
    assert "overlap_sample 1.5 ms" in report
    assert "torch 9.9" in report
    if not torch.cuda.is_available():
        assert "- GPU: none: nothing here ran on a GPU" in report


@pytest.mark.parametrize(
    ("program", "result", "verdict"),
    [
        ("pytest", (1, "", JUNIT), "pytest ended with 1 (tests.log)"),
        ("pytest", (4, "", ""), "pytest ended with 4 (tests.log); no test passed"),
        ("pytest", (0, "", "<testsuites/>"), "no test passed"),
        ("benchmarks", (1, "", ""), "the benchmarks ended with 1 (benchmarks.log)"),
    ],
)
def test_faults_are_the_verdict(fake, tmp_path, program, result, verdict):
    fake[program] = result
    assert gpu_report.main(["--allow-cpu", "--output", str(tmp_path)]) == 1
    assert f"- Verdict: {verdict}\n" in (tmp_path / "report.md").read_text()


def test_programs_are_run_and_logged(tmp_path):
    log = tmp_path / "tests.log"
    code, said = gpu_report._logged(log, "this")
    assert code == 0
    assert "The Zen of Python" in said
    assert log.read_text() == said
    code, _ = gpu_report._logged(log, "no_such_module_at_all")
    assert code == 1
    assert "No module named no_such_module_at_all" in log.read_text()
    assert sys.executable in log.read_text()
