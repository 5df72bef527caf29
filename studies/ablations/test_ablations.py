"""The ablations: their rows, and a table of two rows at a tiny budget."""

import pytest
import yaml

from densesiam import cli
from densesiam._writing import write_json
from studies.ablations import study as ablation
from tests.cli.support import parse, save_config, save_photos

ROWS = [(table, row) for table in ablation.COMMANDS for row in ablation.rows_of(table)[1:]]


@pytest.fixture
def config(tmp_path):
    return save_config(tmp_path, save_photos(tmp_path / "photos"))


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_rows_change_their_base_in_what_they_say(table, row, monkeypatch):
    monkeypatch.chdir("/")
    changes = ablation.arguments_of(table, row)
    settings = parse(ablation.COMMANDS[table], ablation.BASES[table], settings=changes)
    for name, value in ablation.ROWS[table][row].items():
        assert settings.model[name] == value


def test_tables_have_the_papers_rows():
    settings = {row.rpartition("_")[0] for row in ablation.rows_of("table4")[1:]}
    assert settings == {"grid", "pixsim", "regionsim", "sample", "global", "start"}
    assert len(ablation.rows_of("table5")) == 1 + 2**3
    assert "collapses" in ablation.published("table4", "global_overlap")
    assert "mid-training" in ablation.published("table4", "start_0.5")
    assert ablation.published("table5", "ce_aux") == "not known to us"


def test_a_table_of_two_rows(config, tmp_path, capsys, monkeypatch):
    output = tmp_path / "table"
    args = ["table4", "--rows", "base", "global_overlap", "--base", str(config), "--epochs", "1"]
    more = ["--output", str(output), "--", "--model.region_start=0"]
    ablation.main([*args, *more])
    lines = (output / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| base", "| global_overlap"]
    assert lines[3].endswith("| on the overlap, training collapses |")
    assert all(
        yaml.safe_load((output / row / "config.yaml").read_text())["model"]["global_extent"] == at
        for row, at in (("base", "image"), ("global_overlap", "overlap"))
    )

    # What is there is not run again; scores are set beside the base's.
    monkeypatch.setattr(cli, "main", None)
    for row, miou in (("base", 0.2), ("global_overlap", 0.15)):
        (output / row / "probe").mkdir()
        write_json(output / row / "probe" / "results.json", {"scores": {"miou": miou}})
    capsys.readouterr()
    ablation.main([*args, *more])
    assert "| 15.0 | -5.0 |" in capsys.readouterr().out


def test_unknown_rows(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["table4", "--rows", "grid_4"])
    assert "no row grid_4; table4 has base, global_image" in capsys.readouterr().err
