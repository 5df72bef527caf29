"""Runs that are stopped, killed, refused or moved: they go on as if nothing had happened."""

import json
import shutil
import signal
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data._utils import signal_handling

from densesiam import cli
from densesiam.evaluation import ClusterMetrics
from densesiam.training.checkpoints import CheckpointConfig, check_settings, read_file, whole_epochs
from densesiam.training.interrupts import StopAndSave
from densesiam.training.lock import LOCK
from densesiam.transfer import SegmentationTransfer
from tests.training import children
from tests.training.earlier.commands import prepare
from tests.training.kills import Kills
from tests.training.support import LONGER, command, send, send_to_all, state
from tests.transfer.support import error, results, same, save_labelled, tensors


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", LONGER)
def test_a_run_stopped_within_epochs_ends_as_one_that_was_not(
    name, workers, steps, tmp_path, monkeypatch
):
    args = [*command(name, tmp_path), "--data.num_workers", str(workers)]
    assert cli.main([*args, "--output", str(tmp_path / "whole")]) == 0
    whole, steps[:] = list(steps), []

    for step, number, code in ((1, signal.SIGTERM, 143), (2, signal.SIGINT, 130), (5, 10, 138)):
        steps.before[step] = send_to_all(number)
        # Lightning has put back what there was before torch watched its workers: as in a process
        # of its own, torch is to do so anew.
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        assert cli.main(args) == code
        assert len(steps) == step + 1  # the step that was running has ended
        assert state(tmp_path / "run") == "interrupted"
        left = read_file(tmp_path / "run" / "checkpoints" / "last.ckpt", "")
        assert left["global_step"] == step + 1
    assert cli.main(args) == 0
    assert steps == whole
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert state(tmp_path / "run") == "finished"


def test_a_run_stopped_before_its_scores_gets_them(tmp_path, monkeypatch, capsys):
    args = command("transfer segmentation", tmp_path)
    assert cli.main([*args, "--output", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTransfer, "count", lambda *_: send(signal.SIGTERM)())
        assert cli.main(args) == 143
    assert state(tmp_path / "run") == "finished"
    assert not (tmp_path / "run" / "results.json").exists()
    before = files(tmp_path / "run")
    assert cli.main(args) == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    after = files(tmp_path / "run")
    assert after.keys() - before.keys() == {tmp_path / "run" / "results.json"}
    assert {path: after[path] for path in before} == before
    capsys.readouterr()
    assert cli.main(args) == 0
    assert capsys.readouterr().out.count("\n") == 1  # finished already


def test_the_epochs_of_a_checkpoint(steps, tmp_path):
    args = command("fit", tmp_path)
    for step, epochs in ((1, 0), (3, 1), (5, 1)):  # four steps an epoch
        steps.before[step] = send(signal.SIGTERM)
        assert cli.main(args) == 143
        left = read_file(tmp_path / "run" / "checkpoints" / "last.ckpt", "")
        assert whole_epochs(left) == epochs


def test_auto_begins_goes_on_and_finishes(tmp_path, capsys, steps):
    args = command("fit", tmp_path)

    # Killed before the first checkpoint: what lies there is in nobody's way.
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    steps.before[0] = die
    with pytest.raises(Killed):
        cli.main(args)
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()
    # So is what it had written half of.
    for name in (".config.partial.yaml", ".summary.partial.json", ".lock-1", "..lock-1.partial"):
        (tmp_path / "run" / name).touch()
    assert cli.main(args) == 0
    capsys.readouterr()
    assert cli.main(args) == 0
    assert "finished already" in capsys.readouterr().out
    assert cli.main([*args, "--trainer.max_epochs", "3"]) == 0


def test_tensorboard_has_no_point_twice(tmp_path, steps):
    args = [*command("fit", tmp_path), "--trainer.log_every_n_steps", "1"]
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"

    class Killed(BaseException):
        pass

    def die():
        assert read_file(path, "")["global_step"] == 4  # the sixth and the seventh come again
        raise Killed

    steps.before[6] = die
    with pytest.raises(Killed):
        cli.main(args)
    assert cli.main(args) == 0
    events = EventAccumulator(str(next((tmp_path / "run" / "logs").rglob("events.*")).parent))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/")]
    assert tags
    for tag in tags:
        points = [event.step for event in events.Scalars(tag)]
        assert points == sorted(set(points)), tag


def test_auto_leaves_other_things_alone(tmp_path, capsys):
    args = command("fit", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diary.txt").touch()
    assert "holds something else than a run" in error(capsys, *args)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["diary.txt"]


def test_checkpoints_come_by_the_clock(tmp_path, monkeypatch, steps):
    saved = []
    save = StopAndSave.on_save_checkpoint
    monkeypatch.setattr(
        StopAndSave,
        "on_save_checkpoint",
        lambda self, trainer, *args: (
            saved.append(trainer.global_step) or save(self, trainer, *args)
        ),
    )
    clock = iter(range(0, 10**6, 60))  # a minute passes whenever somebody looks
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("densesiam.training.interrupts.time", fake)
    args = [*command("fit", tmp_path), "--trainer.checkpoint_every_n_minutes", "2"]
    assert cli.main(args) == 0
    assert saved == [2, 4, 6, 8]


def test_a_second_signal_does_not_wait(tmp_path, steps):
    def twice():
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()

    steps.before[2] = twice
    assert cli.main(command("fit", tmp_path)) == 143
    assert len(steps) == 2
    assert not (tmp_path / "run" / "checkpoints").exists()


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--model.warmup_epochs", "9"], "lower warmup_epochs"),
        (["--model.region_start", "5"], "lower region_start"),
        (["--data.batch_size", "999"], "fewer images than the batch"),
        (["--data.train", "/nowhere"], "/nowhere"),
    ],
)
def test_a_refused_start_leaves_nothing(tmp_path, capsys, settings, message):
    args = command("fit", tmp_path)[:-2]
    assert message in error(capsys, *args, *settings)
    assert not (tmp_path / "run").exists()
    assert cli.main(args) == 0


