"""The transfer study on a small data set of CamVid's layout, at a step or two a run."""

import json
import sys

import pytest

from densesiam import cli
from densesiam._writing import write_json
from densesiam.cli import probe, transfer
from studies.support import needs_weights
from studies.transfer import study as transfer_study
from studies.transfer.study import INITIALISATIONS, PRETRAININGS, SEGMENTATIONS, USES, Run

SOON = ["--model.region_start", "0"]  # no share of so few steps is left for RegionSim
SHORT = {
    "pretrain": ["--trainer.max_epochs", "1", "--data.samples_per_epoch", "4", *SOON],
    "probe": ["--model.max_steps", "2"],
    "transfer": ["--model.max_steps", "2", "--model.warmup_steps", "1"],
    "fit": ["--trainer.max_epochs", "1", "--trainer.validate_every_n_epochs", "1", *SOON],
    "picie": ["--trainer.max_epochs", "1", "--trainer.validate_every_n_epochs", "1"],
}


@pytest.fixture
def calls(monkeypatch):
    """The command's calls, each made short."""
    made, run = [], cli.run

    def short(arguments):
        made.append(arguments)
        batch = [] if arguments[1] == "knn" else ["--data.batch_size", "4"]
        run([*arguments, *(SHORT[arguments[0]] if batch else []), *batch])

    monkeypatch.setattr(cli, "run", short)
    return made


def study(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["transfer_study", *map(str, arguments)])
    transfer_study.main()


def test_what_is_trained_is_scored(camvid, tmp_path, calls, monkeypatch, capsys):
    arguments = ["--data", camvid, "--output", tmp_path, "--seeds", 3, "--names", "densesiam"]
    study(monkeypatch, *arguments, "--kinds", "pretrain", *USES)
    assert [call[:2] for call in calls[1:]] == [command for _, command, _ in USES.values()]
    checkpoint = str(tmp_path / "pretrain-densesiam-3" / "checkpoints" / "last.ckpt")
    for call in calls[1:]:
        assert call[call.index("--model.weights") + 1] == checkpoint
        assert call[call.index("--data.val.images") + 1] == str(camvid / "test" / "images")
    for kind in USES:
        result = json.loads((tmp_path / f"{kind}-densesiam-3.json").read_text())
        assert 0 < result["scores"]["miou"] < result["scores"]["accuracy"] <= 1
        assert result["processor_seconds"] > 0

    # What is there is not run again.
    calls.clear()
    capsys.readouterr()
    study(monkeypatch, *arguments, "--kinds", "pretrain", *USES)
    assert calls == []
    row = next(line for line in capsys.readouterr().out.splitlines() if "| DenseSiam |" in line)
    assert row.count("(1)") == 7


@needs_weights
@pytest.mark.parametrize("name", ["densesiam-equal", "picie"])
def test_segmentation(name, camvid, tmp_path, calls, monkeypatch):
    arguments = ["--data", camvid, "--output", tmp_path, "--seeds", 0, "--kinds", "segment"]
    study(monkeypatch, *arguments, "--names", name)
    assert [call[0] for call in calls] == [SEGMENTATIONS[name][1]]
    result = json.loads((tmp_path / f"segment-{name}-0.json").read_text())
    assert 0 < result["scores"]["miou"] < 1


def test_every_run_comes_after_what_it_starts_from():
    runs = list(transfer_study.runs([0, 1]))
    assert (
        len(set(runs))
        == len(runs)
        == 2 * (len(PRETRAININGS) + len(USES) * len(INITIALISATIONS) + len(SEGMENTATIONS))
    )
    for run in runs:
        if run.kind in USES and run.name != "random":
            assert runs.index(Run("pretrain", run.name, run.seed)) < runs.index(run)


def test_only_the_length_differs_where_only_the_length_should(tmp_path):
    def settings(kind, name):
        return {*Run(kind, name, 0).arguments(tmp_path, tmp_path)}

    for short, long in (("simsiam", "simsiam-long"), ("densesiam", "densesiam-long")):
        differing = settings("pretrain", long) - settings("pretrain", short)
        folder = str(tmp_path / f"pretrain-{long}-0")
        assert differing == {"--trainer.max_epochs", "80", folder}
    differing = settings("segment", "densesiam-equal") - settings("segment", "densesiam")
    assert differing == {"5", str(tmp_path / "segment-densesiam-equal-0")}


def test_the_table_has_means_and_spread(tmp_path):
    for seed, miou in enumerate((0.1, 0.2, 0.3)):
        run = Run("probe", "random", seed)
        write_json(run.file(tmp_path), {"scores": {"miou": miou, "accuracy": 0.5}})
        run = Run("segment", "picie", seed)
        scores = {"miou": 2 * miou, "accuracy": 0.7}
        write_json(run.file(tmp_path), {"scores": scores, "processor_seconds": 10.0 + seed})
    lines = transfer_study.table(tmp_path).splitlines()
    assert "| random | 20.0 ± 10.0 (3) | 50.0 ± 0.0 (3) | - | - | - | - | - |" in lines
    assert "| PiCIE | 40.0 ± 20.0 (3) | 70.0 ± 0.0 (3) | 11.0 ± 1.0 (3) |" in lines


def test_bfloat16_starts_from_bfloat16(tmp_path):
    def arguments(kind, precision="bf16-mixed"):
        return Run(kind, "densesiam", 0, precision).arguments(tmp_path, tmp_path)

    assert "--trainer.precision" not in arguments("knn")
    for kind in ("pretrain", "probe", "finetune", "segment"):
        assert arguments(kind)[-2:] == ["--trainer.precision", "bf16-mixed"]
        assert arguments(kind, "32-true")[-2:] == ["--trainer.precision", "32-true"]
    start = arguments("probe")[arguments("probe").index("--model.weights") + 1]
    assert start == str(tmp_path / "pretrain-densesiam-0-bf16-mixed" / "checkpoints" / "last.ckpt")


def test_bfloat16_is_paired_by_seed(tmp_path):
    for seed in range(3):
        for precision, more in (("32-true", 0.0), ("bf16-mixed", 0.01 * seed)):
            run = Run("probe", "densesiam", seed, precision)
            scores = {"miou": 0.2 + more, "accuracy": 0.5}
            epochs = [{"train/loss": 2.0}, {"train/loss": 1.0 + more}]
            result = {"scores": scores, "epochs": epochs, "processor_seconds": 1.0}
            write_json(run.file(tmp_path), result)
    lines = transfer_study.table(tmp_path).splitlines()
    assert "| DenseSiam, probe | 3 | mIoU | 20.0 | 21.0 | +1.0 (-1.5 to +3.5) |" in lines
    assert any("| last loss | 1.0000 | 1.0100 | +0.0100 (" in line for line in lines)


def test_a_folder_without_camvid_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        study(monkeypatch, "--data", tmp_path, "--output", tmp_path)
    assert "--data must be CamVid's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "name"), [("transfer", "finetune"), ("probe", "probe")], ids=["finetune", "probe"]
)
def test_settings_are_understood(task, name):
    tasks = {"transfer": transfer.TASKS, "probe": probe.TASKS}[task]
    config = str(transfer_study.HERE / f"{name}.yaml")
    tasks["segmentation"].parser().parse_args(["--config", config])
