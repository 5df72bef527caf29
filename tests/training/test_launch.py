"""Launchers: the trainer says which process this is, not the variables of a queue."""

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from densesiam import cli
from densesiam.training import console
from densesiam.training.folders import choose_folder
from densesiam.training.launch import join
from densesiam.training.options import TrainerOptions, probe
from tests.training.earlier.commands import checkpoint, prepare
from tests.transfer.support import error, same, tensors

SHARD = {
    "variables": {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"},
    "SLURM": {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "shards",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "2",
        "SLURM_NODEID": "0",
    },
}
TORCHRUN = {
    **SHARD["variables"],
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "1",
}


@pytest.fixture
def launched(monkeypatch):
    """Set a launcher's variables, and what Lightning makes of them when it is imported."""

    def launch(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(rank_zero_only, "rank", 2)

    yield launch
    console.set_rank(0)


@pytest.mark.parametrize("variables", SHARD.values(), ids=SHARD)
def test_a_training_of_its_own_is_one(variables, launched, tmp_path, capsys):
    args = prepare("fit", tmp_path)
    assert cli.main([*args, "--output", str(tmp_path / "alone")]) == 0
    said = capsys.readouterr().out
    launched(variables)
    assert cli.main(args) == 0
    assert capsys.readouterr().out.count("\n") == said.count("\n")
    files, expected = (
        {path.relative_to(tmp_path / name).parts[0] for path in (tmp_path / name).rglob("*")}
        for name in ("run", "alone")
    )
    assert files == expected
    assert list((tmp_path / "run" / "logs").iterdir())
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "alone"))


@pytest.mark.parametrize("variables", SHARD.values(), ids=SHARD)
def test_finished_results_are_not_overwritten(variables, launched, tmp_path, capsys):
    prepare("fit", tmp_path)
    launched(variables)
    args = ["predict", str(checkpoint("fit")), str(tmp_path / "photos"), "--accelerator", "cpu"]
    args += ["--output", str(tmp_path / "out")]
    assert cli.main(args) == 0
    assert "wrote" in capsys.readouterr().out
    labels = tmp_path / "out" / "labels"
    before = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    assert cli.main(args) == 0  # another of them: nothing is left to do
    assert before == {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    assert "confidence" in error(capsys, *args, "--confidence", "true")


@pytest.mark.parametrize("command", ["fit", "transfer segmentation", "predict"])
def test_processes_that_would_not_work_together_are_refused(command, launched, tmp_path, capsys):
    args = prepare("fit" if command == "predict" else command, tmp_path)
    if command == "predict":
        args = ["predict", str(checkpoint("fit")), str(tmp_path / "photos")]
        args += ["--accelerator", "cpu", "--output", str(tmp_path / "run")]
    launched(TORCHRUN)
    said = error(capsys, *args)
    assert "torchrun has started 4 processes, but 1 would work together" in said
    advice = "set trainer.devices to 2 and trainer.num_nodes to 2, with trainer.accelerator cpu"
    assert ("start it without" if command == "predict" else advice) in said
    assert not (tmp_path / "run").exists()


def test_tasks_of_a_queue_that_work_together_are_counted(launched, monkeypatch):
    launched({**SHARD["SLURM"], "SLURM_NTASKS_PER_NODE": "4"})
    with pytest.raises(ValueError, match=r"srun has started 4 processes, but 2 .*devices to 4$"):
        join(probe(TrainerOptions(accelerator="cpu", devices=2)))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    with pytest.raises(ValueError, match=r"devices to 2 and trainer.num_nodes to 2$"):
        join(probe(TrainerOptions(accelerator="cpu", devices=2)))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    join(probe(TrainerOptions(accelerator="cpu", devices=4)))
    assert not console.first_process()
    assert rank_zero_only.rank == 2


def test_every_process_checks_the_folder(tmp_path, launched):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diary.txt").touch()
    console.set_rank(1)
    with pytest.raises(FileExistsError):
        choose_folder(str(tmp_path / "run"), "")
    assert choose_folder(None, str(tmp_path / "run")) == tmp_path / "run-2"
    # What the first process leaves there for a moment is in nobody's way.
    (tmp_path / "run-2").mkdir()
    for name in (".lock", ".lock-77", ".writable"):
        (tmp_path / "run-2" / name).touch()
    assert choose_folder(None, str(tmp_path / "run")) == tmp_path / "run-2"


def test_lightnings_own_processes_work_together(monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        join(probe(TrainerOptions(accelerator="cpu", devices=2)))
        assert console.first_process() == (rank == "0")
    console.set_rank(0)
