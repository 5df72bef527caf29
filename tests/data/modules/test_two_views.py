from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from densesiam.data import (
    ClassTable,
    Draw,
    Evaluation,
    Images,
    LabelledImages,
    SegmentationViews,
    TwoCrops,
)
from densesiam.data.modules.two_views import SegmentationData
from tests.data.support import noise, save_images

VIEWS = SegmentationViews(16, 32, 32)


@pytest.fixture
def folder(tmp_path):
    return save_images(tmp_path / "set", [(40, 30), (30, 50), (33, 33), (64, 32), (36, 36)])


def epochs(data, count):
    """All tensors of some epochs, as Lightning would ask for them."""
    loader = data.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def test_the_number_of_workers_changes_nothing(folder):
    runs = []
    for num_workers in (0, 1, 2):
        data = SegmentationData(
            str(folder), views=VIEWS, batch_size=4, samples_per_epoch=8, num_workers=num_workers
        )
        assert data.train_dataloader().persistent_workers == (num_workers > 0)
        runs.append(epochs(data, 2))
    for run in runs[1:]:
        for batches, expected in zip(run, runs[0], strict=True):
            for batch, reference in zip(batches, expected, strict=True):
                assert all(torch.equal(batch[key], reference[key]) for key in reference)
    first, second = ([tuple(c) for b in e for c in b["crop1"].tolist()] for e in runs[0])
    assert len(set(first) | set(second)) == 16, "every draw of every epoch is fresh"


