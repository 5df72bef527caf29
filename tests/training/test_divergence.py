"""NaN and infinity end a training, and never reach a file."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from densesiam import cli
from densesiam.methods import DenseSiamSegmentation
from densesiam.models.weights import read_state_dict
from densesiam.training.checkpoints import read_checkpoint, read_file
from densesiam.training.divergence import DivergenceError, Finite
from tests.methods.support import tiny
from tests.training.earlier.commands import checkpoint, prepare
from tests.training.support import Break, fit
from tests.transfer.support import error

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("how", "step"), [("input", 5), ("weight", 5), ("gradient", 6)], ids=lambda x: str(x)
)
def test_the_first_bad_step_is_named(how, step, value):
    # A gradient breaks the weights, and so the next step.
    with pytest.raises(
        DivergenceError, match=f"no longer finite at step {step} .*loss nan"
    ) as caught:
        fit(tiny(), [Break(5 if how != "gradient" else step - 1, how, value), Finite(8)], steps=40)
    assert "learning rate 0.05 in precision 32-true" in str(caught.value)
    assert "gradient_clip_val" in str(caught.value)


def test_it_is_looked_for_every_nth_step_and_never_between():
    seen = []

    class Looks(Finite):
        def look(self, trainer):
            seen.append((trainer.global_step, len(self._steps)))
            super().look(trainer)

    fit(tiny(), [Looks(8)], steps=20)
    assert seen == [(8, 8), (16, 8), (20, 4)]


def test_no_checkpoint_is_written_after_the_last_good_one(tmp_path):
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in (3, 5):
                trainer.save_checkpoint(good if trainer.global_step == 3 else bad)

    # The last step's gradient: its loss is finite, its weights are not.
    with pytest.raises(DivergenceError, match=r"at step 5 \d+ of \d+ tensors hold NaN.*projector"):
        fit(tiny(), [Break(4, "gradient"), Save(), Finite(100)], steps=20, saves=tmp_path)
    assert good.is_file()
    assert not bad.exists()


def test_steps_that_a_scaler_leaves_out_are_no_such_case(monkeypatch):
    """Without the scaler's GPU: what looks has only to know that there is one."""
    monkeypatch.setattr("densesiam.training.divergence._scaled", lambda trainer: True)
    fit(tiny(), [Break(5, "input"), Heal(), Finite(8)], steps=20)
    with pytest.raises(DivergenceError, match="at step 8 "):
        fit(tiny(), [Break(7, "weight"), Finite(8)], steps=40)


class Heal(Callback):
    """Leave a step out whose gradient is not finite, and undo what it did to running statistics."""

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.state = {name: t.clone() for name, t in model.state_dict().items()}

    def on_before_optimizer_step(self, trainer, model, optimizer):
        if not model.latest["loss"].isfinite():
            torch.nn.Module.load_state_dict(model, self.state)
            for parameter in model.parameters():
                parameter.grad = None


def test_a_command_ends_non_zero_and_keeps_its_checkpoint(tmp_path, capsys):
    args = prepare("fit", tmp_path)
    assert cli.main(args) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    more = [
        "--ckpt_path",
        "last",
        "--trainer.max_epochs",
        "9",
        "--model.lr",
        "1e30",
        "--change_settings",
        "true",
    ]
    said = error(capsys, *args, *more)
    assert "no longer finite at step" in said
    assert "at learning rate 1e+30" in said
    assert last.read_bytes() == before
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "failed"


@pytest.fixture
def broken(tmp_path):
    """A checkpoint with one weight that is not finite."""
    content = torch.load(checkpoint("fit"), weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("encoder.backbone."))
    content["state_dict"][name][0] = torch.inf
    torch.save(content, tmp_path / "broken.ckpt")
    return tmp_path / "broken.ckpt"


def test_whatever_reads_weights_refuses_them(broken, tmp_path, capsys):
    expected = "holds NaN or infinity in 1 of"
    args = prepare("fit", tmp_path)
    for command in (
        ["predict", broken, tmp_path / "photos", "--output", tmp_path / "out"],
        ["export", broken, "--format", "timm", "--output", tmp_path / "out.safetensors"],
        [*args, "--ckpt_path", broken],
        [*args, "--model.weights", broken],
    ):
        assert expected in error(capsys, *command)
    with pytest.raises(ValueError, match=expected):
        read_checkpoint(broken)
    with pytest.raises(ValueError, match=expected):
        read_state_dict(broken)
    with pytest.raises(ValueError, match=expected):
        DenseSiamSegmentation.load_from_checkpoint(broken)


def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "flipped.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(4000.0)}}, path)
    whole = path.read_bytes()
    assert read_file(path, "")["state_dict"]["weight"][5] == 5
    refused = 0
    for place in range(300, len(whole) - 300, len(whole) // 40):
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        try:
            found = read_file(path, "expected another")
        except ValueError:
            refused += 1
        else:  # such as the padding between entries, which nobody reads
            assert torch.equal(found["state_dict"]["weight"], torch.arange(4000.0))
    assert refused > 30
