"""Exports: each is loaded by what it is for, and computes the same."""

import pickle
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
import yaml
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from densesiam import cli
from densesiam.data import IMAGENET_MEAN, IMAGENET_STD
from densesiam.export import (
    Backbone,
    PortableSegmenter,
    detectron2_name,
    export_segmenter,
    save_onnx,
    save_torch,
)
from densesiam.methods import DenseSiamPretraining, DenseSiamSegmentation, PiCIE
from densesiam.models import Encoder
from tests.methods.support import tiny
from tests.tolerance import assert_close, terms_of

TINY = "test_resnet"


def shaken(model):
    """Give a network weights and running statistics that no other has, of a size that it bears."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1, generator=generator)
            elif name.endswith("running_var") or (tensor.ndim == 1 and "weight" in name):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Backbones


@torch.no_grad()
@pytest.mark.parametrize("name", [TINY, "test_efficientnet", "test_convnext", "resnet18"])
def test_timm_takes_it_back(name, tmp_path):
    encoder = shaken(Encoder(name))
    Backbone.of(encoder, name).save_timm(tmp_path / "w.safetensors")
    model = timm.create_model(name).eval()
    state = safetensors.torch.load_file(tmp_path / "w.safetensors")
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    last = encoder.backbone.feature_info.module_name(-1).split("_")[0].split(".")[0]
    assert not any(key.split(".")[0] == last for key in loaded.missing_keys)
    x = images(2, 3, 64, 64)
    _, stages = model.double().forward_intermediates(x.double())
    assert_close(stages[-1], encoder.double().backbone(x.double())[-1], terms_of(encoder))


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvision_takes_it_back(name, tmp_path):
    encoder = shaken(Encoder(name))
    Backbone.of(encoder, name).save_torchvision(tmp_path / "w.safetensors")
    model = torchvision.models.get_model(name)
    state = safetensors.torch.load_file(tmp_path / "w.safetensors")
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) == {"fc.weight", "fc.bias"}
    stages = create_feature_extractor(model.eval(), {f"layer{i}": str(i) for i in (1, 2, 3, 4)})
    x = images(1, 3, 64, 96).double()
    found, expected = stages.double()(x).values(), encoder.double().backbone(x)
    for mine, theirs in zip(expected, found, strict=True):
        assert_close(theirs, mine, terms_of(encoder))


# What detectron2's model zoo and its ResNet call their tensors, with the shapes of R-50.
DETECTRON2_R50 = {
    "stem.conv1.weight": (64, 3, 7, 7),
    "stem.conv1.norm.weight": (64,),
    "stem.conv1.norm.bias": (64,),
    "stem.conv1.norm.running_mean": (64,),
    "stem.conv1.norm.running_var": (64,),
    "res2.0.shortcut.weight": (256, 64, 1, 1),
    "res2.0.shortcut.norm.weight": (256,),
    "res2.0.conv1.weight": (64, 64, 1, 1),
    "res2.0.conv1.norm.running_var": (64,),
    "res2.0.conv2.weight": (64, 64, 3, 3),
    "res2.0.conv3.weight": (256, 64, 1, 1),
    "res2.2.conv3.norm.bias": (256,),
    "res3.0.shortcut.weight": (512, 256, 1, 1),
    "res3.3.conv2.weight": (128, 128, 3, 3),
    "res4.5.conv1.weight": (256, 1024, 1, 1),
    "res5.0.shortcut.norm.running_mean": (2048,),
    "res5.2.conv3.weight": (2048, 512, 1, 1),
}


def test_detectron2_names_are_its_own(tmp_path):
    encoder = Encoder("resnet50", strides=(32,), fpn=False)
    Backbone.of(encoder, "resnet50").save_detectron2(tmp_path / "r50.pkl")
    content = pickle.loads((tmp_path / "r50.pkl").read_bytes())
    assert set(content) == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    arrays = content["model"]
    assert {name: arrays[name].shape for name in DETECTRON2_R50} == DETECTRON2_R50
    assert len(arrays) == 53 * 5  # 53 convolutions, each with the four tensors of its norm
    settings = yaml.safe_load((tmp_path / "r50.yaml").read_text())
    assert settings["MODEL"]["RESNETS"] == {
        "DEPTH": 50,
        "STRIDE_IN_1X1": False,
        "RES2_OUT_CHANNELS": 256,
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
    }
    assert settings["INPUT"] == {"FORMAT": "RGB"}
    assert settings["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert settings["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert settings["MODEL"]["WEIGHTS"] == str(tmp_path / "r50.pkl")


class NormedConv(nn.Conv2d):
    """A convolution with its normalisation inside, as detectron2 nests them."""

    def __init__(self, inputs, outputs, kernel, stride=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = NormedConv(inputs, outputs, 3, stride)
        self.conv2 = NormedConv(outputs, outputs, 3)
        different = inputs != outputs or stride > 1
        self.shortcut = NormedConv(inputs, outputs, 1, stride) if different else None

    def forward(self, x):
        branch = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + branch)


class DetectronResNet18(nn.Module):
    """ResNet-18 put together as detectron2's, with its names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": NormedConv(3, 64, 7, 2)})
        channels = [64, 64, 128, 256, 512]
        for i in range(4):
            inputs, outputs, stride = channels[i], channels[i + 1], 1 + (i > 0)
            stage = nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1))
            self.add_module(f"res{i + 2}", stage)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem["conv1"](x)), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x))))


