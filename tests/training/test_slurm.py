"""Under SLURM: no command takes a checkpoint that was not asked for."""

import json

import pytest
import torch

from densesiam import cli
from densesiam.training.options import TrainerOptions, build_trainer
from tests.training.earlier.commands import checkpoint, prepare
from tests.transfer.support import results, same, tensors


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of one process, in a working directory with another run's checkpoint."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name, value in {
        "JOB_ID": "1",
        "JOB_NAME": "train",
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
        "NNODES": "1",
        "NODELIST": "localhost",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    def leave(command):
        content = torch.load(checkpoint(command), weights_only=True)
        for tensor in content["state_dict"].values():
            if tensor.is_floating_point():
                tensor.add_(1.0)
        torch.save(content, "hpc_ckpt_3.ckpt")

    return leave


@pytest.mark.parametrize("command", ["fit", "pretrain", "picie", "probe segmentation"])
def test_a_new_training_is_new(command, job, tmp_path, monkeypatch):
    job(command)
    args = prepare(command, tmp_path)
    assert cli.main(args) == 0
    with monkeypatch.context() as elsewhere:
        for name in ("JOB_ID", "JOB_NAME", "NTASKS", "PROCID", "LOCALID", "NODEID"):
            elsewhere.delenv(f"SLURM_{name}")
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


def test_lightning_requeues_nothing(job, monkeypatch):
    for name in ("NTASKS", "NTASKS_PER_NODE"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    options = TrainerOptions(accelerator="cpu", devices=2)
    trainer = build_trainer(options, [], logger=False)
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment).__name__ == "SLURMEnvironment"
    assert environment.auto_requeue is False
