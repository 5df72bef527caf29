"""The encoder: pyramid against its formula, freezing, offsets, errors. Weights: test_weights.py."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from densesiam.models import Encoder
from tests.tolerance import assert_close, terms_of

TINY = "test_resnet"  # 0.4 M parameters, channels 32, 48, 192, 96 at strides 4 to 32


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width)


def in_the_weights_range(x):
    """The tiny networks of these tests expect (RGB - 0.5) / 0.5; images come in ImageNet's."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (x * std + mean - 0.5) / 0.5


def stages_of(encoder, x):
    return encoder.backbone(in_the_weights_range(x))


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32), (4, 32)])
def test_pyramid_is_laterals_added_top_down(strides):
    encoder = Encoder(TINY, strides=strides, channels=10).eval()
    x = images()
    features = encoder(x)

    convolved = [
        torch.einsum("oc,bchw->bohw", lateral.weight[:, :, 0, 0], stage)
        + lateral.bias.view(1, -1, 1, 1)
        for lateral, stage in zip(encoder.fpn.laterals, stages_of(encoder, x), strict=True)
    ]
    expected = convolved[-1]
    for finer in reversed(convolved[:-1]):
        expected = finer + F.interpolate(expected, finer.shape[-2:], mode="bilinear")
    assert_close(features, expected, terms_of(encoder))
    assert features.shape == (2, 10, 64 // strides[0], 96 // strides[0])
    assert encoder.stride == strides[0]
    assert encoder.out_channels == 10


def test_resnet18_has_the_papers_pyramid():
    encoder = Encoder()
    assert [tuple(m.weight.shape) for m in encoder.fpn.laterals] == [
        (128, 64, 1, 1),
        (128, 128, 1, 1),
        (128, 256, 1, 1),
        (128, 512, 1, 1),
    ]
    # Nothing but the laterals: no smoothing convolution, no normalisation.
    assert sum(p.numel() for p in encoder.fpn.parameters()) == 128 * (64 + 128 + 256 + 512 + 4)


@pytest.mark.parametrize(("height", "width"), [(70, 90), (33, 65), (32, 32)])
def test_any_image_size(height, width):
    encoder = Encoder(TINY, channels=8).eval()
    assert encoder(images(height, width)).shape == (2, 8, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("stride", [16, 32])
def test_backbone_alone_gives_the_chosen_stage(stride):
    encoder = Encoder(TINY, strides=(stride,), fpn=False).eval().double()
    model = timm.create_model(TINY, features_only=True).eval().double()
    model.load_state_dict(encoder.backbone.state_dict(), strict=False)
    x = images().double()
    expected = model(in_the_weights_range(x))[{16: 3, 32: 4}[stride]]
    features = encoder(x)
    assert_close(features, expected, terms_of(encoder))
    assert encoder.out_channels == features.shape[1]
    assert encoder.stride == stride


def test_transformer_gives_its_last_block():
    encoder = Encoder("test_vit", strides=(16,), fpn=False).eval()
    model = timm.create_model("test_vit").eval()
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in encoder.backbone.state_dict().items()},
        strict=False,
    )
    x = images(160, 160)
    features = encoder(x)
    last = model.forward_intermediates(in_the_weights_range(x), indices=1, intermediates_only=True)[
        -1
    ]
    assert_close(features, last, terms_of(encoder))
    assert features.shape == (2, 64, 10, 10)


def test_channels_first_from_backbones_that_work_channels_last():
    encoder = Encoder("swin_tiny_patch4_window7_224", strides=(8,), fpn=False).eval()
    with torch.no_grad():
        assert encoder(images(224, 224, batch=1)).shape == (1, 192, 28, 28)


