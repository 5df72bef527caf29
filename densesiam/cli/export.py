"""``densesiam export``: a trained backbone for other libraries, a trained segmenter as a graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from jsonargparse import ArgumentParser, Namespace

from densesiam._writing import write_json
from densesiam.cli.segmenters import is_learned_from_labels, load_segmenter
from densesiam.export import Backbone, PortableSegmenter, export_segmenter, save_onnx, save_torch
from densesiam.methods import METHODS, Method
from densesiam.reports.naming import Categories, read_categories
from densesiam.training.checkpoints import read_checkpoint, read_file
from densesiam.training.console import say
from densesiam.transfer import SegmentationTransfer

USAGE = "CHECKPOINT --format FORMAT [--output FILE] [--size '[HEIGHT, WIDTH]'] [--any_size false]"

BackboneFormat = Literal["timm", "torchvision", "detectron2"]
SegmenterFormat = Literal["torch", "onnx"]

_SUFFIXES = {
    "timm": ".safetensors",
    "torchvision": ".safetensors",
    "detectron2": ".pkl",
    "torch": ".pt2",
    "onnx": ".onnx",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("checkpoint", type=str, help="The trained model, a .ckpt file.")
    parser.add_argument(
        "--format",
        type=BackboneFormat | SegmenterFormat,
        required=True,
        help="timm, torchvision, detectron2: the backbone, under that library's names. torch "
        "(torch.export's .pt2), onnx: the whole segmenter, from pixels to labels.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="The file. Default: outputs/export/, named after the backbone or checkpoint.",
    )
    parser.add_argument(
        "--size",
        type=tuple[int, int],
        default=(320, 320),
        help="Height and width to trace a segmenter at, such as '[320, 480]'.",
    )
    parser.add_argument(
        "--any_size",
        type=bool,
        default=True,
        help="Whether the segmenter is to take images of other sizes too.",
    )
    parser.add_argument(
        "--names",
        type=str | None,
        help="The names.yaml of a prediction, filled in: the segmenter's labels are the merged and "
        "named categories.",
    )


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    checkpoint = Path(config.checkpoint)
    output = None if config.output is None else Path(config.output)
    if config.format in get_args(BackboneFormat):
        export_backbone(checkpoint, config.format, output)
    else:
        names = None if config.names is None else Path(config.names)
        export_whole(checkpoint, config.format, output, config.size, config.any_size, names)


def export_backbone(checkpoint: Path, layout: BackboneFormat, output: Path | None = None) -> Path:
    """Write a checkpoint's backbone under another library's names, and say how to use it.

    Args:
        checkpoint: of any method.
        layout: whose names.
        output: the file; see ``densesiam export --help`` for the default.

    Returns:
        The file.

    Raises:
        ValueError: the checkpoint is none, or its backbone does not fit the layout.
        OSError: the file exists, or cannot be written.
    """
    model = _load(checkpoint)
    backbone = Backbone.of(model.encoder, model.hparams["backbone"])
    path = _claim(output, f"{backbone.name}-{layout}", layout)
    if layout == "timm":
        backbone.save_timm(path)
        use = f"timm.create_model({backbone.name!r}).load_state_dict(tensors, strict=False)"
    elif layout == "torchvision":
        backbone.save_torchvision(path)
        name = backbone.name.split(".")[0]
        use = f"torchvision.models.{name}().load_state_dict(tensors, strict=False)"
    else:
        backbone.save_detectron2(path)
        use = f"the settings in {path.with_suffix('.yaml')}"
    mean, std = (", ".join(map(str, values)) for values in (backbone.mean, backbone.std))
    say(
        f"wrote {path}: {len(backbone.tensors)} tensors of {backbone.name}, no classifier\n"
        f"use it with: {use}\n"
        f"its images: RGB in [0, 1], less the mean ({mean}), divided by ({std})"
    )
    return path


def export_whole(
    checkpoint: Path,
    form: SegmenterFormat,
    output: Path | None = None,
    size: tuple[int, int] = (320, 320),
    any_size: bool = True,
    names: Path | None = None,
) -> Path:
    """Write a checkpoint's segmenter as a graph, and say what goes in and what comes out.

    Where the categories have names, those of labels or of a file, they lie beside it as JSON.

    Args:
        checkpoint: of a method that segments.
        form: torch or onnx.
        output: the file; see ``densesiam export --help`` for the default.
        size: height and width to trace at.
        any_size: whether other sizes will do too.
        names: a file that names, merges and drops categories, see `read_categories`.

    Returns:
        The file.

    Raises:
        ValueError: the checkpoint is none of a segmenter, the size will not do, or the names are of
            another model.
        OSError: the file exists, or cannot be written.
        ModuleNotFoundError: the packages for ONNX are not installed.
        RuntimeError: onnxruntime computes something else than PyTorch.
    """
    trained = load_segmenter(checkpoint)
    model, categories = trained.model, None
    if names is not None:
        categories = read_categories(names, trained.num_classes)
    elif trained.classes is not None:
        categories = Categories.called(trained.classes, trained.num_classes)
    of = None if names is None or categories is None else torch.from_numpy(categories.of)
    program = export_segmenter(model, size, any_size, of)
    path = _claim(output, checkpoint.stem, form, [".json"] if categories else [])
    (save_torch if form == "torch" else save_onnx)(program, path)
    if categories is not None:
        beside = path.with_suffix(".json")
        void = categories.void if categories.drops else None
        colours = categories.colours.tolist()
        write_json(beside, {"names": categories.names, "colours": colours, "void": void})
        say(f"wrote {beside}: names and colours of the labels")
    multiple = PortableSegmenter(model).multiple
    free = f"sides multiples of {multiple}, from {2 * multiple} on"
    sides = free if any_size else f"{size[0]} x {size[1]} pixels"
    say(
        f"wrote {path}\n"
        f"in:  image, float32 (batch, 3, height, width), RGB in [0, 1], {sides}\n"
        f"out: logits, float32 (batch, {trained.num_classes}, height / {model.encoder.stride}, "
        f"width / {model.encoder.stride}); labels, int64 (batch, height, width)"
    )
    return path


def _load(path: Path) -> Method | SegmentationTransfer:
    content = read_file(path, "expected a .ckpt file of a training")
    if isinstance(content, dict) and is_learned_from_labels(content):
        model: SegmentationTransfer = load_segmenter(path).model
        return model
    method = METHODS[read_checkpoint(path, None)[Method.KEY]]
    return method.load_from_checkpoint(path, map_location="cpu")


def _claim(output: Path | None, stem: str, form: str, suffixes: Sequence[str] = ()) -> Path:
    """The file to write, in a folder that exists."""
    path = Path("outputs/export", stem + _SUFFIXES[form]) if output is None else output
    if path.suffix != _SUFFIXES[form]:
        raise ValueError(f"--output for {form} should end in {_SUFFIXES[form]}, got {path}")
    suffixes = [*suffixes, *([".yaml"] if form == "detectron2" else [])]
    for taken in (path, *map(path.with_suffix, suffixes)):
        if taken.exists():
            raise FileExistsError(f"{taken} exists, and is not overwritten: give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
