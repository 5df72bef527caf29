"""The visit's own machinery: time limits, reports, going on, and what tools may do wrong."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import PATIENCE
from tools.gpu_kit import beside, build, commit, page, process, rehearse, report, stages, visit
from tools.gpu_kit.report import MOST_BYTES, STAGES, Report, Stage
from tools.gpu_kit.visit import RefusalError, Step, Visit

FACTS = {
    "torch": {"torch": "2.11.0+cu130", "cuda": "13.0"},
    "gpus": [{"name": "Example GPU", "capability": "9.0"}],
    "backends": {"cuda": None, "triton": None, "cpu": None, "reference": None},
}
RIGHT = {"state": "done", "right": True}
JUMP = 350.0  # seconds: more than the limits of steps here, less than those of stages
LIMIT = 300.0


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def hang(tmp_path, monkeypatch):
    """What a program runs when its time is to be over: not before, however busy the machine is.

    Once it has begun to hang, time jumps whenever whoever waits for it looks at the clock.
    """
    marker = tmp_path / "hangs"
    jumped = 0.0

    def monotonic():
        nonlocal jumped
        pid = marker.read_text() if marker.exists() else ""
        if pid and Path("/proc", pid).exists():
            jumped += JUMP
        return time.monotonic() + jumped

    monkeypatch.setattr(process, "GRACE", 0.2)
    monkeypatch.setattr(process, "time", SimpleNamespace(sleep=time.sleep, monotonic=monotonic))
    write = (
        f"__import__('pathlib').Path({str(marker)!r}).write_text(str(__import__('os').getpid()))"
    )
    return f"{write}; __import__('time').sleep({2 * PATIENCE})"


class TestProcess:
    def test_an_end_of_its_own(self, tmp_path):
        done = process.run(python("print('a'); raise SystemExit(3)"), tmp_path / "log", 20)
        assert (done.state, done.code, done.text) == ("failed", 3, "a\n")
        assert process.run(python("pass"), tmp_path / "log", 20).state == "done"

    def test_its_time_is_over_for_it_and_all_that_it_began(self, tmp_path, hang):
        child = "import os, signal; signal.signal(15, signal.SIG_IGN); "
        child += f"print(os.getpid(), flush=True); {hang}"
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        start = time.monotonic()
        done = process.run(python(code), tmp_path / "log", LIMIT)
        assert done.state == "timed out"
        assert time.monotonic() - start < PATIENCE
        pid = int(done.text)
        assert _gone(pid)

    @pytest.mark.parametrize("group", ["", ", process_group=0"])  # the second, as ninja does
    def test_what_a_program_leaves_running_ends_with_it(self, tmp_path, monkeypatch, group):
        monkeypatch.setattr(process, "GRACE", 0.2)
        code = f"import subprocess; print(subprocess.Popen(['sleep', '600']{group}).pid)"
        done = process.run(python(code), tmp_path / "log", 60)
        assert done.state == "done"
        assert _gone(int(done.text))

    def test_silence(self, tmp_path, hang):
        code = f"print('a', flush=True); {hang}"
        done = process.run(python(code), tmp_path / "log", 10 * JUMP, silence=LIMIT)
        assert (done.state, done.text) == ("hung", "a\n")

    def test_absent(self, tmp_path):
        done = process.run(["no-such-program"], tmp_path / "log", 5)
        assert (done.state, done.code) == ("absent", None)
        assert "no-such-program" in done.text

    def test_ticks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(process, "TICK", 0.01)
        ticks = []
        process.run(
            python("import time; time.sleep(1)"), tmp_path / "log", 60, tick=lambda: ticks.append(1)
        )
        assert ticks


def _gone(pid):
    """Whether a process has ended: it may remain as a zombie of whoever adopted it."""
    for _ in range(20 * PATIENCE):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


class TestReport:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("a b", "letters, digits"),
            ("ä.txt", "letters, digits"),
            ("a/b/c/d.txt", "2 folders deep"),
            ("../a.txt", "letters, digits"),
        ],
    )
    def test_names(self, tmp_path, name, why):
        with pytest.raises(ValueError, match=why):
            Report(tmp_path).place(name, b"")
        assert not list(tmp_path.iterdir())

    def test_as_many_files_as_can_come_back(self, tmp_path):
        there = Report(tmp_path / "out")
        for number in range(report.MOST_FILES):
            there.place(f"{number}.txt", b"")
        there.place("0.txt", b"again")
        with pytest.raises(ValueError, match="8 files can come back"):
            there.place("one-more.txt", b"")

    def test_as_large_as_can_come_back(self, tmp_path):
        there = Report(tmp_path)
        with pytest.raises(ValueError, match="can come back"):
            there.place("large", b"x" * (MOST_BYTES + 1))
        there.write("report.md", "ä" * MOST_BYTES)
        data = (tmp_path / "report.md").read_bytes()
        assert len(data) <= MOST_BYTES
        assert b"bytes were cut out here" in data
        stage = Stage(1, {}, {"one": RIGHT | {"data": "x" * MOST_BYTES}})
        there.save(stage)
        assert there.stage(1, {}).steps["one"] == RIGHT | {
            "data": None,
            "said": "the data was too large to come back",
        }

    def test_logs_that_are_too_large_keep_their_ends(self, tmp_path):
        logs = tmp_path / "logs"
        logs.mkdir()
        (logs / "1.log").write_bytes(b"begin" + os.urandom(MOST_BYTES) + b"end")
        Report(tmp_path / "out").keep_logs(logs)
        path = tmp_path / "out" / "logs.zip"
        assert path.stat().st_size <= MOST_BYTES
        log = zipfile.ZipFile(path).read("1.log")
        assert log.startswith(b"begin")
        assert log.endswith(b"end")

    def test_no_earlier_report(self, tmp_path):
        with pytest.raises(NotADirectoryError, match="must be a folder"):
            Report(tmp_path, tmp_path / "none")

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"subject": 1}'])
    def test_what_is_no_report_counts_for_nothing(self, tmp_path, text):
        (tmp_path / "1-uses.json").write_text(text)
        assert Report(tmp_path).stage(1, {"gpu": "x"}).steps == {}


@pytest.fixture
def kit(tmp_path):
    """A kit with hardly anything in it, write-protected."""
    root = tmp_path / "kit"
    for name, text in {
        "kit.json": "{}",
        "source/csrc/a.cu": "kernel",
        "source/setup.py": "raise SystemExit('no compiler here')",
        "source/densesiam/__init__.py": "",
        "built/_cuda.abi3.so": "brought",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in root.rglob("*"):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return root


@pytest.fixture
def wheel(kit):
    """A wheel that the kit brings along. The others bring none: pip takes its time."""
    kit.chmod(0o755)
    (kit / "wheels").mkdir()
    with zipfile.ZipFile(kit / "wheels" / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(
            "tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
        )
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    kit.chmod(0o555)


class Clock:
    """The visit's own clock, which only goes on when a step says so: no load can move it."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleeping(self, at, step, seconds):
        """A step that takes all the time that it is given."""
        # Longer than any test waits: only the visit's own limit can end it.
        record = program(f"import time; time.sleep({2 * PATIENCE})")(at, step, seconds)
        self.now += seconds
        return record