@pytest.mark.parametrize("fpn", [True, False])
def test_features_have_their_channels_last_in_memory(fpn):
    encoder = Encoder("test_resnet", strides=(4, 8) if fpn else (8,), fpn=fpn, channels=16)
    images = torch.randn(2, 3, 64, 48, requires_grad=True)
    features = encoder(images)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert not features.is_contiguous()
    # Weights from a file keep the layout, which convolutions would otherwise have to undo.
    encoder.load_state_dict({k: v.contiguous() for k, v in encoder.state_dict().items()})
    assert encoder(images).is_contiguous(memory_format=torch.channels_last)
    kernels = [m.weight for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


def test_normalised_stages_have_mean_0_and_variance_1_per_channel():
    encoder = Encoder(TINY, strides=(8,), fpn=False, normalize_stages=True)
    features = encoder(images())
    means = features.mean((0, 2, 3))
    assert_close(means, torch.zeros(48), terms=features[:, 0].numel(), rms=1)
    # Normalisation adds 1e-5 to variances of 0.01 and more.
    variances = features.var((0, 2, 3), unbiased=False)
    assert (variances - 1).abs().max() < 1e-3
    assert not list(encoder.norms.parameters())


def test_input_range():
    imagenet = Encoder("resnet18", strides=(4,), fpn=False)
    assert imagenet.input_scale.eq(1).all()
    assert imagenet.input_shift.eq(0).all()
    assert {"input_scale", "input_shift"} <= imagenet.state_dict().keys()
    half = Encoder(TINY, strides=(4,), fpn=False)
    x = images()
    assert_close(x * half.input_scale + half.input_shift, in_the_weights_range(x), terms=4)


def test_frozen_backbone_never_changes_and_stores_nothing():
    encoder = Encoder(TINY, backbone_lr_factor=0.0, normalize_stages=True)
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    stages = []
    encoder.backbone.register_forward_hook(lambda module, args, output: stages.extend(output))
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0, weight_decay=0.1)
    encoder(images()).square().mean().backward()
    optimizer.step()

    assert encoder.frozen
    assert encoder.training
    assert not any(m.training for m in encoder.backbone.modules())
    assert len(stages) == 4
    assert all(stage.grad_fn is None for stage in stages)
    assert all(p.grad is None and not p.requires_grad for p in encoder.backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.backbone.state_dict().items())
    assert all(p.grad.abs().sum() > 0 for p in encoder.fpn.parameters())
    # The stages' own normalisation does learn its statistics.
    assert encoder.norms[0].num_batches_tracked == 1


def test_unfrozen_backbone_learns():
    encoder = Encoder(TINY)
    running_mean = encoder.backbone.bn1.running_mean.clone()
    encoder(images()).square().mean().backward()
    assert all(p.grad is not None for p in encoder.backbone.parameters())
    assert not torch.equal(encoder.backbone.bn1.running_mean, running_mean)


def measured_offset(encoder, size=96):
    """Centre of the receptive field of a middle feature, less the centre of its cell, in pixels.

    A NaN travels through every layer to all features that see its pixel: one image for each column
    that holds it.
    """
    with torch.no_grad():
        x = torch.rand(1, 3, size, size).repeat(size, 1, 1, 1)
        column = torch.arange(size)
        x[column, :, :, column] = torch.nan
        features = encoder.eval()(x)  # (column, C, H, W)
    middle = size // encoder.stride // 2
    seen = features.isnan().any(1)[:, middle, middle].nonzero().flatten()
    assert seen.min() > 0  # the field ends inside the image, so its bounds are its own
    assert seen.max() < size - 1
    centre = (seen.min() + seen.max() + 1) / 2
    return float(centre - encoder.stride * (middle + 0.5))


@pytest.mark.parametrize(
    ("backbone", "stride", "offset"),
    [
        ("resnet18", 4, -1.5),
        ("efficientnet_lite0", 4, -1.5),
        ("tf_efficientnet_lite0", 4, 1.5),
        ("test_convnext", 4, 0.0),
    ],
)
def test_feature_offset_is_that_of_the_receptive_field(backbone, stride, offset):
    encoder = Encoder(backbone, strides=(stride,), fpn=False)
    assert encoder.feature_offset == offset
    assert measured_offset(encoder) == offset


def test_feature_offset_of_an_unknown_stem_is_refused():
    encoder = Encoder(TINY, strides=(4,), fpn=False)
    encoder.backbone.conv1[0].padding = (0, 0)
    with pytest.raises(ValueError, match=r"not known: .* kernel \(3, 3\), stride \(2, 2\)"):
        _ = encoder.feature_offset


def test_dilation_keeps_the_weights_and_refines_the_last_stage():
    torch.manual_seed(0)
    coarse = Encoder(TINY, strides=(32,), fpn=False).eval()
    fine = Encoder(TINY, strides=(16,), fpn=False, output_stride=16).eval()
    fine.load_state_dict(coarse.state_dict())
    assert fine.stride == 16
    assert fine.out_channels == coarse.out_channels
    image = torch.randn(1, 3, 64, 96)
    assert coarse(image).shape[-2:] == (2, 3)
    assert fine(image).shape[-2:] == (4, 6)


def test_a_backbone_that_cannot_be_dilated_is_named():
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 cannot be dilated"):
        Encoder("vit_tiny_patch16_224", strides=(16,), fpn=False, output_stride=16)


def test_unknown_backbone_suggests_names():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet_18': did you mean .*resnet18"):
        Encoder("resnet_18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (4, 7)}, r"strides \[2, 4, 8, 16, 32\], but not \[7\]"),
        ({"strides": (8, 4)}, "finest first"),
        ({"strides": ()}, "finest first"),
        ({"fpn": False}, r"one stride, such as \[32\]"),
        ({"channels": 0}, "at least 1"),
        ({"backbone_lr_factor": -1.0}, "0 freezes"),
    ],
)
def test_contradictory_options(options, message):
    with pytest.raises(ValueError, match=message):
        Encoder(TINY, **options)
