"""Under SLURM: no command takes a checkpoint that was not asked for."""

import json

import pytest

from densesiam import cli
from densesiam.training.options import TrainerOptions, build_trainer
from tests.training.earlier.commands import checkpoint, prepare
from tests.training.slurm import VARIABLES, leave_requeue_file, requeued
from tests.training.support import command as training
from tests.training.support import state
from tests.transfer.support import results, same, tensors


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of one process, in a working directory with another run's checkpoint."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return lambda command: leave_requeue_file(checkpoint(command), ".")


@pytest.mark.parametrize("command", ["fit", "pretrain", "picie", "probe segmentation"])
def test_a_new_training_is_new(command, job, tmp_path, monkeypatch):
    job(command)
    args = prepare(command, tmp_path)
    assert cli.main(args) == 0
    with monkeypatch.context() as elsewhere:
        for name in VARIABLES:
            elsewhere.delenv(name)
        elsewhere.chdir(tmp_path)
        assert cli.main([*args, "--output", str(tmp_path / "alone")]) == 0
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "alone"))


def test_prediction_is_by_the_checkpoint_that_was_named(job, tmp_path, monkeypatch):
    job("fit")
    prepare("fit", tmp_path)
    for folder in ("here", "elsewhere"):
        if folder == "elsewhere":
            (tmp_path / "work" / "hpc_ckpt_3.ckpt").unlink()
        args = [str(checkpoint("fit")), str(tmp_path / "photos"), "--accelerator", "cpu"]
        assert cli.main(["predict", *args, "--output", str(tmp_path / folder)]) == 0
    for path in (tmp_path / "here" / "labels").iterdir():
        assert path.read_bytes() == (tmp_path / "elsewhere" / "labels" / path.name).read_bytes()


def test_scores_are_of_the_checkpoint_that_was_named(job, tmp_path):
    job("transfer segmentation")
    args = prepare("transfer segmentation", tmp_path)
    args += ["--ckpt_path", str(checkpoint("transfer segmentation")), "--evaluate", "true"]
    assert cli.main([*args, "--output", str(tmp_path / "here")]) == 0
    (tmp_path / "work" / "hpc_ckpt_3.ckpt").unlink()
    assert cli.main([*args, "--output", str(tmp_path / "elsewhere")]) == 0
    found = json.dumps(results(tmp_path / "here"))
    assert found == json.dumps(results(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["fit", "transfer segmentation"])
def test_a_job_that_is_taken_up_again_ends_as_one_that_was_not(name, tmp_path):
    args = training(name, tmp_path)
    assert cli.main([*args, "--output", str(tmp_path / "whole")]) == 0
    (tmp_path / "work").mkdir()
    leave_requeue_file(checkpoint(name), tmp_path / "work")
    # Warned in its second step, preempted in its second of the rest, and killed without a word.
    assert requeued(args, tmp_path / "work", steps=(2, 2, 2)) == [138, 143, -9, 0]
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert state(tmp_path / "run") == "finished"
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["hpc_ckpt_3.ckpt"]


def test_lightning_requeues_nothing(job, monkeypatch):
    for name in ("NTASKS", "NTASKS_PER_NODE"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    options = TrainerOptions(accelerator="cpu", devices=2)
    trainer = build_trainer(options, [], logger=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment).__name__ == "SLURMEnvironment"
    assert environment.auto_requeue is False
