"""Take what was trained elsewhere: backbones under other libraries' names, segmenters as graphs."""

import copy
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
import yaml
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densesiam._writing import replacing, write_text
from densesiam.methods import Segmenter
from densesiam.models import Encoder
from densesiam.models.weights import listed, whole_model_names
from densesiam.transfer import SegmentationTransfer

# Backbones


@dataclass(frozen=True)
class Backbone:
    """A trained backbone without a classifier, as other libraries are to see it.

    Attributes:
        name: timm's name of the architecture.
        tensors: its tensors on the CPU, under the names that timm's whole model has for them.
        mean: what its images must have had removed, of RGB in [0, 1].
        std: what they must then have been divided by.
    """

    name: str
    tensors: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, encoder: Encoder, name: str) -> "Backbone":
        """Take the backbone out of an encoder.

        Args:
            encoder: the encoder; it stays as it is.
            name: timm's name of its backbone, which the encoder was made with.

        Raises:
            ValueError: the encoder has only the first stages of the architecture.
        """
        state = encoder.backbone.state_dict()
        with torch.device("meta"):
            whole = timm.create_model(name, features_only=True).state_dict()
        if lacking := [key for key in whole if key not in state]:
            raise ValueError(
                f"this encoder was made with the stages of {name} up to stride "
                f"{encoder.strides[-1]} only, so {len(lacking)} tensors of the backbone do not "
                f"exist ({lacking[0]}, ...). Train with strides that include the last, such as "
                "[4, 8, 16, 32]"
            )
        names = whole_model_names(encoder.backbone, name)
        # The encoder takes ImageNet's range to the weights' own: with its scale a and shift b,
        # a (x - m) / s + b = (x - (m - b s / a)) / (s / a).
        a, b = (buffer.flatten().cpu() for buffer in (encoder.input_scale, encoder.input_shift))
        std = torch.tensor(IMAGENET_DEFAULT_STD) / a
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN) - b * std
        return cls(
            name,
            {names[key]: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
            *(tuple(round(value, 4) for value in values.tolist()) for values in (mean, std)),
        )

    def save_timm(self, path: Path) -> None:
        """Write a safetensors file under the names of timm's whole model.

        ``timm.create_model(name).load_state_dict(tensors, strict=False)`` takes it; what is missing
        are the classifier and what belongs to it.
        """
        self._save(path, "timm")

    def save_torchvision(self, path: Path) -> None:
        """Write a safetensors file under torchvision's names.

        ``torchvision.models.get_model(name).load_state_dict(tensors, strict=False)`` takes it; what
        is missing is the classifier.

        Raises:
            ValueError: torchvision has no such model, or builds it otherwise.
        """
        name = self.name.split(".")[0]  # behind the dot timm names the weights
        if name not in torchvision.models.list_models(torchvision.models):
            raise self._misfit("torchvision", "torchvision has no model of this name")
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        places = model.state_dict()
        *_, (head, _) = model.named_children()
        strange = [
            key
            for key, tensor in self.tensors.items()
            if key not in places or places[key].shape != tensor.shape
        ]
        empty = [k for k in places if k not in self.tensors and k.split(".")[0] != head]
        if strange or empty:
            raise self._misfit(
                "torchvision",
                f"torchvision builds its {name} otherwise: no place for {listed(strange)}, "
                f"nothing for {listed(empty)}",
            )
        self._save(path, "torchvision")

    def save_detectron2(self, path: Path) -> None:
        """Write a pickle under detectron2's names, and the settings that go with it as YAML.

        The pickle is what detectron2's checkpointer reads: arrays under ``"model"``, whose names it
        completes by matching their ends. The YAML file of the same stem sets depth, input format
        and range.

        Raises:
            ValueError: the backbone is no ResNet as detectron2 builds them.
        """
        settings = self._detectron2_settings()
        arrays = {
            detectron2_name(key): tensor.numpy()
            for key, tensor in self.tensors.items()
            if not key.endswith("num_batches_tracked")  # its frozen normalisation has none
        }
        content = {"model": arrays, "__author__": "densesiam", "matching_heuristics": True}
        with replacing(path) as partial:
            partial.write_bytes(pickle.dumps(content))
        settings["MODEL"]["WEIGHTS"] = str(path)
        write_text(path.with_suffix(".yaml"), yaml.safe_dump(settings, sort_keys=False))

    def _detectron2_settings(self) -> dict[str, Any]:
        strange = [key for key in self.tensors if detectron2_name(key) is None]
        blocks = tuple(
            len({k.split(".")[1] for k in self.tensors if k.startswith(f"layer{stage}.")})
            for stage in (1, 2, 3, 4)
        )
        bottleneck = "layer1.0.conv3.weight" in self.tensors
        depth = _DEPTHS.get((blocks, bottleneck))
        if strange or depth is None:
            raise self._misfit(
                "detectron2",
                "it has ResNets of depth 18, 34, 50, 101 and 152 with a plain 7x7 stem, and "
                f"no place for {listed(strange)}",
            )
        # A grouped convolution's kernel spans the channels of one group.
        width, per_group = self.tensors["layer1.0.conv2.weight"].shape[:2]
        resnets: dict[str, Any] = {
            "DEPTH": depth,
            "STRIDE_IN_1X1": False,  # the stride is the 3x3 convolution's, as in torchvision
            "RES2_OUT_CHANNELS": self.tensors["layer1.0.conv1.weight"].shape[0]
            if not bottleneck
            else self.tensors["layer1.0.conv3.weight"].shape[0],
            "NUM_GROUPS": width // per_group,
            "WIDTH_PER_GROUP": per_group,
        }
        return {
            "MODEL": {
                "WEIGHTS": "",
                "RESNETS": resnets,
                "PIXEL_MEAN": [round(255 * value, 3) for value in self.mean],
                "PIXEL_STD": [round(255 * value, 3) for value in self.std],
            },
            "INPUT": {"FORMAT": "RGB"},  # detectron2's own default is BGR
        }

    def _save(self, path: Path, layout: str) -> None:
        metadata = {
            "format": "pt",
            "architecture": self.name,
            "layout": layout,
            "mean": ", ".join(map(str, self.mean)),
            "std": ", ".join(map(str, self.std)),
        }
        with replacing(path) as partial:
            safetensors.torch.save_file(self.tensors, partial, metadata)

    def _misfit(self, layout: str, reason: str) -> ValueError:
        return ValueError(
            f"{self.name} does not fit the {layout} layout: {reason}. The timm layout fits every "
            "backbone"
        )


# Blocks of the four stages, and whether they are bottlenecks, to depth.
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_SHORTCUT = {"0": "shortcut", "1": "shortcut.norm"}
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))")