@torch.no_grad()
def test_a_network_with_detectron2s_names_computes_the_same(tmp_path):
    encoder = shaken(Encoder("resnet18"))
    Backbone.of(encoder, "resnet18").save_detectron2(tmp_path / "r18.pkl")
    arrays = pickle.loads((tmp_path / "r18.pkl").read_bytes())["model"]
    model = DetectronResNet18().eval()
    loaded = model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, False)
    assert not loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    x = images(1, 3, 64, 64).double()
    assert_close(model.double()(x), encoder.double().backbone(x)[-1], terms_of(encoder))
    resnets = yaml.safe_load((tmp_path / "r18.yaml").read_text())["MODEL"]["RESNETS"]
    assert (resnets["DEPTH"], resnets["RES2_OUT_CHANNELS"]) == (18, 64)


def test_resnext_settings_for_detectron2(tmp_path):
    encoder = Encoder("resnext50_32x4d")
    Backbone.of(encoder, "resnext50_32x4d").save_detectron2(tmp_path / "x50.pkl")
    resnets = yaml.safe_load((tmp_path / "x50.yaml").read_text())["MODEL"]["RESNETS"]
    assert (resnets["DEPTH"], resnets["NUM_GROUPS"], resnets["WIDTH_PER_GROUP"]) == (50, 32, 4)


@pytest.mark.parametrize("name", ["fc.weight", "layer5.0.conv1.weight", "layer1.0.se.fc.bias"])
def test_detectron2_has_no_name_for_these(name):
    assert detectron2_name(name) is None


def test_a_backbone_that_does_not_fit_a_layout(tmp_path):
    def backbone(name):
        return Backbone.of(Encoder(name), name)

    with pytest.raises(
        ValueError, match=r"torchvision has no model of this name.*timm layout fits"
    ):
        backbone(TINY).save_torchvision(tmp_path / "w")
    with pytest.raises(ValueError, match="torchvision builds its efficientnet_b0 otherwise"):
        backbone("efficientnet_b0").save_torchvision(tmp_path / "w")
    with pytest.raises(ValueError, match=r"does not fit the detectron2 layout.*no place for"):
        backbone("resnet18d").save_detectron2(tmp_path / "w")
    with pytest.raises(ValueError, match=r"stages of resnet18 up to stride 16 only, so 30 tensors"):
        Backbone.of(Encoder("resnet18", strides=(4, 8, 16)), "resnet18")
    assert list(tmp_path.iterdir()) == []