@pytest.mark.parametrize(
    "settings",
    [
        ["--model.num_classes", "4"],
        ["--model.warmup_epochs", "9"],
        ["--data.batch_size", "999"],
        ["--trainer.max_epochs", "2"],
    ],
)
def test_a_refused_resume_changes_no_file(tmp_path, capsys, settings):
    args = command("fit", tmp_path)[:-2]
    assert cli.main(args) == 0
    before = files(tmp_path / "run")
    longer = ["--trainer.max_epochs", "3", "--model.lr", "0.04"]
    error(capsys, *args, "--ckpt_path", "last", *longer, *settings)
    assert files(tmp_path / "run") == before


def test_a_moved_run_remembers_its_best_score(tmp_path, monkeypatch, capsys):
    args = command("fit", tmp_path)
    labelled = save_labelled(tmp_path / "val", 2)
    args += [f"--data.val={json.dumps(labelled)}", "--trainer.validate_every_n_epochs", "1"]
    assert cli.main(args) == 0
    best = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    # Its settings still name the old folder: nothing begins there unasked.
    its_own = ["fit", "--config", str(tmp_path / "moved" / "config.yaml"), "--ckpt_path"]
    for checkpoint in ("auto", "last"):
        said = error(capsys, *its_own, checkpoint)
        assert f"give --output {tmp_path / 'moved'} if the run was moved or copied" in said
    assert not (tmp_path / "run").exists()
    # Two more epochs of nonsense, which score worse.
    compute = ClusterMetrics.compute
    monkeypatch.setattr(
        ClusterMetrics, "compute", lambda self: {**compute(self), "miou": torch.tensor(0.0)}
    )
    more = ["--output", str(tmp_path / "moved"), "--trainer.max_epochs", "4"]
    assert cli.main([*args, *more]) == 0
    assert (tmp_path / "moved" / "checkpoints" / "best.ckpt").read_bytes() == best


def test_other_settings_are_told_one_by_one(tmp_path, capsys):
    args = command("fit", tmp_path)
    assert cli.main(args) == 0
    capsys.readouterr()
    more = ["--trainer.max_epochs", "3", "--model.lr", "0.04", "--seed", "5"]
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    said = error(capsys, *args, *more, "--trainer.log_every_n_steps", "7")
    assert "model.lr: 0.05 -> 0.04\n  seed: 0 -> 5\nGive it the same again" in said
    assert "--change_settings true" in said
    assert "max_epochs" not in said
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    more += ["--trainer.log_every_n_steps", "7"]
    assert cli.main([*args, *more, "--change_settings", "true"]) == 0
    said = capsys.readouterr().out
    for line in ("  model.lr: 0.05 -> 0.04", "  seed: 0 -> 5", "  trainer.max_epochs: 2 -> 3"):
        assert line in said
    assert "log_every" not in said
    # Said for this once: it is no setting of the run, and other commands read these.
    assert "change_settings" not in (tmp_path / "run" / "config.yaml").read_text()
    assert cli.main([*args, *more, "--trainer.max_epochs", "4"]) == 0
    said = capsys.readouterr().out
    assert "model.lr" not in said  # the checkpoint has the new one
    assert "max_epochs: 3 -> 4" in said


def test_other_images_are_refused_and_the_same_may_lie_elsewhere(tmp_path, capsys):
    args = [*command("fit", tmp_path), "--data.train", str(tmp_path / "moved")]
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert cli.main(args) == 0
    (tmp_path / "moved").rename(tmp_path / "photos")
    args += ["--data.train", str(tmp_path / "photos"), "--trainer.max_epochs"]
    assert cli.main([*args, "3"]) == 0
    shutil.copy(tmp_path / "photos" / "0.png", tmp_path / "photos" / "8.png")
    said = error(capsys, *args, "4")
    assert "was trained on other images: 8 images, names" in said
    assert "and now 9 images, names" in said
    assert cli.main([*args, "4", "--change_settings", "true"]) == 0


