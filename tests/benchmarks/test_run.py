import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import ceilings, composites, ops, release, run, suite, training_step
from benchmarks.__main__ import main
from benchmarks.problem import Setting
from benchmarks.results import Results
from benchmarks.run import Case, measure
from densesiam.ops import overlap_sample
from tests.stand_in import small
from tests.tolerance import assert_close

ON_CPU = not torch.cuda.is_available()


SHAPES = [(name, shape) for name, module in ops.MODULES.items() for shape in module.SHAPES]


@pytest.mark.parametrize(
    ("name", "shape"), SHAPES, ids=[f"{name}-{shape.name}" for name, shape in SHAPES]
)
def test_everyone_computes_the_same(name, shape):
    setting = Setting(batch=3, channels_last=name != "confusion_matrix")
    problem = ops.MODULES[name].problem(small(shape), setting)
    measured = measure(Case(problem, shape.name, setting, "own"), rounds=1)
    assert not measured.refused
    assert not measured.wrong_peers
    assert {"eager", "clone"} < set(measured.milliseconds)
    assert set(measured.parts) == set(problem.parts or {})
    assert set(measured.extra_bytes) == set(measured.milliseconds) - {"clone"}
    assert bool(measured.forward_milliseconds) == bool(problem.differentiable)
    if problem.release:
        assert "release" in measured.milliseconds


@pytest.mark.parametrize("dtype", suite.TYPES)
@pytest.mark.parametrize("name", [name for name in ops.MODULES if name not in suite.INTEGERS])
def test_ours_is_right_in_every_type(name, dtype):
    setting = Setting(batch=2, dtype=dtype)
    shape = small(ops.MODULES[name].SCALED)
    problem = ops.MODULES[name].problem(shape, setting)
    measured = measure(Case(problem, shape.name, setting, "types"), rounds=1)
    assert not measured.refused
    assert measured.dtype == str(dtype)[6:]


@pytest.mark.parametrize("variant", [0, 1])
def test_segmentation_after_the_encoder(variant):
    module = composites.segmentation
    shape = replace(module.SHAPES[variant], height=12, width=12, size=12)
    problem = module.problem(shape, Setting(2))
    measured = measure(Case(problem, shape.name, Setting(2), "own"), rounds=1)
    assert not measured.refused
    assert not measured.wrong_peers
    assert {"eager", "release", "clone"} < set(measured.milliseconds)
    assert "products" in measured.parts


def pretraining(variant, batch):
    module = composites.pretraining
    shape = replace(module.SHAPES[variant], channels=512, classes=64)
    return module.problem(shape, Setting(batch))


@pytest.mark.parametrize("batch", [2, 4])  # of two images normalisation enlarges rounding the most
@pytest.mark.parametrize("variant", [0, 1, 2])
def test_pretraining_after_the_encoder(variant, batch):
    problem = pretraining(variant, batch)
    measured = measure(Case(problem, "", Setting(batch), "own"), rounds=1)
    assert not measured.refused
    assert not measured.wrong_peers


FAULTS = {
    "a gradient off by a thousandth": lambda x: 1.001 * x - 0.001 * x.detach(),
    "no gradient to one pixel": lambda x: torch.where(one_pixel(x), x.detach(), x),
    "no gradient in float32": lambda x: x.detach() if x.dtype == torch.float32 else x,
    "one pixel is 0": lambda x: torch.where(one_pixel(x), 0, x),
    "NaN": lambda x: torch.where(one_pixel(x), torch.nan, x),
}


def one_pixel(x):
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[0, :, -1, -1] = True
    return mask


@pytest.mark.skipif(not ON_CPU, reason="the CPU backend is not measured where there is a GPU")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_composite_is_found(fault):
    problem = pretraining(0, batch=4)  # of two images normalisation leaves hardly any gradient
    # What is returned stays attached to the leaf, so that the gradient is there to be compared.
    wrong = replace(problem, ours=lambda x, *rest: problem.ours(fault(x), *rest) + 0 * x.sum())
    measured = measure(Case(wrong, "", Setting(4), "own"), rounds=1)
    assert measured.refused["cpu"].startswith("wrong by")