def detectron2_name(name: str) -> str | None:
    """Translate the name of a ResNet's tensor from torchvision to detectron2.

    detectron2 counts stages from 2 (``res2`` to ``res5``), calls the beginning ``stem`` and the
    downsampling branch ``shortcut``, and puts each normalisation inside its convolution, as
    ``norm``.

    Args:
        name: such as ``layer1.0.bn2.weight``.

    Returns:
        Such as ``res2.0.conv2.norm.weight``; None for names that no plain ResNet has.
    """
    place, _, tensor = name.rpartition(".")
    if place in _STEM:
        return f"{_STEM[place]}.{tensor}"
    block = _BLOCK.fullmatch(place)
    if block is None:
        return None
    stage, index, kind, number, branch = block.groups()
    inside = _SHORTCUT[branch] if branch else f"conv{number}" + (".norm" if kind == "bn" else "")
    return f"res{int(stage) + 1}.{index}.{inside}.{tensor}"


# Segmenters


class PortableSegmenter(nn.Module):
    """A trained segmenter from pixels to categories, made of standard operators alone.

    Attributes:
        multiple: height and width of the images must be multiples of it.

    Args:
        model: the trained model; it is copied.
        of: (K,) the label that each of its K categories is to have, where some are merged or
            dropped; None for their own numbers.
    """

    mean: Tensor
    std: Tensor
    of: Tensor | None

    def __init__(self, model: Segmenter | SegmentationTransfer, of: Tensor | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        # Of all stages: some backbones compute the coarser ones even where nobody asks for them.
        info: Any = model.encoder.backbone.feature_info
        self.multiple = max(stage["reduction"] for stage in info.info)
        _settle_padding(self.model)
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.register_buffer("of", of)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment images.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].

        Returns:
            logits: (B, K, H / stride, W / stride), the encoder's stride.
            labels: (B, H, W) int64, each pixel's category: the argmax of the logits, enlarged
                bilinearly; what `of` makes of it.
        """
        logits = self.model((image - self.mean) / self.std)
        size = image.shape[-2:]
        enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        labels = enlarged.argmax(dim=1)
        return logits, labels if self.of is None else self.of[labels]


def _settle_padding(module: nn.Module) -> None:
    """Let convolutions that pad by their input's size (as TensorFlow's do) pad by fixed amounts.

    Where the sides are multiples of the strides, as `PortableSegmenter` asks, the amounts are the
    same for all sizes. Graphs of any size are then possible, and quick to trace.
    """
    for name, child in module.named_children():
        if not isinstance(child, Conv2dSame):
            _settle_padding(child)
            continue
        padding: list[int] = []
        for kernel, stride, dilation in zip(
            child.kernel_size[::-1], child.stride[::-1], child.dilation[::-1], strict=True
        ):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            padding += [total // 2, total - total // 2]
        plain = nn.Conv2d(
            child.in_channels,
            child.out_channels,
            child.kernel_size,  # type: ignore[arg-type] # of two, as the parent class keeps it
            child.stride,  # type: ignore[arg-type] # the same
            dilation=child.dilation,  # type: ignore[arg-type] # the same
            groups=child.groups,
            bias=child.bias is not None,
        )
        plain.load_state_dict(child.state_dict())
        padded = nn.Sequential(nn.ZeroPad2d(tuple(padding)), plain)  # type: ignore[arg-type] # four
        setattr(module, name, padded.requires_grad_(False).eval())


def export_segmenter(
    model: Segmenter | SegmentationTransfer,
    size: tuple[int, int] = (320, 320),
    any_size: bool = True,
    of: Tensor | None = None,
) -> ExportedProgram:
    """Trace a segmenter; see `PortableSegmenter` for what goes in and comes out.

    Args:
        model: the trained model; it stays as it is.
        size: height and width to trace at; those of every image unless `any_size`.
        any_size: whether images of other sizes will do, with sides that are multiples of the
            coarsest stride and at least twice it. The batch is free in either case.
        of: labels of the categories, see `PortableSegmenter`.

    Raises:
        ValueError: the size is no such multiple, or the network cannot be traced for all sizes.
    """
    portable = PortableSegmenter(model, of)
    multiple = portable.multiple
    # Maps of a single row or column would be a case of their own to the tracer.
    fewest = 2 if any_size else 1
    if any(side < fewest * multiple or side % multiple for side in size):
        raise ValueError(
            f"height and width must be multiples of {multiple}, the backbone's coarsest stride, "
            f"and at least {fewest * multiple}, got {size[0]} x {size[1]}"
        )
    dims: dict[int, Any] = {0: Dim("batch", min=1)}
    example = torch.rand(2, 3, *size)  # a batch of one, or a square, would be taken for a rule
    if any_size:
        for axis, name in ((2, "rows"), (3, "columns")):
            dims[axis] = multiple * Dim(name, min=fewest)
        example = torch.rand(2, 3, size[0], size[1] + multiple)
    try:
        with torch.no_grad():
            return torch.export.export(portable, (example,), dynamic_shapes=(dims,), strict=False)
    except Exception as error:  # tracing fails in many ways, and what helps is the same
        if not any_size:
            raise
        raise ValueError(
            "this network cannot be exported for images of any size: give the one that it is for. "
            f"({str(error).strip().splitlines()[0]})"
        ) from error


def save_torch(program: ExportedProgram, path: Path) -> None:
    """Write a ``.pt2`` file, which `torch.export.load` reads without this package."""
    with replacing(path) as partial:
        torch.export.save(program, partial)


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file of standard operators, and see that onnxruntime agrees with PyTorch.

    Its input is ``image``, its outputs ``logits`` and ``labels``, as of `PortableSegmenter`.

    Raises:
        ModuleNotFoundError: the packages of ``densesiam[export]`` are not installed.
        RuntimeError: onnxruntime computes something else; the file is not kept.
    """
    try:
        import onnx  # noqa: F401 # looked for here, used by the exporter
        import onnxruntime  # noqa: F401 # the same, to check the file
        import onnxscript  # noqa: F401 # torch's exporter needs it, and says so less plainly
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {error.name}: pip install onnx onnxruntime onnxscript"
        ) from error
    with replacing(path) as partial:
        torch.onnx.export(
            program,
            f=partial,
            input_names=["image"],
            output_names=["logits", "labels"],
            external_data=False,  # one file
            verbose=False,
        )
        _check_onnx(program, partial)


def _check_onnx(program: ExportedProgram, path: Path) -> None:
    """Refuse an ONNX file that does not compute what the program does.

    Raises:
        RuntimeError: it does not.
    """
    import onnx
    import onnxruntime

    foreign = {node.domain for node in onnx.load(path).graph.node} - {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = program.example_inputs[0][0]
    logits, labels = (torch.from_numpy(out) for out in session.run(None, {"image": image.numpy()}))
    expected_logits, expected_labels = program.module()(image)
    deviation = float((logits - expected_logits).abs().max() / expected_logits.abs().max())
    differing = float((labels != expected_labels).float().mean())
    # float32 through a hundred layers, fused and summed otherwise; labels differ where two
    # categories are as good as equal.
    if foreign or deviation > 1e-3 or differing > 1e-2:
        raise RuntimeError(
            f"the ONNX file is not the model: logits differ by {deviation:.1e} of the largest, "
            f"{100 * differing:.2f} % of the labels; operators of other domains: "
            f"{foreign or 'none'}"
        )
