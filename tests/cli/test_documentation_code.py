"""README and docs: their Python runs as it stands, and what is called equivalent is.

A page's blocks share one set of names, in order. What a block takes from its reader is made here,
small.
"""

import ast
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from densesiam import ops
from densesiam.data import Images, SegmentationViews
from densesiam.geometry import aligned_boxes
from densesiam.methods import DenseSiamPretraining, DenseSiamSegmentation, Method
from densesiam.models import Encoder, Predictor, Projector
from densesiam.nn import PixelSimilarity
from densesiam.transfer import DetectionTransfer
from densesiam.transfer.base import Supervised
from tests.cli import predicting, support
from tests.cli.support import PAGES
from tests.tolerance import assert_close


def nothing(space):
    pass


def save_model(path, model, key):
    """Write a checkpoint as a training leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
        key: type(model).__name__,
    }
    torch.save(content, path)


def labelled_batches(space):
    model = DenseSiamSegmentation(**{**predicting.MODEL, "num_classes": 27})
    space["model"] = model
    space["batches"] = [(torch.rand(2, 3, 32, 32), torch.randint(27, (2, 32, 32)))]


def exported_tensors(space):
    tensors = {"conv1.weight": torch.zeros(1)}
    safetensors.torch.save_file(tensors, "resnet50-timm.safetensors", {"layout": "timm"})


def exported_graph(space):
    """With the names that `test_onnx_runs_in_onnxruntime` finds in what the command writes."""
    onnx = pytest.importorskip("onnx", reason="ONNX export is an extra")
    pytest.importorskip("onnxruntime", reason="ONNX export is an extra")
    make, kind = onnx.helper, onnx.TensorProto
    graph = make.make_graph(
        [
            make.make_node("Identity", ["image"], ["logits"]),
            make.make_node("ArgMax", ["image"], ["labels"], axis=1, keepdims=0),
        ],
        "segmenter",
        [make.make_tensor_value_info("image", kind.FLOAT, ["b", 3, "h", "w"])],
        [
            make.make_tensor_value_info("logits", kind.FLOAT, ["b", 3, "h", "w"]),
            make.make_tensor_value_info("labels", kind.INT64, ["b", "h", "w"]),
        ],
    )
    opset = [make.make_opsetid("", 18)]
    onnx.save(make.make_model(graph, opset_imports=opset, ir_version=9), "segmenter.onnx")
    space["image"] = torch.rand(1, 3, 32, 32).numpy()


def maps(space):
    """Of every block of the page, in float64."""
    make = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
    features, p, z, logits = (torch.randn(2, 5, 7, 6, **make) for _ in range(4))
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.9, 0.0, 0.3, 0.5]])
    size = (4, 3)
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in size)
    x1, y1, x2, y2 = boxes.double().T[:, :, None, None]
    x, y = x1 + columns * (x2 - x1), (y1 + rows[:, None] * (y2 - y1))
    grid = torch.stack(torch.broadcast_tensors(2 * x - 1, 2 * y - 1), dim=-1)
    space |= {"boxes_p": boxes, "boxes_z": boxes.flip(0), "kind": "cosine", "weight": None}
    space |= {"targets": None, "F": F, "torch": torch, "ops": ops, **vars(ops)}
    space |= {
        "features": features, "p": p, "z": z, "logits": logits, "boxes": boxes, "size": size,
        "grid": grid,
    }  # fmt: skip


def photographs(space):
    for i in range(16):
        predicting.save_photo(Path("PHOTOS", f"{i}.png"), seed=i)
    loader = torch.utils.data.DataLoader
    space |= {"Images": Images, "SegmentationViews": SegmentationViews, "DataLoader": loader}


def networks(space):
    space["batch"] = next(iter(space["loader"]))
    encoder = Encoder("test_resnet", None, [4, 8], channels=8)
    space |= {"encoder": encoder, "projector": Projector(8, 8, 3), "predictor": Predictor(3, 8, 3)}
    space |= {"ops": ops, "aligned_boxes": aligned_boxes, "PixelSimilarity": PixelSimilarity}


def pretrained(space):
    path = Path("outputs/pretrain/folder/checkpoints/last.ckpt")
    save_model(path, DenseSiamPretraining(**support.MODEL), Method.KEY)


def detector(space):
    settings = {"backbone": "test_resnet", "sizes": [64], "max_size": 64}
    model = DetectionTransfer(["cat", "dog"], **settings, proposals=16, sampled_proposals=8)
    save_model(Path("last.ckpt"), model, Supervised.KEY)


# What makes a page's names and files, before each of its blocks.
STAND_INS = {
    "README": [nothing],
    "evaluation": [labelled_batches],
    "export": [exported_tensors, exported_graph],
    "operations": [maps] * 6,
    "own-loop": [photographs, networks],
    "pretraining": [pretrained],
    "transfer": [detector],
}

# What the expressions of a block are said to be equivalent to.
EQUIVALENT = {
    ("operations", 0): lambda s: [ops.overlap_sample(s["features"], s["boxes"], s["size"])],
    ("operations", 1): lambda s: [
        ops.pixel_similarity(s["p"], s["z"], kind) for kind in ("cosine", "cross_entropy")
    ],
    ("operations", 2): lambda s: [
        ops.overlap_similarity(s["p"], s["z"], s["boxes_p"], s["boxes_z"], s["size"], "cosine")
    ],
    ("operations", 3): lambda s: [ops.region_pool(s["features"], s["logits"])],
    ("operations", 4): lambda s: [ops.pseudo_label_loss(s["logits"])],
}


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem) for page in PAGES if blocks(page)]
)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = {}
    for i, (block, prepare) in enumerate(zip(blocks(page), STAND_INS[page.stem], strict=True)):
        prepare(space)
        values = []
        for statement in ast.parse(block).body:
            code = ast.Module([statement], [])
            if isinstance(statement, ast.Expr):
                expression = compile(ast.Expression(statement.value), page.name, "eval")
                values.append(eval(expression, space))
            else:
                exec(compile(code, page.name, "exec"), space)
        if (expected := EQUIVALENT.get((page.stem, i))) is not None:
            # No sum here is of more than the 84 values of a map.
            assert_close(values, expected(space), terms=84, rms=1.0)


def test_every_page_is_known():
    assert set(STAND_INS) == {page.stem for page in PAGES if blocks(page)}
