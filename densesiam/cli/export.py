"""``densesiam export``: a trained backbone for other libraries, a trained segmenter as a graph."""

from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser, Namespace

from densesiam.export import Backbone, PortableSegmenter, export_segmenter, save_onnx, save_torch
from densesiam.methods import METHODS, Method, Segmenter
from densesiam.training.checkpoints import read_checkpoint
from densesiam.training.console import say

USAGE = "CHECKPOINT --format FORMAT [--output FILE] [--size HEIGHT WIDTH] [--any_size false]"

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


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the command."""
    checkpoint = Path(config.checkpoint)
    output = None if config.output is None else Path(config.output)
    if config.format in get_args(BackboneFormat):
        export_backbone(checkpoint, config.format, output)
    else:
        export_whole(checkpoint, config.format, output, config.size, config.any_size)


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
) -> Path:
    """Write a checkpoint's segmenter as a graph, and say what goes in and what comes out.

    Args:
        checkpoint: of a method that segments.
        form: torch or onnx.
        output: the file; see ``densesiam export --help`` for the default.
        size: height and width to trace at.
        any_size: whether other sizes will do too.

    Returns:
        The file.

    Raises:
        ValueError: the checkpoint is none of a segmenter, or the size will not do.
        OSError: the file exists, or cannot be written.
        ModuleNotFoundError: the packages for ONNX are not installed.
        RuntimeError: onnxruntime computes something else than PyTorch.
    """
    model = _load(checkpoint, Segmenter.kind)
    assert isinstance(model, Segmenter)
    program = export_segmenter(model, size, any_size)
    path = _claim(output, checkpoint.stem, form)
    (save_torch if form == "torch" else save_onnx)(program, path)
    multiple = PortableSegmenter(model).multiple
    free = f"sides multiples of {multiple}, from {2 * multiple} on"
    sides = free if any_size else f"{size[0]} x {size[1]} pixels"
    say(
        f"wrote {path}\n"
        f"in:  image, float32 (batch, 3, height, width), RGB in [0, 1], {sides}\n"
        f"out: logits, float32 (batch, {model.num_classes}, height / {model.encoder.stride}, "
        f"width / {model.encoder.stride}); labels, int64 (batch, height, width)"
    )
    return path


def _load(path: Path, kind: str | None = None) -> Method:
    method = METHODS[read_checkpoint(path, kind)[Method.KEY]]
    return method.load_from_checkpoint(path, map_location="cpu")


def _claim(output: Path | None, stem: str, form: str) -> Path:
    """The file to write, in a folder that exists."""
    path = Path("outputs/export", stem + _SUFFIXES[form]) if output is None else output
    if path.suffix != _SUFFIXES[form]:
        raise ValueError(f"--output for {form} should end in {_SUFFIXES[form]}, got {path}")
    beside = [path.with_suffix(".yaml")] if form == "detectron2" else []
    for taken in (path, *beside):
        if taken.exists():
            raise FileExistsError(f"{taken} exists, and is not overwritten: give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