def test_input_range_travels_along(tmp_path):
    encoder = Encoder(TINY)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    own_mean, own_std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.5, 0.25, 1.0])
    encoder.input_scale.copy_((std / own_std).view(3, 1, 1))
    encoder.input_shift.copy_(((mean - own_mean) / own_std).view(3, 1, 1))
    backbone = Backbone.of(encoder, TINY)
    assert backbone.mean == pytest.approx((0.4, 0.5, 0.6), abs=1e-4)  # written with four decimals
    assert backbone.std == pytest.approx((0.5, 0.25, 1.0), abs=1e-4)
    backbone.save_timm(tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "architecture": TINY,
            "layout": "timm",
            "mean": "0.4, 0.5, 0.6",
            "std": "0.5, 0.25, 1.0",
        }


# Segmenters


def pixels(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def settled(model):
    """Give a segmenter the statistics of some images, so that all of its categories occur."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean
    model.train()(images(4, 3, 64, 96))
    return model.eval()


@torch.no_grad()
def expected(model, image):
    """Logits and labels by way of the model itself."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    logits = model.segment((image - mean) / std)
    B, _, H, W = image.shape
    box = torch.tensor([0.0, 0.0, W, H]).expand(B, 4)
    batch = {"image": (image - mean) / std, "box": box}
    return logits, torch.stack(model.predict_step(batch))


def assert_same(found, model, image):
    logits, labels = expected(model, image)
    assert found[0].shape == logits.shape
    assert_close(found[0], logits, terms_of(model))
    assert found[1].dtype == torch.int64
    # Where two categories are as good as equal, rounding decides.
    assert (found[1] != labels).float().mean() < 1e-3


SIZES = [(1, 3, 64, 96), (3, 3, 128, 64), (2, 3, 64, 64)]


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = settled(tiny())
    return model, export_segmenter(model, (64, 64))


@pytest.mark.parametrize(
    ("writer", "name"),
    [("safetensors.torch.save_file", "w.safetensors"), ("torch.export.save", "w.pt2")],
)
def test_a_full_disk_leaves_no_half_file(writer, name, tmp_path, monkeypatch):
    def full(content, path, *_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, full)
    path = tmp_path / name
    path.write_bytes(b"the one before")
    save = Backbone.of(Encoder(TINY), TINY).save_timm
    if name == "w.pt2":
        save = partial(save_torch, None)
    with pytest.raises(OSError, match=rf"cannot write .*{name}: No space left"):
        save(path)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_torch_program(exported, tmp_path):
    model, program = exported
    save_torch(program, tmp_path / "w.pt2")
    loaded = torch.export.load(tmp_path / "w.pt2").module()
    for size in SIZES:
        assert_same(loaded(pixels(*size)), model, pixels(*size))
        # What differs in a label or two would pass if one category had everything.
        assert loaded(pixels(*size))[1].unique(return_counts=True)[1].min() > 50
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("densesiam" in target for target in targets)


def test_onnx_runs_in_onnxruntime(exported, tmp_path):
    onnx = pytest.importorskip("onnx", reason="ONNX export is an extra")
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX export is an extra")
    model, program = exported
    save_onnx(program, tmp_path / "w.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["w.onnx"]  # its weights lie inside
    content = onnx.load(tmp_path / "w.onnx")
    onnx.checker.check_model(content, full_check=True)
    assert {node.domain for node in content.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "w.onnx", providers=["CPUExecutionProvider"])
    assert [put.name for put in session.get_inputs()] == ["image"]
    assert [put.name for put in session.get_outputs()] == ["logits", "labels"]
    for size in SIZES:
        image = pixels(*size)
        outputs = session.run(None, {"image": image.numpy()})
        assert_same([torch.from_numpy(output) for output in outputs], model, image)


def test_onnx_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX export is an extra")
    run = onnxruntime.InferenceSession.run

    def wrong(self, *arguments):
        logits, labels = run(self, *arguments)
        return [logits + 0.1, labels]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", wrong)
    program = export_segmenter(shaken(tiny()), (32, 32), any_size=False)
    with pytest.raises(RuntimeError, match="the ONNX file is not the model: logits differ"):
        save_onnx(program, tmp_path / "w.onnx")
    assert list(tmp_path.iterdir()) == []


def test_padding_as_tensorflows(tmp_path):
    """It follows the size of the input; in the graph it is fixed, and right for every size."""
    torch.manual_seed(0)
    model = settled(tiny(backbone="tf_mobilenetv3_small_minimal_100", strides=(2, 4, 8)))
    program = export_segmenter(model, (64, 64))
    for size in ((1, 3, 64, 96), (2, 3, 128, 64)):
        assert_same(program.module()(pixels(*size)), model, pixels(*size))


class OneSize(DenseSiamSegmentation):
    """A network that is made for images of 64 x 64, as some transformers are."""

    def forward(self, images):
        if images.shape[2:] != (64, 64):
            raise RuntimeError("64 x 64 and nothing else")
        return super().forward(images)


def test_one_size_only():
    model = OneSize(backbone=TINY, strides=(4, 8), channels=8, hidden_channels=8)
    program = export_segmenter(model, (64, 64), any_size=False)
    image = pixels(3, 3, 64, 64)
    assert_same(program.module()(image), model, image)
    with pytest.raises(ValueError, match="for images of any size: give the one that it is for"):
        export_segmenter(model, (64, 64))
    with pytest.raises(ValueError, match=r"multiples of 32, .* and at least 32, got 20 x 32"):
        export_segmenter(model, (20, 32), any_size=False)


def test_picie_is_a_segmenter_too():
    torch.manual_seed(0)
    model = PiCIE(num_classes=4, backbone=TINY, strides=(4, 8), channels=8)
    program = export_segmenter(model, (32, 32), any_size=False)
    image = pixels(2, 3, 32, 32)
    assert_same(program.module()(image), model, image)


def test_exporting_leaves_the_model_as_it_was():
    model = tiny(backbone="tf_efficientnet_lite0", strides=(4, 8)).train()
    modules = [type(module) for module in model.modules()]
    PortableSegmenter(model)
    assert [type(module) for module in model.modules()] == modules
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


# The command


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of a segmenter and of a pre-training, as trainings leave them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    pretraining = {"hidden_channels": 8, "predictor_channels": 8, "lambda2": 0.0}
    for name, model in {
        "segmenter": tiny(),
        "pretrained": DenseSiamPretraining(backbone="resnet18", lr=0.1, **pretraining),
    }.items():
        trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / f"{name}.ckpt", weights_only=True)
    return folder


def test_command_exports_backbones(checkpoints, tmp_path, capsys):
    file = tmp_path / "new" / "w.safetensors"
    arguments = ["export", str(checkpoints / "pretrained.ckpt"), "--format", "torchvision"]
    assert cli.main([*arguments, "--output", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {file}: 120 tensors of resnet18, no classifier" in said
    assert "torchvision.models.resnet18().load_state_dict(tensors, strict=False)" in said
    assert "less the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)" in said
    state = safetensors.torch.load_file(file)
    model = DenseSiamPretraining.load_from_checkpoint(checkpoints / "pretrained.ckpt")
    expected_state = model.encoder.backbone.state_dict()
    name = "layer4.1.conv2.weight"
    assert torch.equal(state[name], expected_state[name])

    assert cli.main([*arguments, "--output", str(file)]) == 1
    assert "exists, and is not overwritten" in capsys.readouterr().err
    assert cli.main([*arguments, "--output", str(tmp_path / "w.pkl")]) == 1
    assert "--output for torchvision should end in .safetensors" in capsys.readouterr().err


def test_command_exports_segmenters(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["export", str(checkpoints / "segmenter.ckpt"), "--format", "torch"]
    assert cli.main([*arguments, "--size", "[32, 64]", "--any_size", "false"]) == 0
    said = capsys.readouterr().out
    assert "wrote outputs/export/segmenter.pt2" in said
    assert "RGB in [0, 1], 32 x 64 pixels" in said
    assert "logits, float32 (batch, 5, height / 4, width / 4)" in said
    program = torch.export.load("outputs/export/segmenter.pt2")
    logits, labels = program.module()(pixels(1, 3, 32, 64))
    assert logits.shape == (1, 5, 8, 16)
    assert labels.shape == (1, 32, 64)

    arguments[1] = str(checkpoints / "pretrained.ckpt")
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "is not a segmentation model's checkpoint, but a pre-training model's" in error