@pytest.fixture
def clock(monkeypatch):
    """The clock of visits."""
    made = Clock()
    monkeypatch.setattr(visit, "time", made)
    return made


@pytest.fixture
def go(kit, clock, tmp_path, monkeypatch):
    """Run a visit with steps given: number -> steps; returns the exit code."""
    monkeypatch.setattr(Visit, "look_around", lambda self: FACTS)
    monkeypatch.setattr(process, "GRACE", 0.2)
    monkeypatch.setattr(process, "TICK", 0.05)
    monkeypatch.setattr(visit, "LEAST", 0.01)
    monkeypatch.setattr(visit, "MARGIN", 0.0)

    def run(steps, *arguments, report="report"):
        options = visit.parser().parse_args(["--report", str(tmp_path / report), *arguments])
        given = {number: steps.get(number, []) for number in STAGES}
        with_work = Visit(kit, options)
        run.visit = with_work
        return with_work.run(given)

    return run


def step(name, function=lambda *_: dict(RIGHT), seconds=60, together=None):
    return Step(name, seconds, function, together)


def program(code):
    """A step that runs some Python."""

    def run(at, step, seconds):
        done = at.program(step.name, python(code), seconds)
        return stages.record(done, done.state == "done")

    return run


def states(folder, number=1):
    steps = json.loads((folder / f"{number}-{STAGES[number]}.json").read_text())["steps"]
    return {name: step["state"] for name, step in steps.items()}