@pytest.mark.skipif(not ON_CPU, reason="the CPU backend is not measured where there is a GPU")
def test_what_is_wrong_with_one_draw_of_inputs_alone_is_rounding():
    problem, drawn = pretraining(0, batch=4), []

    def make():
        drawn.append(problem.make())
        return drawn[-1]

    def turned_over(x, *rest):
        return problem.ours(x.detach() if x is drawn[0][0] else x, *rest) + 0 * x.sum()

    case = Case(replace(problem, make=make, ours=turned_over), "", Setting(4), "own")
    assert not measure(case, rounds=1).refused


def test_small_gradients_are_no_error_in_half_precision():
    """Those of a mean over 51,200 pixels, which float16 would keep to a few bits, or lose."""
    setting = Setting(8, torch.float16)
    problem = ops.pseudo_label_loss.problem(ops.pseudo_label_loss.SHAPES[0], setting)
    for seed in range(3):
        torch.manual_seed(seed)
        assert not measure(Case(problem, "", setting, "types"), rounds=1).refused


@pytest.mark.skipif(not ON_CPU, reason="the CPU backend is not measured where there is a GPU")
@pytest.mark.parametrize("fault", ["result", "gradient"])
def test_a_wrong_result_or_gradient_has_no_time(fault, capsys, monkeypatch):
    setting = Setting(2)
    shape = small(ops.pixel_similarity.SHAPES[0])
    problem = ops.pixel_similarity.problem(shape, setting)

    def wrong(p, z):
        right = problem.ours(p, z)
        if fault == "result":
            return right + 1e-2
        return right + (p[0] - p[0].detach()).sum() * 1e-3  # adds nothing but a gradient

    case = Case(replace(problem, ours=wrong), shape.name, setting, "own")
    measured = measure(case, rounds=1)
    assert "cpu" not in measured.milliseconds
    assert measured.refused["cpu"].startswith("wrong by")

    monkeypatch.setattr(suite, "cases", lambda *_: [case])
    assert main(["--rounds", "1"]) == 1
    out = capsys.readouterr()
    assert "not timed" in out.out
    assert "cpu is wrong by" in out.err


def test_a_wrong_peer_is_left_out_and_the_others_are_timed():
    setting = Setting(2)
    problem = ops.pseudo_label_loss.problem(small(ops.pseudo_label_loss.SHAPES[0]), setting)
    problem = replace(
        problem,
        release=lambda logits: problem.eager(logits) * 2,
        peers={"two_ops": lambda logits: logits.does_not_exist},
    )
    with pytest.raises(AttributeError):  # a fault of the benchmark itself is not hidden
        measure(Case(problem, "", setting, "own"), rounds=1)

    def cannot(logits):
        raise RuntimeError("not for this type\nand more")

    measured = measure(
        Case(replace(problem, peers={"two_ops": cannot}), "", setting, "own"), rounds=1
    )
    assert measured.wrong_peers["release"].startswith("wrong by")
    assert measured.wrong_peers["two_ops"] == "cannot: not for this type"
    assert "eager" in measured.milliseconds


def test_errors_of_composites_are_those_of_whole_gradients():
    gradient = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.full((3,), 1e-9)
    expected = (torch.tensor(1.0), (gradient, noise))
    assert run.composite_error((expected[0], (gradient, -noise)), expected) < 1e-6
    found = run.composite_error((expected[0], (1.1 * gradient, noise)), expected)
    assert found == pytest.approx(0.1)
    found = run.composite_error((expected[0] - 0.2, (1.1 * gradient, noise)), expected)
    assert found == pytest.approx(0.2)
    assert math.isnan(run.composite_error((expected[0], (gradient, noise * math.nan)), expected))


def test_without_torchvision_all_else_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)  # importing it fails
    problem = ops.overlap_sample.problem(small(ops.overlap_sample.SHAPES[0]), Setting(1))
    measured = measure(Case(problem, "", Setting(1), "own"), rounds=1)
    assert measured.wrong_peers["roi_align"].startswith("cannot: ")
    assert "roi_align" not in measured.parts
    assert {"eager", "clone"} < set(measured.milliseconds)


