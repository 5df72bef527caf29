"""Probes of frozen features: by hand, and called as a user would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densesiam import cli
from densesiam.cli import probe as probe_command
from densesiam.cli import transfer
from densesiam.data import ClassTable, Draw, LabelledImages
from densesiam.data.modules.supervised import ClassifiedData
from densesiam.data.sets.classified import ClassifiedImages
from densesiam.data.sets.crops import LabelledCrops
from densesiam.evaluation.scores import SegmentationScores
from densesiam.transfer.base import Supervised
from densesiam.transfer.probes import (
    LinearClassificationProbe,
    LinearSegmentationProbe,
    NearestNeighbourProbe,
)
from tests.tolerance import assert_close
from tests.transfer.support import (
    error,
    results,
    same,
    save_classes,
    save_labelled,
    tensors,
    write,
)

TRAINER = {"accelerator": "cpu", "log_every_n_steps": 1, "validate_every_n_epochs": 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1}, "must not be negative"),
        ({"schedule": "linear"}, "schedule must be"),
        ({"milestones": [3, 3]}, "rising"),
        ({"schedule": "cosine", "milestones": [3]}, "no milestones"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Supervised(**options)


# Scores


def test_scores_against_counting_by_hand():
    scores = SegmentationScores(3)
    label = torch.tensor([[[0, 0, 1, 255], [1, 1, 0, 255]]])
    prediction = torch.tensor([[[0, 1, 1, 2], [1, 1, 0, 0]]])
    logits = torch.nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()
    scores.update(logits, label)
    result = scores.by_name(["a", "b", "c"])
    assert result["iou/a"] == pytest.approx(2 / 3)
    assert result["iou/b"] == pytest.approx(3 / 4)
    assert result["iou/c"] != result["iou/c"]  # nan: predicted on void alone
    assert result["miou"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert result["accuracy"] == pytest.approx(5 / 6)


# Crops


def test_crops_keep_image_and_label_together(tmp_path):
    """The label is the red channel: so it must be in every crop."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    label = rng.integers(0, 2, (5, 7), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(label).save(tmp_path / "labels" / "0.png")
    picture = np.stack([255 * label, 0 * label, 0 * label], axis=-1)
    Image.fromarray(picture).save(tmp_path / "images" / "0.png")
    source = LabelledImages(tmp_path / "images", tmp_path / "labels", ClassTable(["black", "red"]))
    crops = LabelledCrops(source, (64, 96), scale=(0.5, 2.0))
    seen = set()
    for epoch in range(20):
        sample = crops[Draw(0, epoch)]
        image, labels = sample["image"], sample["label"]
        assert image.shape == (3, 64, 96)
        assert labels.shape == (64, 96)
        inside = labels != 255
        assert torch.all(image[:, ~inside] == 0)
        red = image[0] * 0.229 + 0.485 > 0.5
        # Bilinear against nearest: they may differ along edges.
        assert ((red == labels.bool()) | ~inside).float().mean() > 0.93
        seen.add(bool(inside.all()))
    assert seen == {True, False}
    again = crops[Draw(0, 3)]
    assert torch.equal(again["image"], crops[Draw(0, 3)]["image"])
    assert not torch.equal(again["image"], crops[Draw(0, 4)]["image"])


# Linear probes