class TestVisit:
    def test_all_right(self, go, tmp_path, capsys):
        assert go({1: [step("one"), step("two", program("print('said this')"))]}) == 0
        folder = tmp_path / "report"
        assert states(folder) == {"one": "done", "two": "done"}
        assert {p.name for p in folder.iterdir()} == {"1-uses.json", "report.md", "logs.zip"}
        assert "| 1 uses | two | right | done |" in (folder / "report.md").read_text()
        assert "everything ran and is right" in capsys.readouterr().out
        logs = zipfile.ZipFile(folder / "logs.zip")
        assert "said this" in logs.read("001-two.log").decode()

    def test_the_kit_may_be_write_protected_and_its_wheels_are_unpacked(self, go, wheel):
        assert go({}) == 0
        work = go.visit.work
        assert (work / "site" / "tiny.py").exists()
        assert (work / "source" / "densesiam" / "_cuda.abi3.so").read_text() == "brought"
        (work / "source" / "csrc" / "a.cu").write_text("can be written")

    def test_without_pip_wheels_are_unpacked_all_the_same(self, go, wheel, monkeypatch):
        program = Visit.program
        monkeypatch.setattr(
            Visit,
            "program",
            lambda self, title, command, *a, **k: program(self, title, ["none"], 5),
        )
        assert go({}) == 0
        assert (go.visit.work / "site" / "tiny.py").exists()

    def test_a_step_that_fails_costs_itself(self, go, tmp_path):
        def faulty(*_):
            raise KeyError("format")

        first = [step("raises", faulty), step("exits", program("raise SystemExit(7)"))]
        assert go({1: [*first, step("after")]}) == 1
        assert states(tmp_path / "report") == {
            "raises": "failed",
            "exits": "failed",
            "after": "done",
        }
        assert "KeyError" in (tmp_path / "report" / "1-uses.json").read_text()

    def test_a_step_that_hangs_is_ended_and_its_stage_too(self, go, clock, tmp_path, monkeypatch):
        sleeping = clock.sleeping
        start = time.monotonic()
        assert go({1: [step("hangs", sleeping, seconds=2), step("after")]}) == 1
        assert states(tmp_path / "report") == {"hangs": "timed out", "after": "done"}
        monkeypatch.setattr(visit, "STAGE_SECONDS", 3.0)
        assert go({2: [step("long", sleeping), step("late", sleeping)], 3: [step("x")]}) == 3
        assert states(tmp_path / "report", 2) == {"long": "cut off", "late": "cut off"}
        assert states(tmp_path / "report", 3) == {"x": "done"}  # another stage has its own time
        assert time.monotonic() - start < PATIENCE

    def test_minutes_are_for_all_stages(self, go, clock, tmp_path):
        assert go({1: [step("long", clock.sleeping)], 2: [step("x")]}, "--minutes", "0.05") == 3
        assert states(tmp_path / "report") == {"long": "cut off"}
        assert states(tmp_path / "report", 2) == {"x": "cut off"}

    def test_a_report_handed_back_in_is_gone_on_from(self, go, clock, tmp_path):
        calls = []

        def noting(at, step, seconds):
            calls.append(step.name)
            return dict(RIGHT)

        first = {1: [step("one", noting), step("two", clock.sleeping)], 2: [step("three", noting)]}
        assert go(first, "--minutes", "0.03") == 3
        assert calls == ["one"]
        second = {1: [step("one", noting), step("two", noting)], 2: [step("three", noting)]}
        assert go(second, "--earlier", str(tmp_path / "report"), report="second") == 0
        assert calls == ["one", "two", "three"]
        assert states(tmp_path / "second") == {"one": "done", "two": "done"}

    @pytest.mark.parametrize("changed", ["gpu", "torch", "sources"])
    def test_of_another_machine_or_other_sources_nothing_is_taken_over(
        self, go, kit, tmp_path, monkeypatch, changed
    ):
        calls = []
        steps = {1: [step("one", lambda *_: calls.append(1) or dict(RIGHT))]}
        go(steps)
        facts = (
            FACTS
            | {
                "gpu": {"gpus": [{"name": "Another"}]},
                "torch": {"torch": {"torch": "2.12.0", "cuda": None}},
                "sources": {},
            }[changed]
        )
        monkeypatch.setattr(Visit, "look_around", lambda self: facts)
        if changed == "sources":
            (kit / "source" / "setup.py").chmod(0o644)
            (kit / "source" / "setup.py").write_text("changed")
        go(steps, "--earlier", str(tmp_path / "report"), report="second")
        assert len(calls) == 2

    def test_only_some_stages(self, go, tmp_path):
        steps = {number: [step("x")] for number in STAGES}
        assert go(steps, "--stages", "2") == 3  # the others have not run
        assert (tmp_path / "report" / "2-accuracy.json").exists()
        assert not (tmp_path / "report" / "1-uses.json").exists()
        assert go(steps, "--stages", "1", "3", "4") == 0

    def test_only_some_steps_in_the_order_asked_for(self, go, tmp_path):
        calls = []
        given = {
            number: [step(f"{name}{number}", lambda at, s, _: calls.append(s.name) or dict(RIGHT))
                     for name in "ab"]
            for number in STAGES
        }  # fmt: skip
        assert go(given, "--steps", "b4", "a2") == 3  # the others have not run
        assert calls == ["b4", "a2"]
        assert states(tmp_path / "report", 4) == {"b4": "done"}
        with pytest.raises(RefusalError, match=r"no step 'c4' in the stages 1, 2, .*are a1, b1"):
            go(given, "--steps", "a1", "c4")
        with pytest.raises(RefusalError, match="no step 'a1' in the stages 4"):
            go(given, "--stages", "4", "--steps", "a1")
        assert calls == ["b4", "a2"]

    def test_a_short_visit_begins_with_what_is_worth_most(self, go):
        calls = []

        def noted(name, **others):
            def run(at, step, seconds):
                calls.append(step.name)
                return dict(RIGHT)

            return Step(name, 60, run, **others)

        given = {1: [noted("build", rank=2), noted("use", rank=0)], 3: [noted("own", rank=1)]}
        assert go(given, "--minutes", str(visit.SHORT - 1), report="short") == 0
        assert calls == ["use", "own", "build"]
        calls.clear()
        assert go(given, "--minutes", str(visit.SHORT), report="long") == 0
        assert calls == ["build", "use", "own"]

    @pytest.mark.parametrize("choice", [("--minutes", "5"), ("--steps", "long", "next", "other")])
    def test_where_stages_take_turns_none_of_them_has_an_end(self, go, clock, tmp_path, choice):
        def passing(at, step, seconds):
            clock.now += 0.6 * visit.STAGE_SECONDS
            return dict(RIGHT)

        given = {1: [step("long", passing), step("next", passing), step("other")]}
        code = go(given, *choice)
        late = "cut off" if choice[0] == "--minutes" else "done"
        assert states(tmp_path / "report")["other"] == late
        assert code == (3 if late == "cut off" else 0)

    def test_steps_side_by_side(self, go, tmp_path, monkeypatch):
        monkeypatch.setattr(visit.os, "cpu_count", lambda: 2)
        meeting = threading.Barrier(2)

        def meet(at, step, seconds):
            meeting.wait(PATIENCE)  # one after the other they never would
            return dict(RIGHT)

        both = [step(name, meet, together="group") for name in "ab"]
        assert go({2: [*both, step("c")]}) == 0
        assert states(tmp_path / "report", 2) == {"a": "done", "b": "done", "c": "done"}

    def test_steps_of_two_stages_side_by_side(self, go, tmp_path, monkeypatch):
        monkeypatch.setattr(visit.os, "cpu_count", lambda: 2)
        meeting = threading.Barrier(2)

        def meet(at, step, seconds):
            meeting.wait(PATIENCE)
            return dict(RIGHT)

        one, two = (step(name, meet, together="group") for name in "ab")
        assert go({1: [step("first"), one], 2: [two]}) == 0
        assert states(tmp_path / "report", 1) == {"first": "done", "a": "done"}
        assert states(tmp_path / "report", 2) == {"b": "done"}

    def test_a_signal_ends_it_with_a_report(self, go, tmp_path):
        def signalled(at, step, seconds):
            at.stop()
            return program("import time; time.sleep(600)")(at, step, 3)

        assert go({1: [step("one"), step("two", signalled), step("three")]}) == 3
        assert states(tmp_path / "report") == {"one": "done", "two": "cut off", "three": "cut off"}

    def test_what_a_step_has_so_far_is_kept_while_it_runs(self, go, tmp_path):
        folder = tmp_path / "report"
        seen = []

        def run(at, step, seconds):
            def tick(text):
                at.note_data(1, step, text)
                seen.append(json.loads((folder / "1-uses.json").read_text())["steps"]["one"])

            code = "import time; print('so far', flush=True); time.sleep(2)"
            at.program("one", python(code), seconds, tick=tick)
            return dict(RIGHT)

        assert go({1: [step("one", run)]}) == 0
        assert {"state": "running", "data": "so far\n"} in seen


class TestLibraries:
    def test_a_build_that_fails_leaves_those_brought_along(self, go, tmp_path):
        assert go({1: [step("build", stages.build)]}) == 1
        assert (
            "no compiler here"
            in zipfile.ZipFile(tmp_path / "report" / "logs.zip").read("001-build.log").decode()
        )
        library = go.visit.source / "densesiam" / "_cuda.abi3.so"
        assert library.read_text() == "brought"
        assert not (tmp_path / "report" / "built.zip").exists()

    def test_a_build_that_takes_too_long(self, go, kit, tmp_path):
        (kit / "source" / "setup.py").chmod(0o644)
        (kit / "source" / "setup.py").write_text("import time; time.sleep(600)")
        assert go({1: [step("build", stages.build, seconds=2)]}) == 1
        assert states(tmp_path / "report") == {"build": "timed out"}
        assert (go.visit.source / "densesiam" / "_cuda.abi3.so").read_text() == "brought"

    def test_a_build_is_kept_and_handed_back_in(self, go, kit, tmp_path, monkeypatch):
        (kit / "source" / "setup.py").chmod(0o644)
        (kit / "source" / "setup.py").write_text(
            "import os; os.unlink('densesiam/_cuda.abi3.so')\n"
            "open('densesiam/_cuda.abi3.so', 'w').write('local')"
        )
        monkeypatch.setattr(stages, "look", lambda visit, title: FACTS)
        assert go({1: [step("build", stages.build)]}) == 0
        go({}, "--earlier", str(tmp_path / "report"), report="second")
        assert (go.visit.source / "densesiam" / "_cuda.abi3.so").read_text() == "local"
        (kit / "source" / "csrc" / "a.cu").chmod(0o644)
        (kit / "source" / "csrc" / "a.cu").write_text("another kernel")
        go({}, "--earlier", str(tmp_path / "report"), report="third")
        assert (go.visit.source / "densesiam" / "_cuda.abi3.so").read_text() == "brought"

    def test_a_build_that_does_not_load(self, go, kit, tmp_path, monkeypatch):
        (kit / "source" / "setup.py").chmod(0o644)
        (kit / "source" / "setup.py").write_text("")
        unloadable = {"backends": {"cuda": "it could not be loaded"}}
        monkeypatch.setattr(stages, "look", lambda visit, title: unloadable)
        assert go({1: [step("build", stages.build)]}) == 1
        assert "it could not be loaded" in (tmp_path / "report" / "report.md").read_text()


