"""The scripts that run the project in fresh clones: what they conclude, and what they run again."""

import os
import sys
from pathlib import Path

import pytest

import densesiam
from densesiam import _libraries
from tools import everywhere, fresh, three_uses
from tools.everywhere import Combination, Row
from tools.fresh import Place, Step


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path) -> Place:
    (tmp_path / "tree").mkdir()
    return Place(tmp_path / "tree", Path(sys.executable), tmp_path / "logs")


class TestFresh:
    def test_a_step_has_its_log_and_its_times(self, place):
        busy = "import time\nwhile time.process_time() < 0.2: pass\nprint('worked')"
        step = place.run("some work", ["-c", busy])
        assert step.ok
        assert Path(step.log).read_text() == "worked\n"
        assert 0.2 <= step.processor_seconds < 60
        assert step.seconds > 0

    def test_a_step_that_fails_says_how(self, place):
        step = place.run("wrong", ["-c", "raise SystemExit('no such thing')"])
        assert not step.ok
        assert step.said == "exit code 1: no such thing"
        assert step.log in step.line()

    def test_the_environment_comes_first_on_the_path(self, place):
        step = place.run("path", ["sh", "-c", "echo $PATH $MINE"], variables={"MINE": "here"})
        path, mine = Path(step.log).read_text().split()
        assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert mine == "here"

    def test_a_shim_that_leads_nowhere_is_passed_over(self, monkeypatch, tmp_path):
        program(tmp_path / "shims" / "python3.99", "echo no such version >&2; exit 127")
        monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:/usr/bin:/bin")
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
        assert fresh.find_python("3.99") is None
        real = program(tmp_path / "versions" / "3.99.1" / "bin" / "python3.99", "echo 3.99")
        assert fresh.find_python("3.99") == real

    def test_settings_of_the_caller_stay_out(self, monkeypatch):
        for name in ("DENSESIAM_BACKEND", "FORCE_CPU", "PYTHONPATH", "MAKEFLAGS", "VIRTUAL_ENV"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("CUDA_HOME", "/toolkit")
        kept = fresh.clean_environment()
        assert kept["CUDA_HOME"] == "/toolkit"
        assert not {"DENSESIAM_BACKEND", "FORCE_CPU", "PYTHONPATH", "MAKEFLAGS"} & set(kept)


@pytest.mark.parametrize(
    ("line", "ok"),
    [("9 passed, 2 skipped in 3.1s", True), ("135 skipped in 0.2s", False), ("written", True)],
)
def test_a_suite_of_which_nothing_ran_has_not_passed(place, line, ok):
    done = place.run("suite", ["-c", f"print({line!r})"])
    assert everywhere.counted(done).ok is ok


def row(**changes):
    """A row of the benchmarks that is as it should be."""
    return {"op": "label_map", "shape": "2 x 5", "refused": {}, "wrong_peers": {}} | changes


class TestWheel:
    @pytest.fixture
    def dist(self, monkeypatch, tmp_path) -> Path:
        monkeypatch.setattr(everywhere, "ROOT", tmp_path)
        monkeypatch.setattr(everywhere, "find_uv", lambda: "echo")
        (tmp_path / "dist").mkdir()
        return tmp_path / "dist"

    def test_it_is_installed_and_the_sources_go(self, dist, place):
        (place.tree / "densesiam").mkdir()
        wheel = dist / "densesiam-0.1.0-cp311-abi3-manylinux_2_34_x86_64.whl"
        wheel.touch()
        step = everywhere.install_wheel(place)
        assert (step.ok, step.said) == (True, wheel.name)
        assert str(wheel) in Path(step.log).read_text()
        assert not (place.tree / "densesiam").exists()

    def test_without_one_the_row_says_how_to_make_it(self, dist, place):
        step = everywhere.install_wheel(place)
        assert not step.ok
        assert "has 0 wheels, not one: run `make wheel`" in step.said


class TestThreeUses:
    @pytest.mark.skipif(not _libraries.find("_cpu"), reason="the CPU kernels were not built")
    def test_what_is_built_here_is_found_to_load(self, place):
        here = Place(fresh.ROOT, place.python, place.logs)
        built = here.run("build", ["-c", "print('densesiam: no nvcc was found: no CUDA kernels')"])
        step = three_uses.loading(here, built)
        assert step.ok, step.said
        assert step.said.startswith("CPU")

    @pytest.mark.parametrize(
        ("libraries", "said", "ok", "concluded"),
        [
            (
                {"_cpu": None, "_cuda": None},
                "densesiam: CUDA 13.0 in /x",
                True,
                "CPU and CUDA 13.0",
            ),
            (
                {"_cpu": None},
                "densesiam: no nvcc was found: no CUDA kernels",
                True,
                "CPU alone (no nvcc was found: no CUDA kernels)",
            ),
            ({}, "densesiam: no C++ compiler was found", False, "no CPU kernels were built"),
            ({"_cpu": None, "_cuda": "undefined symbol"}, "", False, "_cuda: undefined symbol"),
        ],
    )
    def test_of_a_build(self, libraries, said, ok, concluded):
        assert three_uses.judge_build(libraries, said) == {"ok": ok, "said": concluded}

    @pytest.mark.parametrize(
        ("losses", "ok"),
        [
            ("0.1 -0.2", True),
            ("-0.2 -0.2", False),
            ("0.1 nan", False),
            ("0.1 inf -0.2", False),
            ("0.1 -inf", False),
            ("0.1", False),
            ("", False),
        ],
    )
    def test_of_a_training(self, losses, ok):
        text = "".join(f"step {i}: loss {loss}\n" for i, loss in enumerate(losses.split()))
        assert three_uses.judge_losses(text)["ok"] == ok

    @pytest.mark.parametrize(
        ("rows", "text", "ok"),
        [
            ([row()], "", True),
            ([row(wrong_peers={"compile": "cannot: half types"})], "", True),
            ([row(wrong_peers={"compile": "wrong by 1e-2"})], "", False),
            ([row(refused={"cpu": "wrong by 1e-2"})], "", False),
            ([row(refused={"cpu": "cannot: images too large"})], "", False),
            ([row()], "label_map 2 x 5 no backend of ours serves this", False),
            ([], "", False),
        ],
    )
    def test_of_benchmarks(self, rows, text, ok):
        assert three_uses.judge_benchmarks(rows, text)["ok"] == ok

    def test_the_loop_is_the_readmes(self, place):
        code = "for step in range(2):\n    print(f'loss {{{0}}}')\n"
        for value, ok in (("1 - step", True), ("step", False)):
            text = f"Words.\n```sh\nfalse\n```\n```python\n{code.format(value)}```\nWords.\n"
            (place.tree / "README.md").write_text(text)
            assert three_uses.train(place).ok == ok


class TestEverywhere:
    @pytest.fixture
    def world(self, monkeypatch, tmp_path):
        """No clone and no registry; actions that note that they ran, and fail where told to."""
        ran, failing = [], set()

        def action(name):
            def act(place):
                ran.append(name)
                return Step(name, name not in failing, "said", 1, 60, str(tmp_path / "log"))

            return act

        names = ("environment", "build", "op suite", "uses")
        monkeypatch.setattr(
            everywhere, "actions", lambda *_: {name: action(name) for name in names}
        )
        monkeypatch.setattr(everywhere, "clone", lambda folder, commit: folder.mkdir())
        monkeypatch.setattr(everywhere, "find_python", lambda version: Path(sys.executable))

        def run(commit="c0"):
            ran.clear()
            return everywhere.run(Combination("2.10", "3.12"), tmp_path / "one", commit, 2)

        return run, ran, failing

    def test_what_passed_is_not_run_again(self, world, tmp_path):
        run, ran, failing = world
        failing.add("op suite")
        assert not run().complete
        assert ran == ["environment", "build", "op suite", "uses"]
        assert (tmp_path / "one" / "tree").exists()
        failing.clear()
        assert run().complete
        assert ran == ["op suite"]
        assert not (tmp_path / "one" / "tree").exists()
        assert run().complete
        assert ran == []
        assert run("another commit").complete
        assert len(ran) == 4

    def test_nothing_follows_a_failed_build(self, world):
        run, ran, failing = world
        failing.add("build")
        assert everywhere.state(run()) == "FAILED"
        assert ran == ["environment", "build"]

    def test_a_python_that_is_not_here(self, world, monkeypatch):
        run, ran, _ = world
        monkeypatch.setattr(everywhere, "find_python", lambda version: None)
        assert everywhere.state(run()).startswith("not run: no python3.12")
        assert ran == []

    def test_a_combination_that_cannot_start_fails_alone(self, world, monkeypatch, tmp_path):
        def registry(*_):
            raise RuntimeError("uv finds no torch")

        monkeypatch.setattr(everywhere, "actions", registry)
        failed = everywhere.attempt(Combination("2.10", "3.12"), tmp_path / "two", "c0", 1)
        assert everywhere.state(failed) == "FAILED"
        assert "uv finds no torch" in everywhere.table([failed])

    def test_the_table(self):
        def step(name, ok, said):
            return Step(name, ok, said, 1, 60, f"logs/{name}.log")

        good = [step("environment", True, "torch 2.10.0"), step("op suite", True, "9 passed")]
        bad = [step("build", False, "exit code 1: a|b"), step("ATen avx2", True, "9 passed")]
        rows = [
            Row(
                Combination("2.10", "3.11"), "c", {each.name: each for each in good}, complete=True
            ),
            Row(Combination("2.11", "3.12"), "c", {each.name: each for each in bad}),
            Row(Combination("2.12", "3.99"), "c", missing="no python3.99"),
        ]
        text = everywhere.table(rows)
        assert "| 2.10-3.11 | torch 2.10.0 |  | 9 passed |  |  | 2 | passed |" in text
        assert "| 2.11-3.12 |  | FAILED |  | 9 passed |" in text
        assert "build: exit code 1: a|b" in text
        assert "(log: logs/build.log)" in text
        assert "not run: no python3.99" in text
        assert text.strip().endswith("3 combinations: 1 passed, 1 FAILED, 1 not run")

    def test_what_was_named_and_could_not_run_is_a_failure(self, world, monkeypatch, tmp_path):
        monkeypatch.setattr(everywhere, "find_python", lambda version: None)
        monkeypatch.setattr(everywhere, "git", lambda *_: "c0")
        monkeypatch.setattr(everywhere, "uncommitted", lambda: "clean")
        output = ["--output", str(tmp_path / "table")]
        assert everywhere.main(output) == 0
        assert everywhere.main([*output, "oldest"]) == 1

    def test_names(self, capsys):
        assert everywhere.main(["--list", "newest-*", "make-2*"]) == 0
        listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == ["newest-3.11", "newest-3.12", "newest-3.13", "make-2.10-3.11"]
        with pytest.raises(SystemExit):
            everywhere.main(["2.9-3.11"])

    def test_each_torch_and_each_python_is_in_the_table(self):
        pairs = {(each.torch, each.python) for each in everywhere.TABLE}
        assert {torch for torch, _ in pairs} == {"2.10", "2.11", "2.12", "2.14", "newest", "lowest"}
        for python in ("3.11", "3.12", "3.13"):
            assert {(densesiam.OLDEST_TORCH, python), ("newest", python)} < pairs
