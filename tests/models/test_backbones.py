"""Networks of many families: any size, the geometry kept; or a refusal that says which sizes."""

import functools
from typing import ClassVar

import pytest
import timm
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from densesiam import ops
from densesiam.geometry import frame_boxes
from densesiam.methods import DenseSiamSegmentation
from densesiam.models import Encoder
from densesiam.models.backbone import sizes_taken
from tests.methods.support import batch
from tests.tolerance import assert_close, terms_of

# How deep the networks of these tests are: their families' code, a fraction of their weights.
SHALLOW = {
    "vit_small": {"depth": 4, "embed_dim": 64, "num_heads": 2},
    "vit": {"depth": 4},
    "eva": {"depth": 4},
    "beit": {"depth": 3, "embed_dim": 48},
    "swin": {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "hiera": {"stages": (1, 1, 1, 1), "embed_dim": 32},
}


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    torch.manual_seed(0)
    create = timm.create_model

    @functools.wraps(create)
    def shallow(name, **options):
        known = [value for family, value in SHALLOW.items() if name.startswith(family)]
        return create(name, **options, **(known[0] if known else {}))

    monkeypatch.setattr(timm, "create_model", shallow)


BACKBONES = {
    "vit_tiny_patch16_224": (16,),
    "vit_small_patch14_dinov2": (14,),
    "vit_small_patch14_reg4_dinov2": (14,),
    "vit_small_patch16_dinov3": (16,),
    "eva02_tiny_patch14_224": (14,),
    "swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "swinv2_tiny_window8_256": (8, 16),
    "test_convnext": (4, 8, 16, 32),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_size_trains_and_predicts(name):
    model = DenseSiamSegmentation(
        num_classes=5,
        aux_classes=None,
        region_weight=0,
        hidden_channels=8,
        backbone=name,
        strides=BACKBONES[name],
        channels=8,
        normalize_stages=True,
        lr=0.1,
    )
    features1, features2, weight = model.aligned_features(batch(2, 50, 75))
    losses, _, _ = model.losses(features1, features2, weight)
    sum(losses.values()).backward()
    assert [n for n, p in model.encoder.named_parameters() if p.grad is None] == []
    stride = BACKBONES[name][0]
    for height, width in ((29, 101), (64, 40)):
        z = model.segment(torch.randn(1, 3, height, width))
        assert z.shape == (1, 5, -(-height // stride), -(-width // stride))
        assert z.isfinite().all()


def test_position_embeddings_are_resampled_to_the_image():
    encoder = Encoder("vit_tiny_patch16_224", strides=(16,), fpn=False).eval()
    own = {k.removeprefix("model."): v for k, v in encoder.backbone.state_dict().items()}
    # timm's own way: once, when weights are loaded into a network for another size.
    model = timm.create_model("vit_tiny_patch16_224", img_size=(80, 112)).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(own, model)
    model.load_state_dict(filtered, strict=False)
    images = torch.randn(2, 3, 80, 112)
    expected = model.forward_intermediates(
        images * encoder.input_scale + encoder.input_shift, indices=1, intermediates_only=True
    )[-1]
    assert_close(encoder(images), expected, terms_of(encoder))


def averaging(name, stride, **options):
    """A transformer that only averages its patches: blocks add nothing, places are worth nothing.

    Its features are then the image's mean colour around their centres.
    """
    encoder = Encoder(name, strides=(stride,), fpn=False, **options).eval()
    network = encoder.backbone.model
    with torch.no_grad():
        network.pos_embed.zero_()
        network.patch_embed.proj.weight.fill_(1 / (3 * stride**2))
        network.patch_embed.proj.bias.zero_()
        for block in network.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    encoder.input_scale.fill_(1)
    encoder.input_shift.zero_()
    return encoder


def places(height, width):
    """Two images whose colour is where a pixel lies: across in one, down in the other."""
    across = (torch.arange(width) + 0.5).expand(3, height, width)
    down = (torch.arange(height) + 0.5)[:, None].expand(3, height, width)
    return torch.stack([across, down])


@pytest.mark.parametrize(
    ("name", "stride"), [("vit_tiny_patch16_224", 16), ("vit_small_patch14_dinov2", 14)]
)
@pytest.mark.parametrize(("height", "width"), [(112, 224), (70, 131), (83, 99), (65, 61)])
def test_features_lie_where_their_share_of_the_image_says(name, stride, height, width):
    encoder = averaging(name, stride)
    features = encoder(places(height, width))[:, 0]
    for axis, length, found in ((1, width, features[0]), (0, height, features[1])):
        cells = -(-length // stride)
        centres = (torch.arange(cells) + 0.5) * length / cells
        error = (found.movedim(axis, 0) - centres[:, None]).abs().amax(1)
        # The first cell lies before the centre of the first patch, whose feature it repeats. What
        # reads the last patch gets the mean of pixels some of which are repeats of the last one.
        inside = (centres >= stride / 2) & (centres < stride * (length // stride - 0.5))
        assert inside.sum() >= cells - 3
        within = error[inside]
        assert_close(within, torch.zeros_like(within), terms=3 * stride**2, rms=length)
        assert error[0] < (stride - length / cells) / 2 + 1e-3
        assert error[-1] < stride / 2


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_know_where_features_of_two_views_lie(flip):
    # View 1 is a quarter of view 2, at another resolution; both have sides of no whole patches.
    encoder = averaging("vit_tiny_patch16_224", 16)
    crop1, crop2 = (
        torch.tensor([[40.0, 30.0, 120.0, 90.0]]),
        torch.tensor([[0.0, 0.0, 192.0, 150.0]]),
    )
    model = DenseSiamSegmentation(aux_classes=None, backbone="test_vit", strides=(16,), channels=4)
    scene = places(150, 192)[:1]  # where view 2 has the pixels of the source
    box = frame_boxes(crop1, crop2, torch.tensor([flip]), torch.tensor([False]))
    views = {
        "view1": ops.overlap_sample(scene, box, (105, 140)),  # 1.75 pixels for each of the source
        "view2": scene,
        "crop1": crop1,
        "crop2": crop2,
        "flip1": torch.tensor([flip]),
        "flip2": torch.tensor([False]),
    }
    features1, features2, weight = model.aligned_features(views, encoder)
    assert weight.all()
    inside = (slice(None), 0, slice(0, -1), slice(1, -1))  # the last cells repeat the border
    difference = (features1 - features2)[inside].abs().max()
    assert difference < 1e-3  # in pixels of the source, of which a patch has 9 and 16
    assert features1[inside].amax() - features1[inside].amin() > 40


def test_layers_are_the_stages_of_the_pyramid():
    encoder = Encoder("vit_tiny_patch16_224", layers=[0, 1, 3], channels=6).eval()
    assert encoder.strides == (16, 16, 16)
    assert encoder.stride == 16
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    own = {k.removeprefix("model."): v for k, v in encoder.backbone.state_dict().items()}
    model.load_state_dict(own, strict=False)
    images = torch.randn(2, 3, 48, 64)
    blocks = model.forward_intermediates(
        images * encoder.input_scale + encoder.input_shift, [0, 1, 3], intermediates_only=True
    )
    expected = sum(
        lateral(block) for lateral, block in zip(encoder.fpn.laterals, blocks, strict=True)
    )
    assert_close(encoder(images), expected, terms_of(encoder))
    # Blocks after the last are not there.
    assert len(Encoder("vit_tiny_patch16_224", layers=[1], fpn=False).backbone.model.blocks) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {},
            r"strides \[16\], but not \[4, 8, 32\]: set strides to \[16\], or name layers, such as "
            r"\[0, 1, 2, 3\]",
        ),
        ("vit_tiny_patch16_224", {"layers": [2, 4]}, r"from 0 to 3, got \[2, 4\]"),
        ("vit_tiny_patch16_224", {"layers": [2, 1]}, r"rising numbers"),
        ("vit_tiny_patch16_224", {"layers": []}, r"rising numbers"),
        ("vit_tiny_patch16_224", {"layers": [1, 2], "fpn": False}, r"one layer, such as \[2\]"),
        ("test_resnet", {"layers": [1]}, r"stages of strides \[2, 4, .*: choose among them"),
        ("test_resnet", {"checkpoint_gradients": True}, "would count every image twice"),
    ],
)
def test_what_does_not_do(name, options, message):
    with pytest.raises(ValueError, match=message):
        Encoder(name, **options)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256", "test_convnext"],
)
def test_gradients_from_checkpoints_are_the_same_and_keep_less(name):
    strides = BACKBONES[name][-1:]
    plain = Encoder(name, strides=strides, fpn=False)
    thrifty = Encoder(name, strides=strides, fpn=False, checkpoint_gradients=True)
    thrifty.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 96)
    kept, features = [], []
    for encoder in (plain, thrifty):
        sizes: list[int] = []
        kept.append(sizes)

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(1)  # of dropped paths
        with saved_tensors_hooks(note, lambda tensor: tensor):
            features.append(encoder(images))
        features[-1].square().mean().backward()
    assert_close(features[0], features[1], terms_of(plain))
    for one, other in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert_close(one.grad, other.grad, terms_of(plain))
    assert sum(kept[1]) < 0.7 * sum(kept[0])


@pytest.mark.parametrize(
    ("name", "strides"), [("hiera_tiny_224", (4, 8, 16, 32)), ("beit_base_patch16_224", (16,))]
)
def test_networks_of_one_size_say_which(name, strides):
    encoder = Encoder(name, strides=strides, channels=4)
    assert not encoder.any_size
    encoder.check_size(224, 224 - strides[-1] + 1)  # which is filled up
    message = f"{name} takes images of 224 x 224 pixels alone, not of 256 x 224: give .* as ViT"
    with pytest.raises(ValueError, match=message):
        encoder.check_size(256, 224)
    with pytest.raises(ValueError, match=message):
        encoder(torch.randn(2, 3, 256, 224))


class Windows(nn.Module):
    """Takes whole windows alone, as MaxViT does."""

    pretrained_cfg: ClassVar = {"input_size": (3, 192, 192)}

    def forward(self, images):
        assert images.shape[2] % 96 == images.shape[3] % 96 == 0
        return [images]


def test_networks_of_windows_say_what_is_a_multiple():
    said = sizes_taken(Windows(), "windows", 32)
    assert said == "windows takes images whose sides are multiples of 96 pixels alone"


def test_other_errors_of_a_backbone_are_not_taken_for_its_size():
    encoder = Encoder("test_resnet", strides=(4,), fpn=False)
    with pytest.raises(RuntimeError, match="size of tensor a"):
        encoder(torch.randn(2, 4, 64, 64))


def test_asking_for_a_size_changes_nothing():
    encoder = Encoder("hiera_tiny_224", channels=4)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.check_size(224, 224)
    assert isinstance(next(encoder.parameters()), nn.Parameter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
