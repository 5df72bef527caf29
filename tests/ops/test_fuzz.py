"""Random calls of each operation against the reference; the fuzzer finds what is planted."""

import pytest
import torch

from densesiam import ops
from densesiam.ops import _backends
from densesiam.ops._operations import OPERATIONS
from tests.ops import fuzz

CASES = {"cpu": 1000, "emulator": 500}
SEED = 0


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_has_a_generator(op):
    assert op in fuzz.GENERATORS, f"tests/ops/fuzz.py has no generator for {op}"


@pytest.mark.parametrize("backend", CASES)
@pytest.mark.parametrize("op", fuzz.GENERATORS)
def test_random_calls_are_right(op, backend):
    if backend == "cpu" and _backends.missing("cpu") is not None:
        pytest.skip("the CPU kernels were not built")
    print(f"{CASES[backend]} cases from seed {SEED}")
    with fuzz.running_on(backend):
        wrong = fuzz.fuzz(op, CASES[backend], SEED, backend)
    assert not wrong, "\n".join(wrong)


def without_a_tap(function):
    """The gradient lacks what the last sample gives."""

    def call(*args, **keywords):
        result = function(*args, **keywords)
        if result.requires_grad:
            keeps = torch.ones_like(result)
            keeps[..., -1:] = 0
            result.register_hook(lambda grad: grad * keeps)
        return result

    return call


def without_the_last_column(function):
    """A mask that ends one too early, where there are several columns."""

    def call(features, *args, **keywords):
        keeps = torch.ones_like(features)
        if features.shape[-1] > 1:
            keeps[..., -1] = 0
        return function(torch.where(keeps == 0, 0, features), *args, **keywords)

    return call


def without_nan(function):
    """A comparison that NaN falls through."""
    return lambda *args, **keywords: function(*args, **keywords).nan_to_num(nan=0.0)


@pytest.mark.parametrize("fault", [without_a_tap, without_the_last_column, without_nan])
@pytest.mark.parametrize("op", ["overlap_sample", "pixel_similarity", "region_pool", "roi_align"])
def test_planted_faults_are_found(op, fault, monkeypatch):
    if _backends.missing("cpu") is not None:
        pytest.skip("the CPU kernels were not built")
    monkeypatch.setattr(ops, op, fault(getattr(ops, op)))
    with fuzz.running_on("cpu"):
        assert fuzz.fuzz(op, 40, SEED, "cpu")


def test_a_reported_line_runs_that_case_again(monkeypatch, capsys):
    monkeypatch.setattr(ops, "label_map", lambda logits, size: ops.confusion_matrix)
    assert fuzz.main(["--cases", "2", "--seed", "7", "--backend", "reference", "label_map"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    again = lines[1].split("#")[0].split()[3:]
    assert again == ["--cases", "1", "--seed", "8", "--backend", "reference", "label_map"]
    assert fuzz.main(again) == 1
    assert capsys.readouterr().out.splitlines()[0] == lines[1]