def test_another_number_of_processes_is_refused_whatever_the_setting_says(tmp_path, capsys):
    args = [*command("fit", tmp_path), "--trainer.devices"]
    assert cli.main([*args, "auto"]) == 0  # one, on a CPU
    more = ["--trainer.max_epochs", "3"]
    before = files(tmp_path / "run")
    said = error(capsys, *args, "2", *more)
    assert "was trained by 1 process(es), and now 2 would train together" in said
    assert files(tmp_path / "run") == before
    assert cli.main([*args, "1", *more]) == 0


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ({"model": {"lr": 1}}, {"model": {"lr": 2}}, True),
        ({"data": {"views": {"init_args": {"size": 8}}}}, {"data": {"views": None}}, True),
        ({"data": {"views": None}}, {"data": {"views": {"init_args": {"size": 8}}}}, True),
        ({"data": {"views": {"size": 8}}}, {"data": {"views": {"size": 9}}}, True),
        ({"data": {"train": {"class_path": "A"}}}, {"data": {"train": {"class_path": "B"}}}, True),
        ({"data": {"train": {"root": "a"}}}, {"data": {"train": {"root": "b"}}}, False),
        ({"data": {"val": {"root": "a"}}}, {"data": {"val": {"root": "b"}}}, False),
        ({"trainer": {"sync_batchnorm": True}}, {"trainer": {"sync_batchnorm": "auto"}}, False),
        ({"trainer": {"sync_batchnorm": True}}, {"trainer": {"sync_batchnorm": False}}, True),
        ({"trainer": {"devices": 1}}, {"trainer": {"devices": 2}}, True),
        ({"model": {"old": 1}}, {"model": {"new": 1}}, False),
    ],
)
def test_what_decides_on_the_losses(before, now, refused):
    checkpoint = {CheckpointConfig.KEY: yaml.safe_dump(before)}
    expected = pytest.raises(ValueError, match="change_settings") if refused else nullcontext()
    with expected:
        check_settings("a.ckpt", checkpoint, yaml.safe_dump(now))
    check_settings("a.ckpt", checkpoint, yaml.safe_dump(now), changes=True)


@pytest.mark.parametrize("name", ["fit", "transfer segmentation"])
def test_a_kill_is_found_out_by_whoever_comes_next(name, tmp_path, capsys):
    run = tmp_path / "run"
    new = [*command(name, tmp_path)[:-2], "--trainer.checkpoint_every_n_minutes", "1e-9"]
    auto = [*new, "--ckpt_path", "auto"]
    last = ["--ckpt_path", "last", "--output", str(run)]
    if name == "fit":
        labelled = json.dumps(save_labelled(tmp_path / "val", 2))
        scored = ["validate", *new[1:3], f"--data.val={labelled}", *last]
        comers = ((new, 1), ([*auto, "--seed", "5"], 1), (scored, 0))
    else:
        comers = (([*new, *last, "--evaluate", "true"], 0),)
    for comer, code in comers:
        assert children.run(auto, step=3) == -signal.SIGKILL
        left = files(run)
        heard = datetime.fromtimestamp((run / LOCK).stat().st_mtime, UTC)
        assert cli.main(comer) == code
        assert f"{run}: the run was killed; it was last heard of at " in capsys.readouterr().out
        summary = json.loads((run / "summary.json").read_text())
        assert summary.pop("state") == "killed"
        told = datetime.fromisoformat(summary.pop("last_heard_of"))
        assert 0 <= (told - heard).total_seconds() + 1 < 60
        # All else is as it was.
        before = json.loads(left.pop(run / "summary.json"))
        assert {**summary, "state": "running"} == before
        del left[run / LOCK]
        now = files(run)
        assert {path: now[path] for path in left} == left
        if code:
            assert now.keys() == {*left, run / "summary.json"}
    assert cli.main(auto) == 0
    assert "was killed" not in capsys.readouterr().out
    assert state(run) == "finished"
    assert "last_heard_of" not in (run / "summary.json").read_text()


def test_a_run_at_work_is_not_taken_for_killed(tmp_path, steps):
    args = command("fit", tmp_path)
    steps.before[2] = lambda: children.run(args)
    steps.before[3] = lambda: states.append(state(tmp_path / "run"))
    states = []
    assert cli.main(args) == 0
    assert states == ["running"]


@pytest.mark.parametrize("name", ["fit", "probe segmentation"])
def test_a_gpu_that_is_not_there(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = [*prepare(name, tmp_path), "--trainer.accelerator", "gpu"]
    assert "trainer.accelerator is gpu, and torch finds none" in error(capsys, *args)
    assert not (tmp_path / "run").exists()


def test_ten_kills_lose_nothing(tmp_path):
    result = Kills(tmp_path, seed=0).run(10)
    assert result.lost == 0, result
    assert result.tried == 10
    assert result.within >= 3, result  # killed with a checkpoint on the disk, or it proves little