class Recorder(LightningModule):
    """Keeps what Lightning hands to the training step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["index"].tolist(), batch["crop1"]))
        return self.weight * batch["view1"].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, max_epochs, directory, resume=None):
    model = Recorder()
    # What `densesiam fit` writes: at the end of an epoch, before Lightning has counted it.
    checkpoint = ModelCheckpoint(
        directory, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = Trainer(
        callbacks=[checkpoint],
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_tells_the_epoch_from_the_start_and_on_resuming(folder, tmp_path, num_workers):
    def data():
        return SegmentationData(str(folder), views=VIEWS, batch_size=2, num_workers=num_workers)

    whole = fit(data(), 3, tmp_path)
    images = Images(folder, VIEWS)
    assert [epoch for epoch, *_ in whole.seen] == [0, 0, 1, 1, 2, 2]
    for epoch, indices, crops in whole.seen:
        expected = torch.stack([images[Draw(i, epoch)]["crop1"] for i in indices])
        assert torch.equal(crops, expected)
    fit(data(), 2, tmp_path)
    resumed = fit(data(), 3, tmp_path, resume=tmp_path / "last.ckpt")
    for got, expected in zip(resumed.seen, whole.seen[4:], strict=True):
        assert got[:2] == expected[:2]
        assert torch.equal(got[2], expected[2])


def on_process(data, rank, world_size, epoch=0):
    progress = SimpleNamespace(current=SimpleNamespace(ready=epoch, processed=epoch))
    fit_loop = SimpleNamespace(epoch_progress=progress)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=fit_loop)
    return data


def test_processes_get_disjoint_parts(folder):
    def share(rank):
        data = SegmentationData(str(folder), views=VIEWS, batch_size=2, samples_per_epoch=10)
        loader = on_process(data, rank, 2, epoch=4).train_dataloader()
        return torch.cat([batch["crop1"] for batch in loader])

    first, second = share(0), share(1)
    assert len(first) == len(second) == 4, "full batches only"
    assert len(torch.cat([first, second]).unique(dim=0)) == 8


def test_sample_photos_and_two_crops():
    data = SegmentationData("samples", views=TwoCrops(16), batch_size=4, samples_per_epoch=12)
    batches = list(data.train_dataloader())
    assert [tuple(batch["view2"].shape) for batch in batches] == [(4, 3, 16, 16)] * 3


def test_validation(tmp_path):
    images = save_images(tmp_path / "images", [(40, 30), (30, 50), (33, 33)])
    (tmp_path / "labels").mkdir()
    for i, size in enumerate([(30, 40), (50, 30), (33, 33)]):
        Image.fromarray(np.full(size, i, np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    table = ClassTable(["a", "b", "c"])
    folders = images, tmp_path / "labels"
    assert SegmentationData().val_dataloader() == []

    cropped = LabelledImages(*folders, table, transform=Evaluation(16, 16))
    loader = SegmentationData(val=cropped, val_batch_size=2).val_dataloader()
    batches = list(loader)
    assert [len(batch["image"]) for batch in batches] == [2, 1]
    assert torch.cat([batch["label"] for batch in batches]).amax(dim=(1, 2)).tolist() == [0, 1, 2]
    assert set(batches[0]) == {"image", "label", "box", "source_size", "index"}

    # On two processes the second one's share is filled up with images that count nowhere.
    for size, index, labels in ((1, [[1], [0]], [[1], [255]]), (2, [[2]], [[2]])):
        data = on_process(SegmentationData(val=cropped, val_batch_size=size), 1, 2)
        batches = list(data.val_dataloader())
        assert [batch["index"].tolist() for batch in batches] == index
        assert [batch["label"].amax(dim=(1, 2)).tolist() for batch in batches] == labels
    data = on_process(SegmentationData(val=cropped, val_batch_size=3), 1, 2)
    (batch,) = data.val_dataloader()
    assert batch["label"].unique().tolist() == [255]

    native = SegmentationData(val=LabelledImages(*folders, table), val_batch_size=3)
    assert [batch["index"].tolist() for batch in native.val_dataloader()] == [[0], [1], [2]]
    samples = [native.val[i] for i in range(3)]
    with pytest.raises(ValueError, match="share a batch: 40 x 30, 33 x 33, 30 x 50 pixels"):
        native.collate(samples)


def test_prediction(folder):
    loader = SegmentationData(predict=str(folder)).predict_dataloader()
    batches = list(loader)
    assert [tuple(batch["image"].shape) for batch in batches[:2]] == [
        (1, 3, 30, 40),
        (1, 3, 50, 30),
    ]
    assert batches[1]["path"] == [str(folder / "1.png")]
    assert batches[1]["source_size"].tolist() == [[50, 30]]
    one = SegmentationData(predict=str(folder / "2.png"), predict_transform=Evaluation(resize=16))
    (batch,) = one.predict_dataloader()
    assert batch["image"].shape == (1, 3, 16, 16)
    assert len(SegmentationData(predict="samples").predict_dataloader()) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0"),
        ({"val_batch_size": 0}, "val_batch_size must be at least 1, got 0"),
        ({"samples_per_epoch": 0}, "samples_per_epoch must be at least 1, got 0"),
        ({"num_workers": -1}, "must not be negative, got -1, 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationData(**options)


def test_a_folder_is_looked_through_once(folder, monkeypatch):
    made = []
    make = SegmentationData.training_set
    monkeypatch.setattr(SegmentationData, "training_set", lambda self: made.append(1) or make(self))
    data = SegmentationData(str(folder), views=VIEWS, batch_size=2)
    assert data.num_batches() == 2
    assert data.num_batches(2) == 1
    for _ in range(2):  # PiCIE asks once an epoch
        assert len(data.train_dataloader().dataset) == 5
    assert made == [1]


def test_missing_data(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no training data: give data\.train"):
        SegmentationData().train_dataloader()
    with pytest.raises(ValueError, match="nothing to predict: give `predict`"):
        SegmentationData().predict_dataloader()
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        SegmentationData(str(tmp_path / "nowhere")).train_dataloader()
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        SegmentationData(predict=str(tmp_path / "nowhere")).predict_dataloader()
    with pytest.raises(NotADirectoryError, match="got a file"):
        SegmentationData(str(folder / "1.png")).train_dataloader()


def test_fewer_images_than_the_batch(folder):
    with pytest.raises(ValueError, match=r"fewer images than the batch: 5 samples an epoch on 1 "):
        SegmentationData(str(folder), batch_size=8).train_dataloader()
    data = SegmentationData(str(folder), batch_size=4, samples_per_epoch=6)
    with pytest.raises(ValueError, match=r"6 samples an epoch on 2 process.*one batch of 4"):
        on_process(data, 0, 2).train_dataloader()


def test_configuration(folder, tmp_path):
    noise(8, 8).convert("L").save(tmp_path / "0.png")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationData, "data")
    config = parser.parse_string(
        f"""
        data:
          train: {folder}
          views:
            class_path: densesiam.data.SegmentationViews
            init_args:
              size: [24, 32]
              crop: null
              photometric: {{hue: 0.05, blur_sigma: [0.1, 1.0]}}
          val:
            class_path: densesiam.data.LabelledImages
            init_args:
              images: {folder}
              labels: {folder}
              classes: {{names: [a, b], values: {{7: 0, 8: 1}}, colours: [[0, 0, 0], [1, 1, 1]]}}
              groups: {{g: [a, b]}}
              transform: {{resize: 32, crop: 32}}
          predict_transform: {{resize: 64}}
          batch_size: 4
        """
    )
    data = parser.instantiate(config).data
    assert data.views.size == (24, 32)
    assert data.views.photometric.blur_sigma == (0.1, 1.0)
    assert data.val.transform == Evaluation(32, 32)
    assert list(data.val.classes.names) == ["g"]
    assert data.predict_transform == Evaluation(64)
    # As LightningCLI saves it: dropping nulls would bring the default crop back.
    assert parser.parse_string(parser.dump(config, skip_unset=False)) == config