def test_segmentation_probe_is_linear_and_trains_no_backbone():
    probe = LinearSegmentationProbe(["a", "b"], backbone="test_resnet", strides=(4, 8)).train()
    trained = {name for name, p in probe.named_parameters() if p.requires_grad}
    assert trained == {
        f"classifier.fpn.laterals.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    assert not any(m.training for m in probe.classifier.backbone.modules())
    assert probe(torch.randn(2, 3, 32, 48)).shape == (2, 2, 8, 12)


def test_segmentation_probe_end_to_end(tmp_path, capsys):
    config = write(
        tmp_path / "tiny.yaml",
        output=str(tmp_path / "run"),
        model={
            "backbone": "test_resnet", "strides": [4, 8], "max_steps": 40, "lr": 0.5,
            "weight_decay": 0, "schedule": "cosine",
        },
        data={
            "train": save_labelled(tmp_path / "train"),
            "val": save_labelled(tmp_path / "val", 3),
            "size": 48,
            "batch_size": 2,
        },
        trainer=TRAINER,
    )  # fmt: skip
    assert cli.main(["probe", "segmentation", "--config", str(config)]) == 0
    # A random backbone tells two colours from grey; ground alone scores 0.29.
    assert results(tmp_path / "run")["scores"]["miou"] > 0.4


def test_classification_probe_end_to_end(tmp_path):
    config = write(
        tmp_path / "tiny.yaml",
        output=str(tmp_path / "run"),
        model={"backbone": "test_resnet", "max_steps": 20, "lr": 0.1, "schedule": "cosine"},
        data={
            "train": str(save_classes(tmp_path / "train")),
            "val": str(save_classes(tmp_path / "val", 3)),
            "size": 64,
            "resize": 64,
            "batch_size": 4,
            "val_batch_size": 4,
        },
        trainer=TRAINER,
    )
    args = ["probe", "classification", "--config", str(config)]
    assert cli.main(args) == 0
    scores = results(tmp_path / "run")["scores"]
    assert scores["top1"] > 0.8  # two colours; half of them by chance
    assert scores["top5"] == 1

    half = [*args, "--model.schedule", "steps", "--model.max_steps"]
    assert cli.main([*half, "4", "--output", str(tmp_path / "whole")]) == 0
    assert cli.main([*half, "2", "--output", str(tmp_path / "half")]) == 0
    assert cli.main([*half, "4", "--output", str(tmp_path / "half"), "--ckpt_path", "last"]) == 0
    assert same(tensors(tmp_path / "half"), tensors(tmp_path / "whole"))


def test_repeated_images_do_not_count():
    probe = LinearClassificationProbe(["a", "b"], backbone="test_resnet").eval()
    images = torch.randn(3, 3, 64, 64)
    found = probe(images).argmax(1)
    probe.count({"image": images, "label": torch.where(torch.arange(3) < 2, found, -1)})
    assert probe.score()["top1"] == 1
    probe.count({"image": images, "label": torch.stack([found[0], 1 - found[1], found[2] * 0 - 1])})
    assert probe.score()["top1"] == 0.5


def test_classes_are_folders(tmp_path, capsys):
    data = ClassifiedImages(save_classes(tmp_path / "train"), 32, None)
    assert data.classes == ["blue", "red"]
    assert [int(data[i]["label"]) for i in range(8)] == [0] * 4 + [1] * 4
    assert torch.equal(data[Draw(0, 1)]["image"], data[Draw(0, 1)]["image"])
    assert not torch.equal(data[Draw(0, 1)]["image"], data[Draw(0, 2)]["image"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(?s)holds no folders.*cat/1\.jpg"):
        ClassifiedImages(tmp_path / "empty", 32, None)
    other = save_classes(tmp_path / "val", classes=("blue", "green"))
    with pytest.raises(ValueError, match="differ in their classes: only one has green, red"):
        _ = ClassifiedData(str(tmp_path / "train"), str(other)).classes
    said = error(
        capsys, "probe", "classification", "--data.train", tmp_path / "none", "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert "is no folder; expected one folder of images for each class" in said


# Nearest neighbours


class Colours(torch.nn.Module):
    """Features that are the pixels themselves, at stride 8."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 8)


def test_neighbours_vote_as_the_equation_says():
    torch.manual_seed(0)
    probe = NearestNeighbourProbe(Colours(), num_classes=3, k=4, tau=0.2, features_per_image=99)
    images = torch.randn(2, 3, 32, 32)
    labels = torch.randint(0, 3, (2, 32, 32))
    labels[0, :8] = 255
    probe.remember(images, labels)
    query = torch.randn(1, 3, 16, 24)
    votes = probe(query)
    assert votes.shape == (1, 3, 2, 3)

    cells = Colours()(images)
    memory, classes = [], []
    for b in range(2):
        for y in range(4):
            for x in range(4):
                label = int(labels[b, 8 * y + 4, 8 * x + 4])
                if label != 255:
                    memory.append(cells[b, :, y, x] / cells[b, :, y, x].norm())
                    classes.append(label)
    feature = Colours()(query)[0, :, 1, 2]
    similarity = torch.stack(memory) @ (feature / feature.norm())
    nearest = similarity.argsort(descending=True)[:4]
    weights = (similarity[nearest] / 0.2).exp()
    expected = torch.zeros(3)
    for i, weight in zip(nearest.tolist(), weights / weights.sum(), strict=True):
        expected[classes[i]] += weight
    # Cosines, divided by 0.2 in the exponent; their errors are relative ones of the votes.
    assert_close(votes[0, :, 1, 2], expected, terms=similarity.numel(), rms=1 / 0.2)


def test_too_few_neighbours_say_so():
    probe = NearestNeighbourProbe(Colours(), num_classes=2, k=20)
    probe.remember(torch.randn(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="20 neighbours are to vote, but only 4"):
        probe(torch.randn(1, 3, 16, 16))


def test_knn_end_to_end(tmp_path, capsys):
    config = write(
        tmp_path / "knn.yaml",
        output=str(tmp_path / "run"),
        model={"backbone": "test_resnet", "strides": [4]},
        data={"train": save_labelled(tmp_path / "a"), "val": save_labelled(tmp_path / "b", 3)},
        knn={"k": 5},
        accelerator="cpu",
    )
    assert cli.main(["probe", "knn", "--config", str(config)]) == 0
    assert "iou/disc" in capsys.readouterr().out
    assert results(tmp_path / "run")["scores"]["miou"] > 0.6
    assert (tmp_path / "run" / "config.yaml").is_file()
    Image.new("L", (3, 2)).save(tmp_path / "b" / "labels" / "1.png")
    said = error(capsys, "probe", "knn", "--config", config, "--output", tmp_path / "again")
    assert "is 3 x 2 pixels, but its image" in said
    assert not (tmp_path / "again").exists()
    (tmp_path / "a" / "labels" / "0.png").unlink()
    said = error(capsys, "probe", "knn", "--config", config, "--output", tmp_path / "again")
    assert "images without a label" in said


# Configurations


def test_every_config_is_understood():
    tasks = {**transfer.TASKS, "probe segmentation": probe_command.TASKS["segmentation"]}
    tasks["classification"] = probe_command.TASKS["classification"]
    folder = Path(cli.__file__).parents[2] / "configs" / "transfer"
    of_task = {
        "coco_r50_1x": "detection",
        "voc07_frcnn": "detection",
        "cityscapes_fcn": "segmentation",
        "voc_fcn": "segmentation",
        "voc_linear": "probe segmentation",
        "imagenet_linear": "classification",
    }
    assert {path.stem for path in folder.glob("*.yaml")} == set(of_task)
    for name, task in of_task.items():
        tasks[task].parser().parse_args(["--config", str(folder / f"{name}.yaml")])