def test_threads_are_set_and_set_back():
    setting = Setting(1)
    problem = ops.label_map.problem(small(ops.label_map.SHAPES[0]), setting)
    before = torch.get_num_threads()
    measured = measure(Case(problem, "", setting, "threads", threads=2), rounds=1)
    assert measured.threads == 2
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_compile_time_is_apart(monkeypatch):
    timed, graphs = run.time_side_by_side, torch._dynamo.utils.counters["stats"]

    def watched(calls, *args):
        before = graphs["unique_graphs"]
        assert before > 0
        result = timed(calls, *args)
        assert graphs["unique_graphs"] == before  # nothing is compiled while it is timed
        return result

    monkeypatch.setattr(run, "time_side_by_side", watched)
    problem = ops.label_map.problem(small(ops.label_map.SHAPES[0]), Setting(1))
    measured = measure(Case(problem, "", Setting(1), "own", compiled=True), rounds=1)
    assert measured.compile_seconds > 0
    assert "compile" in measured.milliseconds


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_release_samples_the_same_inside_crops_of_whole_pixels(mirrored):
    values = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[4 / 16, 2 / 12, 12 / 16, 10 / 12]]).expand(2, 4).clone()  # 8 x 8 pixels
    if mirrored:
        box = box[:, [2, 1, 0, 3]]
    ours, theirs = overlap_sample(values, box, 16), release.crop_flip_resize(values, box, 16)
    inside = (..., slice(1, -1), slice(1, -1))  # half a pixel in: no neighbour is missing
    # Eight steps to two coordinates of up to 16 pixels, times the difference of two of them.
    assert_close(theirs[inside], ours[inside], terms=8, rms=16 * 2**0.5)
    assert (theirs - ours).abs().max() > 0.1


def test_every_group_has_cases_of_every_operation_it_is_for():
    threads = torch.get_num_threads()
    cases = list(suite.cases(list(ops.MODULES), list(suite.GROUPS), batch=1))
    groups = {group: [c for c in cases if c.group == group] for group in suite.GROUPS}
    own = {name for name, module in ops.MODULES.items() if any(s.own for s in module.SHAPES)}
    assert {c.problem.op for c in groups["own"]} == own
    assert {c.problem.op for c in groups["shapes"]} == set(ops.MODULES)
    assert {c.setting.dtype for c in groups["types"]} == set(suite.TYPES)
    assert {c.setting.channels_last for c in groups["own"]} == {False, True}
    if ON_CPU:
        assert {c.threads for c in groups["threads"]} >= {1, threads}
    assert all(c.compiled for c in groups["own"])
    assert not any(c.compiled for c in cases if c.group != "own")


def test_quick_compiles_nothing():
    cases = list(suite.cases(list(ops.MODULES), ["own"], batch=1, quick=True))
    assert not any(c.compiled or c.setting.channels_last for c in cases)


def test_from_command_to_page(tmp_path, capsys):
    command = ["--quick", "--batch", "1", "--rounds", "1", "--ops", "confusion_matrix"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "confusion_matrix" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "results.csv", "index.html"}


