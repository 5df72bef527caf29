"""The short way to a GPU's report: the kit's stages, and its plain word where there is no GPU."""

import pytest
import torch

from tools import gpu_report
from tools.gpu_kit import visit


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails(tmp_path, capsys):
    assert gpu_report.main(["--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) finds no GPU" in said
    assert len(said.strip().splitlines()) == 1


def test_its_options_are_those_of_the_visit(monkeypatch):
    given = []
    monkeypatch.setattr(visit, "main", lambda root, arguments: given.append((root, arguments)) or 0)
    command = ["--output", "out", "--quick", "--allow-cpu", "--stages", "2", "4", "--", "tests/ops"]
    assert gpu_report.main(command) == 0
    root, options = given[0][0], visit.parser().parse_args(given[0][1])
    assert (root / "pyproject.toml").exists()
    assert (str(options.report), options.quick, options.rehearse) == ("out", True, True)
    assert (options.stages, options.tests) == ([2, 4], ["tests/ops"])
