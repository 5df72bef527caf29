"""The sweep of a visit: what it runs, and that it finds what is wrong."""

from dataclasses import replace

import pytest
import torch

from benchmarks import device, ops
from densesiam import ops as operations
from densesiam.ops import use_backend
from tools.gpu_kit import sweep

pytestmark = pytest.mark.skipif(bool(device.gpu), reason="these run on the CPU")


@pytest.fixture
def small(monkeypatch):
    """The method's own shapes, with few pixels."""
    for module in ops.MODULES.values():
        shapes = [replace(s, height=5, width=6, size=min(s.size, 4)) for s in module.SHAPES]
        monkeypatch.setattr(module, "SHAPES", shapes)


@pytest.mark.parametrize("op", ops.MODULES)
def test_every_kind_of_item_runs(op, small):
    found = dict(sweep.items(op, "reference", 2))
    assert len({name.split(": ")[1] for name in found}) == 8  # four types, two layouts
    one_kind = {
        name: check for name, check in found.items() if name.endswith("float32, contiguous")
    }
    own = {name.startswith("own shape") for name in one_kind}
    assert own == {False, *(shape.own for shape in ops.MODULES[op].SHAPES if shape.own)}
    with use_backend("reference"):
        told = {name: sweep.outcome(check) for name, check in one_kind.items()}
    assert {each["verdict"] for each in told.values()} == {"right"}, told


def test_own_shapes_can_be_left_out():
    assert not [name for name, _ in sweep.items("label_map", "cpu", 0) if "own shape" in name]


@pytest.mark.parametrize("name", ["cosine", "own shape cosine 128"])
def test_what_is_wrong_is_found(name, small, monkeypatch):
    right = operations.pixel_similarity

    def wrong(p, *others, **named):  # but for the float64 that it is measured by
        return right(p, *others, **named) * (1 if p.dtype == torch.float64 else 1.001)

    monkeypatch.setattr(operations, "pixel_similarity", wrong)
    found = dict(sweep.items("pixel_similarity", "reference", 2))
    with use_backend("reference"):
        told = sweep.outcome(found[f"{name}: float32, contiguous"])
    assert told["verdict"] == "wrong"


def test_what_raises_is_on_record():
    def raising():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    told = sweep.outcome(raising)
    assert told["verdict"] == "error"
    assert told["said"].startswith("RuntimeError: CUDA error")


def test_after_an_error_that_breaks_the_device_the_process_ends(monkeypatch, capsys):
    class Broken:
        def synchronize(self):
            raise RuntimeError("CUDA error")

    def items(*_):
        yield "one", lambda: torch.ones(1).no_such_thing
        yield "two", list

    monkeypatch.setattr(sweep, "items", items)
    monkeypatch.setattr(sweep, "use_backend", lambda name: use_backend("reference"))
    monkeypatch.setattr("sys.argv", ["sweep", "label_map", "cpu"])
    assert sweep.main() == 0
    assert capsys.readouterr().out.count("verdict") == 2
    monkeypatch.setattr(device, "gpu", Broken())
    assert sweep.main() == sweep.BROKEN
    assert capsys.readouterr().out.count("verdict") == 1
