"""The small trainings whose checkpoints are kept, each by the command that a user would type."""

from pathlib import Path

from tests.cli.support import save_photos
from tests.transfer.support import save_classes, save_coco, save_labelled, write

HERE = Path(__file__).parent

BACKBONE = {"backbone": "test_byobnet", "strides": [4], "fpn": False, "weights": None}
TRAINER = {"accelerator": "cpu", "log_every_n_steps": 1, "validate_every_n_epochs": 10}
SEGMENTER = {**BACKBONE, "num_classes": 3, "lr": 0.05}
SUPERVISED = {**BACKBONE, "lr": 0.01, "max_steps": 2}


def _two_views(folder, **model):
    data = {
        "train": str(save_photos(folder / "photos")),
        "batch_size": 4,
        "views": {
            "class_path": "SegmentationViews",
            "init_args": {"size": 32, "resize": 32, "crop": None},
        },
        "predict_transform": {"resize": 32},
    }
    return {"model": {**SEGMENTER, **model}, "data": data, "trainer": {"max_epochs": 1}}


def fit(folder):
    return _two_views(folder, aux_classes=4, hidden_channels=4, region_start=0)


def picie(folder):
    return _two_views(folder)


def pretrain(folder):
    model = {
        **BACKBONE,
        "grid": 3,
        "num_regions": 5,
        "hidden_channels": 12,
        "predictor_channels": 6,
        "region_channels": 8,
        "region_start": 0,
        "lr": 0.05,
        "schedule": "fixed",
    }
    views = {"class_path": "TwoCrops", "init_args": {"size": 32, "scale": [0.6, 1.0]}}
    data = {"train": str(save_photos(folder / "photos")), "batch_size": 4, "views": views}
    return {"model": model, "data": data, "trainer": {"max_epochs": 1}}


def _labelled(folder):
    return {
        "train": save_labelled(folder / "train"),
        "val": save_labelled(folder / "val", 2),
        "size": 48,
        "batch_size": 2,
    }


def transfer_segmentation(folder):
    return {"model": {**SUPERVISED, "head": "linear"}, "data": _labelled(folder)}


def probe_segmentation(folder):
    model = {name: value for name, value in SUPERVISED.items() if name != "fpn"}
    return {"model": model, "data": _labelled(folder)}


def probe_classification(folder):
    data = {name: str(save_classes(folder / name, 2)) for name in ("train", "val")}
    model = {name: SUPERVISED[name] for name in ("backbone", "weights", "lr", "max_steps")}
    return {
        "model": {**model, "stride": 4},
        "data": {**data, "size": 32, "resize": 40, "batch_size": 4},
    }


def transfer_detection(folder):
    model = {
        "backbone": "test_byobnet",
        "sizes": [64],
        "max_size": 64,
        "proposals": 16,
        "sampled_proposals": 8,
        "max_steps": 1,
    }
    data = {name: save_coco(folder / name, 2) for name in ("train", "val")}
    return {"model": model, "data": {**data, "batch_size": 2, "val_batch_size": 2}}


COMMANDS = {
    "fit": fit,
    "pretrain": pretrain,
    "picie": picie,
    "transfer detection": transfer_detection,
    "transfer segmentation": transfer_segmentation,
    "probe segmentation": probe_segmentation,
    "probe classification": probe_classification,
}


def checkpoint(command):
    """The kept checkpoint of a command."""
    return HERE / f"{command.replace(' ', '-')}.ckpt"


def prepare(command, folder):
    """Make a command's data in a folder; what to type after ``densesiam`` to train on it."""
    settings = COMMANDS[command](folder)
    trainer = {**TRAINER, **settings.pop("trainer", {})}
    if command == "pretrain":
        del trainer["validate_every_n_epochs"]
    path = write(folder / "tiny.yaml", output=str(folder / "run"), trainer=trainer, **settings)
    return [*command.split(), "--config", str(path)]
