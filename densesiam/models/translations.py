"""Weights under other libraries' names: transformers', and those of torchvision's that timm lacks.

torchvision's ResNet, DenseNet and VGG are called the same in timm.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# transformers' names of a tensor, and those of the authors' repositories.
_TRANSFORMERS_VIT = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)", r"patch_embed.proj.\1"),
    (r"layernorm\.(.*)", r"norm.\1"),
    (r"norm\.(.*)", r"norm.\1"),
    (r"(?:encoder\.|model\.)?layer\.(\d+)\.(norm[12]\..*)", r"blocks.\1.\2"),
    (r"(?:encoder\.|model\.)?layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"(?:model\.)?layer\.(\d+)\.attention\.o_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.(fc[12]\..*)", r"blocks.\1.mlp.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(.*)", r"blocks.\1.mlp.w12.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.(.*)", r"blocks.\1.mlp.w3.\2"),
    # ViT, DeiT, and DINO, MAE and MSN in its form.
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(.*)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(.*)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(.*)", r"blocks.\1.mlp.fc2.\2"),
)
_TRANSFORMERS_QKV = re.compile(
    r"(?:encoder\.|model\.)?layer\.(\d+)\.attention\.(?:attention\.)?"
    r"(?:(query|key|value)|([qkv])_proj)\.(weight|bias)"
)
_TRANSFORMERS_MLP = re.compile(r"(?:model\.)?layer\.(\d+)\.mlp\.(gate|up|down)_proj\.(.*)")
_TRANSFORMERS_RESNET = (
    (r"embedder\.embedder\.convolution\.(.*)", lambda m: f"conv1.{m[1]}"),
    (r"embedder\.embedder\.normalization\.(.*)", lambda m: f"bn1.{m[1]}"),
    (
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(.*)",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}.{m[4]}",
    ),
    (
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(convolution|normalization)\.(.*)",
        lambda m: (
            f"layer{int(m[1]) + 1}.{m[2]}.{'conv' if m[4] == 'convolution' else 'bn'}"
            f"{int(m[3]) + 1}.{m[5]}"
        ),
    ),
)
# ConvNeXt and ConvNeXt V2 on the one hand, DINOv3's on the other; to timm's names, since the
# authors' have nothing in common with those of the backbone.
_CONVNEXT_BLOCK = {
    "layer_scale_parameter": "gamma",
    "dwconv": "conv_dw",
    "depthwise_conv": "conv_dw",
    "layernorm": "norm",
    "layer_norm": "norm",
    "pwconv1": "mlp.fc1",
    "pointwise_conv1": "mlp.fc1",
    "pwconv2": "mlp.fc2",
    "pointwise_conv2": "mlp.fc2",
    "grn": "mlp.grn",
}
_TRANSFORMERS_CONVNEXT = (
    (r"embeddings\.patch_embeddings\.(.*)", r"stem.0.\1"),
    (r"embeddings\.layernorm\.(.*)", r"stem.1.\1"),
    (r"(?:model\.)?stages\.0\.downsample_layers\.([01])\.(.*)", r"stem.\1.\2"),
    (
        r"(?:encoder\.|model\.)?stages\.(\d+)\.(?:downsampling_layer|downsample_layers)\.(.*)",
        r"stages.\1.downsample.\2",
    ),
    (
        r"(?:encoder\.|model\.)?stages\.(\d+)\.layers\.(\d+)\.(\w+)(.*)",
        lambda m: f"stages.{m[1]}.blocks.{m[2]}.{_CONVNEXT_BLOCK.get(m[3], m[3])}{m[4]}",
    ),
    (r"(?:layernorm|layer_norm)\.(.*)", r"head.norm.\1"),
    (r"classifier\.(.*)", r"head.fc.\1"),
)
# Before the names, where a model has a head: that of the network in it.
_TRANSFORMERS_PREFIX = re.compile(
    r"^(?:dinov2|dinov2_with_registers|dinov3_vit|resnet|convnext|convnextv2|vit|deit|backbone)\."
)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Translate transformers' names to those of the networks' authors, or timm's.

    Its ResNet, ConvNeXt (V2 and DINOv3's too), ViT, DeiT, DINOv2 and DINOv3 are known.

    Queries, keys and values become one matrix again; where keys have no bias, it is zero.

    Args:
        state_dict: of a ``safetensors`` file as ``save_pretrained`` writes it.

    Returns:
        The tensors under ResNet's names in torchvision, ConvNeXt's in timm, those of the others in
        their repositories; those without a counterpart keep their names. None where the names are
        not transformers'.
    """
    names = {key: _TRANSFORMERS_PREFIX.sub("", key) for key in state_dict}
    if any(name.startswith("embedder.embedder.") for name in names.values()):
        return {_renamed(n, _TRANSFORMERS_RESNET): state_dict[k] for k, n in names.items()}
    if any(re.search(r"stages\.0\.layers\.0\.d\w+\.weight", name) for name in names.values()):
        return {
            _renamed(n, _TRANSFORMERS_CONVNEXT): state_dict[k].flatten()
            if ".grn." in n
            else state_dict[k]
            for k, n in names.items()
        }
    if "embeddings.cls_token" not in names.values():
        return None
    gated = any(".mlp.gate_proj." in name for name in names.values())
    registers = "storage_tokens"
    if "embeddings.position_embeddings" in names.values():
        registers = "register_tokens"  # as DINOv2 calls them; DINOv3 has no position embeddings
    places = {"gate": "w1", "up": "w2", "down": "w3"} if gated else {"up": "fc1", "down": "fc2"}
    result: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, name in names.items():
        tensor = state_dict[key]
        if attention := _TRANSFORMERS_QKV.fullmatch(name):
            block, long, short, kind = attention.groups()
            parts.setdefault((block, kind), {})[short or long[0]] = tensor
        elif mlp := _TRANSFORMERS_MLP.fullmatch(name):
            result[f"blocks.{mlp[1]}.mlp.{places[mlp[2]]}.{mlp[3]}"] = tensor
        elif name == "embeddings.register_tokens":
            result[registers] = tensor
        else:
            result[_renamed(name, _TRANSFORMERS_VIT)] = tensor
    for (block, kind), found in parts.items():
        if found.keys() >= {"q", "v"}:
            k = found.get("k", torch.zeros_like(found["q"]))
            result[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([found["q"], k, found["v"]])
    return result


# torchvision's names and timm's, behind any prefix.
_TORCHVISION_VIT = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.(.*)", r"norm.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)",
        r"blocks.\1.attn.qkv.\2",
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)",
        r"blocks.\1.attn.proj.\2",
    ),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"heads\.head\.(.*)", r"head.\1"),
)
_CONVNEXT_PART = {
    "layer_scale": "gamma",
    "block.0": "conv_dw",
    "block.2": "norm",
    "block.3": "mlp.fc1",
    "block.5": "mlp.fc2",
}
# Its ConvNeXt and Swin are lists: the stem, a stage, what halves the resolution, a stage ...
_TORCHVISION_CONVNEXT = (
    (r"features\.0\.([01])\.(.*)", r"stem.\1.\2"),
    (
        r"features\.([246])\.([01])\.(.*)",
        lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}.{m[3]}",
    ),
    (
        r"features\.([1357])\.(\d+)\.(layer_scale|block\.\d)(.*)",
        lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.{_CONVNEXT_PART.get(m[3], m[3])}{m[4]}",
    ),
    (r"classifier\.0\.(.*)", r"head.norm.\1"),
    (r"classifier\.2\.(.*)", r"head.fc.\1"),
)
_TORCHVISION_SWIN = (
    (r"features\.0\.0\.(.*)", r"patch_embed.proj.\1"),
    (r"features\.0\.2\.(.*)", r"patch_embed.norm.\1"),
    (r"features\.([246])\.(.*)", lambda m: f"layers.{int(m[1]) // 2}.downsample.{m[2]}"),
    (
        r"features\.([1357])\.(\d+)\.mlp\.([03])\.(.*)",
        lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.mlp.fc{1 if m[3] == '0' else 2}.{m[4]}",
    ),
    (r"features\.([1357])\.(.*)", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}"),
    (r"head\.(.*)", r"head.fc.\1"),
)
# What is in one kind of network alone, and its names.
_TORCHVISION = {
    "encoder.pos_embedding": _TORCHVISION_VIT,
    "features.1.0.layer_scale": _TORCHVISION_CONVNEXT,
    "features.1.0.attn.relative_position_index": _TORCHVISION_SWIN,
}


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Translate torchvision's names of ViT, ConvNeXt and Swin (V2 too) to timm's.

    Args:
        state_dict: of such a model, behind any prefixes.

    Returns:
        The tensors; those without a counterpart keep their names. None where the names are not
        those of one of these networks.
    """
    for mark, rules in _TORCHVISION.items():
        found = [key for key in state_dict if key == mark or key.endswith(f".{mark}")]
        if found:
            prefixes = [key.removesuffix(mark) for key in found]
            return _from_torchvision(state_dict, prefixes, rules)
    return None


def _from_torchvision(
    state_dict: Mapping[str, Tensor], prefixes: list[str], rules: Iterable[tuple[str, Any]]
) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        name = prefix + _renamed(key[len(prefix) :], rules)
        if name.endswith((".relative_position_index", ".relative_coords_table")):
            continue  # which timm computes
        if name.endswith(".gamma"):
            tensor = tensor.flatten()
        stem = key.removesuffix("qkv.bias")
        if stem != key and f"{stem}logit_scale" in state_dict:
            stem = name.removesuffix("qkv.bias")
            # Keys have none in Swin V2: what stands there is not used.
            result[f"{stem}q_bias"], _, result[f"{stem}v_bias"] = tensor.chunk(3)
        else:
            result[name] = tensor
    return result


def _renamed(name: str, rules: Iterable[tuple[str, Any]]) -> str:
    """A name by the first rule that knows it, or as it is."""
    for pattern, replacement in rules:
        if (match := re.fullmatch(pattern, name)) is not None:
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return name


TRANSLATIONS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None]] = {
    "transformers'": from_transformers,
    "torchvision's": from_torchvision,
}
"""Whose names can be translated, and how."""