class TestRefusals:
    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"torch": "cannot be told: ModuleNotFoundError"}, "cannot import torch"),
            ({"torch": {"torch": "2.9.1+cu128", "cuda": "12.8"}}, "torch here is 2.9.1"),
            ({"gpus": []}, r"torch 2.11.0\+cu130 \(CUDA 13.0\) finds no GPU here"),
        ],
    )
    def test_one_line_says_what_was_found_and_what_to_do(self, go, monkeypatch, facts, said):
        monkeypatch.setattr(Visit, "look_around", lambda self: FACTS | facts)
        with pytest.raises(RefusalError, match=said) as refusal:
            go({1: [step("one")]})
        assert "\n" not in str(refusal.value)

    def test_a_machine_that_takes_too_long_is_not_one_without_torch(
        self, kit, hang, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(
            Visit, "module", lambda self, *_: python(f"print('W', flush=True); {hang}")
        )
        options = visit.parser().parse_args(["--report", str(tmp_path / "report")])
        with pytest.raises(RefusalError, match=r"did not tell .* within \d+ s \(W\).*--patience"):
            Visit(kit, options).run(dict.fromkeys(STAGES, ()))

    def test_a_kit_without_torch_says_so(self, kit, tmp_path):
        (kit / "source").chmod(0o755)
        here = Path(visit.__file__).parent
        package = kit / "source" / "tools" / "gpu_kit"
        package.mkdir(parents=True)
        for folder, copied in ((here, package), (here.parent, package.parent)):
            for path in folder.glob("*.py"):
                (copied / path.name).write_text(path.read_text())
        kit.chmod(0o755)
        (kit / "run.py").write_text((here / "run.py").read_text())
        bare = tmp_path / "bare" / "bin"
        bare.mkdir(parents=True)
        base = os.path.realpath(sys.executable)
        command = [base, "-S", str(kit / "run.py"), "--report", str(tmp_path / "report")]
        done = subprocess.run(
            command, env={"PATH": str(bare)}, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert "cannot import torch" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


NCU = """==PROF== Connected to process 1
launched: {"of": "region_pool, 27 regions, contiguous, float16, forward", "bytes": 1024}
launched: {"of": "label_map, evaluation, contiguous, float16, forward", "bytes": 64}
left out: 3, for lack of time
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","at::cuda::spin_kernel(long)","gpu__time_duration.sum","ns","100"
"1","1","region_pool<32>(float*)","gpu__time_duration.sum","ns","12,345"
"1","1","region_pool<32>(float*)","launch__registers_per_thread","register/thread","64"
"2","1","reduce","gpu__time_duration.sum","ns","5"
"3","1","at::cuda::spin_kernel(long)","gpu__time_duration.sum","ns","100"
"4","1","label_map","gpu__time_duration.sum","ns","n/a"
"4","1","label_map","unknown metric","","3"
==PROF== Disconnected
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a program of a given name and behaviour on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(stages, "PLACES", ())

    def make(name, code):
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)

    return make


class TestTools:
    """Tools of CUDA's that are absent, refuse, hang, or print what nobody expects."""

    def test_absent(self, go, tool, tmp_path, monkeypatch):
        monkeypatch.setattr(stages.shutil, "which", lambda name: None)
        steps = [
            step("memcheck", stages.sanitizer("memcheck")),
            step("ncu cuda", stages.profile("cuda")),
        ]
        assert go({4: steps}) == 0
        assert states(tmp_path / "report", 4) == {"memcheck": "absent", "ncu cuda": "absent"}

    @pytest.mark.parametrize("name", ["compute-sanitizer", "ncu"])
    @pytest.mark.parametrize(
        ("code", "state", "said"),
        [
            ("print('Device not supported'); raise SystemExit(1)", "failed", "not understood"),
            ('print(\'{"another": "format"}\')', "done", "not understood"),
            ("print('x', flush=True); HANG", "timed out", "not understood"),
        ],
    )
    def test_what_they_may_do_wrong(self, go, tool, hang, tmp_path, name, code, state, said):
        tool(name, code.replace("HANG", hang))
        run = stages.profile("cuda") if name == "ncu" else stages.sanitizer("memcheck")
        go({4: [step("tool", run, seconds=LIMIT), step("after")]})
        assert states(tmp_path / "report", 4) == {"tool": state, "after": "done"}
        assert said in (tmp_path / "report" / "report.md").read_text()
        raw = zipfile.ZipFile(tmp_path / "report" / "logs.zip").read("001-tool.log").decode()
        assert raw.strip()

    def test_the_profiler_is_understood(self, go, tool, tmp_path):
        tool("ncu", f"print({NCU!r})")
        assert go({4: [step("ncu cuda", stages.profile("cuda"))]}) == 0
        data = json.loads((tmp_path / "report" / "4-tests.json").read_text())["steps"]["ncu cuda"][
            "data"
        ]
        pooled = {"of": "region_pool, 27 regions, contiguous, float16, forward", "bytes": 1024}
        mapped = {"of": "label_map, evaluation, contiguous, float16, forward", "bytes": 64}
        assert data == [
            pooled
            | {"kernel": "region_pool<32>(float*)", "nanoseconds": 12345.0, "registers": 64.0},
            pooled | {"kernel": "reduce", "nanoseconds": 5.0},
            mapped | {"kernel": "label_map", "nanoseconds": None},
        ]
        assert "3 launches; left out: 3, for" in (tmp_path / "report" / "report.md").read_text()
        assert (
            "| region_pool<32>(float*) | 12345 | 64 |"
            in (tmp_path / "report" / "report.md").read_text()
        )

    @pytest.mark.parametrize(
        ("text", "right"),
        [
            ("========= ERROR SUMMARY: 0 errors", True),
            ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
            ("========= Invalid __global__ write\n========= ERROR SUMMARY: 10 errors", False),
        ],
    )
    def test_the_sanitizer_is_understood(self, go, tool, text, right):
        tool("compute-sanitizer", f"print({text!r})")
        assert go({4: [step("memcheck", stages.sanitizer("memcheck"))]}) == (0 if right else 1)


# In place of tools.gpu_kit.launches, with its arguments: what it may write, and how it may end.
LAUNCHES = [
    ("file.write_text(ROWS); print('left out: 2, for lack of time')", "done", True, "1 launches;"),
    ("file.write_text(ROWS); HANG", "timed out", False, "1 launches"),
    ("file.write_text('[]')", "done", True, "torch's profiler told of no launch"),
    ("pass", "done", True, "torch's profiler told of no launch"),
    ("file.write_text('{')", "done", True, "torch's profiler told of no launch"),
    ("raise KeyError('dur')", "failed", False, "KeyError: 'dur'"),
    ("HANG", "timed out", False, ""),
]


@pytest.mark.parametrize(("written", "state", "right", "said"), LAUNCHES)
def test_a_table_of_launches(go, hang, tmp_path, monkeypatch, written, state, right, said):
    row = [{"of": "label_map, evaluation, contiguous, float16, forward", "kernel": "label_map<1>"}]
    begin = "import sys; from pathlib import Path\n"
    begin += "file = Path(sys.argv[sys.argv.index('--table') + 1])\n"
    code = begin + written.replace("ROWS", repr(json.dumps(row))).replace("HANG", hang)
    monkeypatch.setattr(
        Visit, "module", lambda self, name, *rest: [sys.executable, "-c", code, *rest]
    )
    go({4: [step("launches cuda", stages.table("cuda"), seconds=LIMIT), step("after")]})
    kept = json.loads((tmp_path / "report" / "4-tests.json").read_text())["steps"]
    found = kept["launches cuda"]
    assert (found["state"], found["right"]) == (state, right)
    assert said in found["said"]
    assert found["data"] == (row if "write_text(ROWS)" in written else None)
    assert kept["after"]["state"] == "done"
    shown = "| label_map<1> |" in (tmp_path / "report" / "report.md").read_text()
    assert shown == bool(found["data"])


TREE = """
import json, os, sys
from pathlib import Path
row = {"of": "a case", "bytes": 8, "kernel": "densesiam::k", "nanoseconds": TIME}
row["where"] = [os.getcwd(), os.environ["PYTHONPATH"].split(os.pathsep)[0]]
Path(sys.argv[sys.argv.index("--table") + 1]).write_text(json.dumps([row]))
"""


class TestBefore:
    """The kernels of the commit that came along, timed with their own sources."""

    STEPS = (
        Step("launches cuda", 60, stages.table("cuda")),
        Step("launches cuda, before", 60, stages.table("cuda", before=True)),
    )

    @pytest.fixture
    def both(self, kit):
        """A kit with two commits, each with a program that tells where it ran."""
        for path in (kit, kit / "source"):
            path.chmod(0o755)
        for name, time_ in (("source", 1000.0), ("before", 4000.0)):
            (kit / name / "tools" / "gpu_kit").mkdir(parents=True)
            program = kit / name / "tools" / "gpu_kit" / "launches.py"
            program.write_text(TREE.replace("TIME", str(time_)))
            (kit / name / "tools" / "__init__.py").write_text("")
            (kit / name / "tools" / "gpu_kit" / "__init__.py").write_text("")
        (kit / "before" / "csrc").mkdir()
        (kit / "before" / "csrc" / "a.cu").write_text("as it was")
        return kit

    def test_both_are_timed(self, both, go, tmp_path):
        assert go({4: list(self.STEPS)}) == 0
        kept = json.loads((tmp_path / "report" / "4-tests.json").read_text())["steps"]
        (old,) = kept["launches cuda, before"]["data"]
        (new,) = kept["launches cuda"]["data"]
        assert old["where"] == [str(both / "before")] * 2
        assert new["where"] == [str(go.visit.source)] * 2
        text = (tmp_path / "report" / "report.md").read_text()
        assert "| a case | 1 / 1 | 4 / 1 | 4 |" in text

    def test_another_commit_before_is_another_subject(self, both, go, tmp_path):
        go({4: list(self.STEPS)})
        (both / "before" / "csrc" / "a.cu").write_text("as it was before that")
        go({}, "--earlier", str(tmp_path / "report"), report="second")
        assert go.visit.stages[4].steps == {}

    def test_nothing_came_along(self, go, tmp_path):
        assert go({4: [self.STEPS[1]]}) == 0
        assert states(tmp_path / "report", 4) == {"launches cuda, before": "absent"}

    def test_a_rehearsal_has_nothing_to_run(self, both, go, tmp_path):
        assert go({4: [self.STEPS[1]]}, "--rehearse") == 0
        assert states(tmp_path / "report", 4) == {"launches cuda, before": "absent"}
        assert "nothing to run: the emulator" in (tmp_path / "report" / "report.md").read_text()


class TestCommandLine:
    """A training, judged by its loss, and the commands that go on from it."""

    @pytest.fixture
    def module(self, kit):
        """What stands in the kit as the command; it prints its arguments, then does as told."""

        def make(code):
            path = kit / "source" / "densesiam"
            path.chmod(0o755)
            (path / "__main__.py").write_text(f"import sys; print(sys.argv[1:]); {code}")

        return make

    @pytest.mark.parametrize(
        ("code", "right", "said"),
        [
            ("print('loss 2.0', 'loss 1.5', sep=chr(10))", True, "loss 2.000 to 1.500"),
            ("print('loss 2.0', 'loss 2.5', sep=chr(10))", False, "it did not fall"),
            ("print('loss 2.0', 'loss nan', sep=chr(10))", False, "it did not fall"),
            ("print('epoch')", False, "0 losses were printed"),
            ("sys.exit('no GPU')", False, "no GPU"),
            ("print('loss 2 loss 1'); sys.exit(sys.argv[1] == 'export')", False, "export"),
        ],
    )
    def test_what_is_right(self, module, go, tmp_path, code, right, said):
        module(code)
        run = stages.command_line(stages.FIT, stages.PREDICT, stages.EXPORT)
        assert go({1: [step("train", run)]}) == (0 if right else 1)
        assert said in (tmp_path / "report" / "1-uses.json").read_text()
        logs = zipfile.ZipFile(tmp_path / "report" / "logs.zip")
        kept = logs.namelist()
        assert len(kept) == (3 if right or "export" in code else 1)
        folder = str(go.visit.work / "train")
        assert all(folder in logs.read(name).decode() for name in kept)

    def test_float16_needs_a_gpu(self, module, go, tmp_path):
        module("sys.exit('float16 on a CPU')")
        run = stages.command_line((*stages.FIT, "16-mixed"))
        assert go({1: [step("train", run)]}, "--rehearse") == 0
        assert states(tmp_path / "report") == {"train": "absent"}

    def test_the_commands_take_these_arguments(self):
        from densesiam.cli.registry import build_parsers

        for words in ((*stages.FIT, "16-mixed"), stages.PRETRAIN, stages.PREDICT, stages.EXPORT):
            given = [word.format(output="x") for word in words]
            parsed = build_parsers([given[0]])[0].parse_args(given)
            assert parsed.command == given[0]


SWEEP = """
import json, os, sys
names = open(sys.argv[sys.argv.index("--skip") + 1]).read().splitlines()
for item in ("a", "b", "c", "d"):
    if item in names:
        continue
    print("@ " + json.dumps({"item": item}), flush=True)
    if item == "b":
        os.abort()
    if item == "c":
        HANG
    print("noise")
    print("@ " + json.dumps({"item": item, "verdict": "right"}), flush=True)
"""


class TestSweep:
    def test_what_crashes_or_hangs_is_on_record_and_the_rest_runs(
        self, go, hang, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(stages, "SILENCE", LIMIT)
        monkeypatch.setattr(visit, "STAGE_SECONDS", float(2 * PATIENCE))
        code = SWEEP.replace("HANG", hang)
        monkeypatch.setattr(
            Visit, "module", lambda self, name, *rest: [sys.executable, "-c", code, *rest]
        )
        assert go({2: [step("x cuda", stages.sweep("x", "cuda"), seconds=PATIENCE)]}) == 1
        steps = json.loads((tmp_path / "report" / "2-accuracy.json").read_text())["steps"]
        told = {item["item"]: item["verdict"] for item in steps["x cuda"]["data"]}
        assert told == {"a": "right", "b": "crash", "c": "crash", "d": "right"}
        assert steps["x cuda"]["said"] == "2 crash, 2 right"
        text = (tmp_path / "report" / "report.md").read_text()
        assert "| x cuda | b | crash | the process ended with -6 |" in text
        assert "| x cuda | c | crash | it hung |" in text

    def test_what_was_cut_off_goes_on_where_it_was(self, go, hang, tmp_path, monkeypatch):
        slow = SWEEP.replace("os.abort()", "pass").replace("HANG", hang)
        monkeypatch.setattr(
            Visit, "module", lambda self, name, *rest: [sys.executable, "-c", slow, *rest]
        )
        steps = {2: [step("x cuda", stages.sweep("x", "cuda"), seconds=LIMIT)]}
        assert go(steps) == 3
        assert states(tmp_path / "report", 2) == {"x cuda": "cut off"}
        quick = SWEEP.replace("os.abort()", "pass").replace("HANG", "pass")
        monkeypatch.setattr(
            Visit, "module", lambda self, name, *rest: [sys.executable, "-c", quick, *rest]
        )
        assert go(steps) == 0
        data = json.loads((tmp_path / "report" / "2-accuracy.json").read_text())["steps"]["x cuda"]
        assert [item["item"] for item in data["data"]] == ["a", "b", "c", "d"]

    def test_one_that_cannot_begin(self, go, tmp_path, monkeypatch):
        monkeypatch.setattr(Visit, "module", lambda self, *_: python("import no_such_module"))
        assert go({2: [step("x cuda", stages.sweep("x", "cuda"))]}) == 1
        assert "no_such_module" in (tmp_path / "report" / "report.md").read_text()


def bench_row(name="segmentation", compiled=False):
    timing = {"median": 1.5, "low": 1.0, "high": 2.0}
    peers = {"eager": timing, "cuda": timing} | ({"compile": timing} if compiled else {})
    return {
        "op": "overlap_sample",
        "name": name,
        "shape": "64x1",
        "layout": "contiguous",
        "dtype": "float32",
        "threads": 1,
        "group": "own",
        "rounds": 3,
        "mandatory_bytes": 10,
        "milliseconds": peers,
        "called_milliseconds": peers,
        "parts": {"roi_align": timing},
        "clocks": dict.fromkeys(peers, "graph"),
        "refused": {"triton": "wrong by 1e+00"},
        "wrong_peers": {},
    }


@pytest.fixture
def brought_back(tmp_path):
    """A report as it comes back."""
    folder = Report(tmp_path / "report")
    subject = {"sources": "abc", "gpu": "NVIDIA Example 80GB", "torch": "2.11.0"}
    pairs = [
        {"error": 1e-7, "of": 2.0, "allowed": 4e-7},
        {"error": 1e-9, "of": 1e-17, "allowed": 1e-8},  # zero but for rounding
        {"error": 1e-3, "of": 1.0},  # the method's own shape
    ]
    item = {"item": "map: float32", "verdict": "right", "compared": pairs}
    wrong = {"item": "grid: float16", "verdict": "wrong", "said": "result: error 1 of 2"}
    rows = {"machine": {"device": "NVIDIA Example 80GB"}, "rows": [bench_row()]}
    compiled = rows | {"rows": [bench_row(compiled=True), bench_row("C2")]}
    case = "overlap_sample, segmentation, contiguous, float32, forward"
    launch = {"of": case, "bytes": 10, "kernel": "densesiam::sample<float>", "nanoseconds": 2000.0}
    tests = [
        {"test": "tests/a.py::b", "outcome": "passed", "seconds": 1},
        {"test": "tests/a.py::c", "outcome": "failed", "seconds": 1, "said": "assert"},
    ]
    given = {
        1: {"build": RIGHT},
        2: {"overlap_sample cuda": {"state": "done", "right": False, "data": [item, wrong]}},
        3: {
            "ceilings": RIGHT | {"data": {"ceilings": {"copy GB/s": 1}}},
            "overlap_sample": RIGHT | {"data": rows},
            "overlap_sample compiled": RIGHT | {"data": compiled},
        },
        4: {
            "tests": {"state": "failed", "right": False, "data": tests},
            "launches cuda": RIGHT | {"data": [launch]},
        },
    }
    there = {number: Stage(number, subject, steps) for number, steps in given.items()}
    for stage in there.values():
        folder.save(stage)
    folder.write("report.md", page.render(there, FACTS, rehearsal=False))
    return folder.folder


class TestPage:
    def test_what_it_tells(self, brought_back):
        text = (brought_back / "report.md").read_text()
        assert "- GPU: {'name': 'Example GPU', 'capability': '9.0'}" in text
        assert "| overlap_sample cuda | 1 right, 1 wrong | 25% | map: float32 |" in text
        assert "| overlap_sample cuda | grid: float16 | wrong | result: error 1 of 2 |" in text
        assert "cuda 1.500 (1.500 from Python)" in text
        assert "roi_align 1.500; triton: wrong by 1e+00" in text
        assert "| tests/a.py::c | failed | assert |" in text
        assert "tests/a.py::b" not in text

    @pytest.mark.parametrize(("state", "mark"), [("cut off", ""), ("failed", "WRONG")])
    def test_what_was_cut_off_is_not_called_wrong(self, state, mark):
        stages = {number: Stage(number, {}) for number in STAGES}
        stages[3].steps["roi_align"] = {"state": state, "right": False}
        text = page.render(stages, FACTS, rehearsal=False)
        assert f"| 3 benchmarks | roi_align | {mark} | {state} |" in text

    def test_measured_beside_counted(self, brought_back):
        text = (brought_back / "report.md").read_text()
        counts = json.loads(beside.COUNTS.read_text())["sm_90"]
        case = "overlap_sample, segmentation, contiguous, float32"
        both = [counts[f"{case}, {direction}"] for direction in ("forward", "backward")]
        predicted = sum(row["microseconds"] for row in both) / 1e3
        assert f"; cuda predicted {predicted:.3f}, roof " in text
        pair = f"{both[0]['microseconds']:.3g} / 2"
        assert f"| {case}, forward | {both[0]['launches']} / 1 | 0 / 0 | {pair} |" in text

    def test_a_rehearsal_says_so_first(self):
        assert page.render({n: Stage(n, {}) for n in STAGES}, FACTS, rehearsal=True).startswith(
            "# GPU report\n\n**A rehearsal"
        )


class TestCommit:
    def test_two_files_for_the_repository(self, brought_back, tmp_path):
        assert commit.main([str(brought_back), "--results", str(tmp_path)]) == 0
        folder = tmp_path / "nvidia-example-80gb"
        assert {path.name for path in folder.iterdir()} == {"report.md", "results.json"}
        text = (folder / "results.json").read_text()
        assert len(text) < commit.LARGEST
        kept = json.loads(text)
        assert [row["name"] for row in kept["rows"]] == ["segmentation", "C2"]
        assert "compile" in kept["rows"][0]["milliseconds"]
        assert kept["ceilings"] == {"copy GB/s": 1}
        accuracy = kept["visit"]["accuracy"]["steps"]["overlap_sample cuda"]["data"]
        assert accuracy[0] == {
            "item": "map: float32",
            "verdict": "right",
            "errors": ["1.0e-07/2.0e+00", "1.0e-09/1.0e-17", "1.0e-03/1.0e+00"],
        }
        assert kept["visit"]["tests"]["steps"]["tests"]["data"] == [
            {"test": "tests/a.py::c", "outcome": "failed", "seconds": 1, "said": "assert"}
        ]
        (launch,) = kept["visit"]["tests"]["steps"]["launches cuda"]["data"]
        assert launch["kernel"] == "densesiam::sample<float>"

    def test_it_is_a_result_of_the_benchmarks(self, brought_back, tmp_path):
        from benchmarks.results import Results

        commit.main([str(brought_back), "--results", str(tmp_path)])
        results = Results.read(tmp_path / "nvidia-example-80gb" / "results.json")
        assert results.rows[0].called_milliseconds["cuda"].median == 1.5
        assert results.rows[0].faster("cuda", "eager") == 1

    def test_of_single_steps_there_is_as_much_as_they_told(
        self, brought_back, tmp_path, capsys, monkeypatch
    ):
        from benchmarks import report as benchmarks_report
        from benchmarks import roofline

        for number in (1, 2, 3):
            (brought_back / f"{number}-{STAGES[number]}.json").unlink()
        assert commit.main([str(brought_back), "--results", str(tmp_path)]) == 0
        path = tmp_path / "nvidia-example-80gb" / "results.json"
        measured = roofline.read_measured(path)
        assert (measured.device, measured.results.rows) == ("NVIDIA Example 80GB", [])
        assert [launch["nanoseconds"] for launch in measured.launches] == [2000.0]
        arguments = [str(path), "--html", str(tmp_path / "page.html")]
        assert benchmarks_report.main(arguments) == 0

    def test_a_rehearsal_is_not_kept(self, brought_back, tmp_path):
        path = brought_back / "1-uses.json"
        path.write_text(path.read_text().replace("NVIDIA Example", "stand-in"))
        with pytest.raises(SystemExit, match="is of a rehearsal"):
            commit.main([str(brought_back), "--results", str(tmp_path)])

    def test_no_report(self, tmp_path):
        with pytest.raises(SystemExit, match="holds no report"):
            commit.main([str(tmp_path)])


class TestBuild:
    def test_only_what_is_missing_travels(self):
        """A requirement that is new must be had as wheels alone, or be left out by name."""
        names = {re.split(r"[\[<>=]", asked)[0] for asked in build.requirements()}
        assert names == {"jsonargparse", "pycocotools", "expecttest"}

    def test_sources_are_those_that_git_tracks_without_pictures(self):
        if not (build.ROOT / ".git").exists():
            pytest.skip("not a clone")
        found = build.sources()
        assert {"setup.py", "csrc/info.cpp", "tools/gpu_kit/run.py", "docs/gpu.md"} <= set(found)
        code = build.git("ls-files", "*.py", "*.cu", "*.cuh", "*.h", "*.cpp", "*.yaml").split()
        assert set(code) <= set(found)
        assert not [path for path in found if path.endswith((".jpg", ".png", ".so"))]

    def test_a_kit_that_cannot_travel_is_an_error(self, tmp_path, monkeypatch):
        if not (build.ROOT / ".git").exists():
            pytest.skip("not a clone")
        built = tmp_path / "built"
        built.mkdir()
        (built / "_cuda.abi3.so").write_bytes(os.urandom(1000))
        (built / "_info.json").write_text('{"architectures": "sm_80 sm_90"}')
        monkeypatch.setattr(build, "strip", lambda libraries: None)
        monkeypatch.setattr(build, "missing_packages", lambda: ["a==1"])
        monkeypatch.setattr(build, "download", lambda packages, folder: folder.mkdir())
        build.build(tmp_path / "kit", "9.0", built)
        described = json.loads((tmp_path / "kit" / "kit.json").read_text())
        assert described["wheels"] == ["a==1"]
        assert described["architectures"] == "sm_80 sm_90"  # not those of the command
        assert (tmp_path / "kit" / "source" / "pyproject.toml").exists()
        monkeypatch.setattr(build, "LARGEST", 1000)
        with pytest.raises(SystemExit, match=r"at most 0 MB can travel. Largest: "):
            build.build(tmp_path / "kit", "9.0", built)

    def test_the_kernels_of_a_commit_travel_with_their_sources(self, tmp_path, monkeypatch):
        if not (build.ROOT / ".git").exists():
            pytest.skip("not a clone")
        made = []

        def compile_libraries(folder, architectures):
            made.append(architectures)
            (folder / "densesiam" / "_cuda.abi3.so").write_bytes(b"now")

        monkeypatch.setattr(build, "compile_libraries", compile_libraries)
        monkeypatch.setattr(build, "strip", lambda libraries: None)
        monkeypatch.setattr(build, "missing_packages", list)
        monkeypatch.setattr(build, "download", lambda packages, folder: folder.mkdir())
        kit = tmp_path / "kit"
        there = tmp_path / "there"
        there.mkdir()
        (there / "_cuda.abi3.so").write_bytes(b"then")
        for folder, asked, text in ((None, ["9.0", "9.0"], b"now"), (there, ["9.0"], b"then")):
            made.clear()
            build.build(kit, "9.0", before=("HEAD", folder))
            assert made == asked
            assert (kit / "built" / "_cuda.abi3.so").read_bytes() == b"now"
            assert (kit / "before" / "densesiam" / "_cuda.abi3.so").read_bytes() == text
        assert (kit / "before" / "tools" / "gpu_kit" / "launches.py").exists()
        assert not [path for path in build.UNTIMED if (kit / "before" / path).exists()]
        head = build.git("rev-parse", "HEAD").strip()
        assert json.loads((kit / "kit.json").read_text())["before"] == head

    @pytest.mark.parametrize("commit", ["no-such-commit", "ROOT"])
    def test_a_commit_that_cannot_be_timed(self, tmp_path, commit):
        if not (build.ROOT / ".git").exists():
            pytest.skip("not a clone")
        if commit == "ROOT":  # the first one: it has no table of launches
            commit = build.git("rev-list", "--max-parents=0", "HEAD").split()[0]
        with pytest.raises(SystemExit, match=f"--table, and {commit} is none, or has none"):
            build.sources_of(commit, tmp_path / "before")

    @pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler is here")
    def test_libraries_travel_without_symbols_for_debuggers(self, tmp_path):
        for folder in ("there", "kit"):
            (tmp_path / folder).mkdir()
        library = tmp_path / "there" / "_cuda.abi3.so"
        command = ["cc", "-g", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
        subprocess.run(command, input="int kernel(int n) { return n; }", text=True, check=True)
        build.take_libraries(tmp_path / "there", tmp_path / "kit")
        data = (tmp_path / "kit" / "_cuda.abi3.so").read_bytes()
        assert b".debug_info" in library.read_bytes()
        assert b".debug_info" not in data
        assert b"kernel" in data

    def test_what_is_no_library_is_an_error(self, tmp_path):
        (tmp_path / "a.so").write_bytes(b"none")
        with pytest.raises(SystemExit, match=r"small enough to travel: .*a\.so"):
            build.strip([tmp_path / "a.so"])

    def test_without_cuda_kernels_there_is_no_kit(self, tmp_path):
        with pytest.raises(SystemExit, match="no library of CUDA kernels"):
            build.take_libraries(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("state", "finished"), [("done", True), ("failed", True), ("cut off", False)]
)
def test_a_rehearsal_goes_on_until_nothing_was_cut_off(tmp_path, state, finished):
    report = Report(tmp_path)
    report.save(Stage(2, {}, {"sweep": {"state": "done", "right": False}}))
    report.save(Stage(3, {}, {"ceilings": RIGHT, "roi_align": {"state": state}}))
    assert rehearse.finished(tmp_path) is finished


def test_all_that_a_visit_imports_is_of_the_standard_library():
    code = "import sys; before = set(sys.modules); import tools.gpu_kit.stages as s\n"
    code += "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        cwd=build.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(eval(done.stdout))
    assert found <= sys.stdlib_module_names | {"tools"}


def test_every_step_has_a_name_of_its_own_and_its_stage_ends_in_time():
    names = [each.name for steps in stages.STEPS.values() for each in steps]
    assert len(set(names)) == len(names)  # --steps knows them by it alone
    for steps in stages.STEPS.values():
        assert all(each.seconds < visit.STAGE_SECONDS - visit.MARGIN for each in steps)


def test_every_test_for_a_gpu_is_where_the_visit_looks():
    root = build.ROOT
    marked = {
        path.relative_to(root).as_posix()
        for path in (root / "tests").rglob("test_*.py")
        if re.search(r"mark\.gpu|def test_\w+\((self, )?gpu\b", path.read_text())
    }
    assert marked
    assert {path for path in marked if not path.startswith(stages.GPU_TESTS)} == set()