def test_after_its_minutes_it_starts_nothing_and_says_so(tmp_path, capsys):
    path = tmp_path / "result.json"
    command = ["--quick", "--batch", "1", "--ops", "confusion_matrix", "--groups", "side"]
    assert main([*command, "--minutes", "1e-9", "--json", str(path)]) == 0
    assert "4 cases were left out when 1e-09 minutes were over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "nothing"], "invalid choice: 'nothing'"),
        (["--rounds", "0"], "whole number above 0, got '0'"),
        (["--quick", "--full"], "not allowed with"),
    ],
)
def test_errors_say_what_was_given(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_training_steps_of_a_full_run(tmp_path, monkeypatch, capsys):
    tiny = {"tiny": (training_step.demo_model, 2, 64, 64)}
    monkeypatch.setattr(training_step, "STEPS", tiny)
    command = ["--full", "--groups", "own", "--ops", "confusion_matrix", "--shapes", "27 x 27"]
    monkeypatch.setattr(suite, "cases", lambda *_: [])
    path = tmp_path / "result.json"
    assert main([*command, "--rounds", "1", "--json", str(path)]) == 0
    step = Results.read(path).steps["tiny"]
    assert {"cpu" if ON_CPU else "cuda", "reference"} <= set(step)
    assert all(each["ms"]["median"] > 0 and each["operators"] for each in step.values())
    assert "tiny" in capsys.readouterr().out


def on_a_gpu(gpu, op, name=0):
    setting = Setting(2)
    problem = ops.MODULES[op].problem(small(ops.MODULES[op].SHAPES[name]), setting)
    return measure(Case(problem, "", setting, "own"), rounds=1, backends=[gpu.backend])


def test_products_of_half_types_may_round_their_operands():
    """As tensor cores take them: the result is float32, and right to fewer bits than that."""
    setting = Setting(1, torch.float16)
    problem = ops.region_pool.problem(small(ops.region_pool.SHAPES[0]), setting)
    right = torch.ones(4)
    assert run.difference(problem, (right * 1.001, ()), (right, ())) is None
    assert run.difference(problem, (right * 1.01, ()), (right, ())) is not None
    alone = replace(problem, operands=None)
    assert run.difference(alone, (right * 1.001, ()), (right, ())) is not None


def test_on_a_gpu_each_is_timed_as_a_graph_and_from_python(gpu):
    row = on_a_gpu(gpu, "region_pool")
    assert not row.refused
    assert not row.wrong_peers
    for who in ("eager", "release", gpu.backend, "bmm"):
        assert row.clocks[who] == "graph"
        assert row.called_milliseconds[who].median > 0
    assert row.clocks["clone"] == "graph"


def test_nothing_of_autograd_outlives_a_comparison():
    """Its ends of the inputs belong to a stream, and kept any other from being captured."""
    module = ops.pixel_similarity
    problem = module.problem(small(module.SHAPES[0]), Setting(2))
    runner = run._Runner(problem, [problem.make()])
    assert runner.error("eager", problem.eager) is None
    ((_, (result, gradients)),) = runner.right.values()
    assert not any(tensor.requires_grad for tensor in (result, *gradients))


def test_on_a_gpu_what_waits_for_it_is_timed_from_python_alone(gpu):
    if gpu.backend == "triton":
        pytest.skip("it has no kernel for it")
    row = on_a_gpu(gpu, "confusion_matrix")
    assert row.clocks["eager"] == "events"
    assert row.clocks[gpu.backend] == "graph"


def test_the_result_of_a_gpu_says_so(gpu, tmp_path, capsys):
    path = tmp_path / "result.json"
    command = ["--groups", "half", "--ops", "pixel_similarity", "--shapes", "cross-entropy 27"]
    command += ["--batch", "1", "--rounds", "1", "--no-compile", "--backends", "reference"]
    assert main([*command, "--json", str(path)]) == 0
    results = Results.read(path)
    assert results.machine["device"] == gpu.cuda.get_device_name()
    assert {row.dtype for row in results.rows} == {"float16"}
    assert {row.layout for row in results.rows} == {"contiguous", "channels_last"}
    assert "ms from Python" in capsys.readouterr().out


def test_ceilings(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ceilings, "COPIED", 1 << 20)
    monkeypatch.setattr(ceilings, "SIDE", 64)
    path = tmp_path / "ceilings.json"
    assert main(["ceilings", "--rounds", "2", "--json", str(path)]) == 0
    found = json.loads(path.read_text())["ceilings"]
    assert {"copy GB/s", "product tf32 TFLOP/s", "product float16 TFLOP/s"} <= set(found)
    assert all(rate["low"] <= rate["median"] <= rate["high"] for rate in found.values())
    assert "copy GB/s" in capsys.readouterr().out


def test_convolutions_are_checked_in_float32_and_timed_as_they_are():
    before = torch.backends.cudnn.allow_tf32
    with run.float32_convolutions():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
