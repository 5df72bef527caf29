"""README and docs: their commands are understood, and go together; what they point to is there.

Nothing is run here. The commands are read by the very parsers; test_documentation_code.py runs the
Python.
"""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from densesiam.cli.registry import COMMANDS, build_parsers
from tests.cli.support import PAGES, ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

# The configuration that a run of the documentation was made with, or might have been.
MADE_WITH = {
    "outputs/mine/config.yaml": "configs/segmentation/coco27_r18.yaml",
    "outputs/pretrain/folder/config.yaml": "configs/pretrain/folder.yaml",
    "outputs/picie/config.yaml": "configs/segmentation/picie.yaml",
    "outputs/transfer-detection/coco_r50_1x/config.yaml": "configs/transfer/coco_r50_1x.yaml",
    "my.yaml": "configs/segmentation/coco27_r18.yaml",
    "CONFIG": "configs/segmentation/coco27_r18.yaml",
}


def commands(text):
    """The arguments of each call of the command, in order."""
    text = re.sub(r"\\\n[ #]*", " ", text)
    calls = re.findall(
        r"^#? *(?:torchrun .*-m densesiam\.cli|(?:srun )?densesiam) +(.*)", text, re.M
    )
    return [args for call in calls if (args := shlex.split(call, comments=True))[0] in COMMANDS]


def of_page(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
    return commands("\n".join(blocks))


def of_config(path):
    lines = path.read_text().splitlines()
    return commands("\n".join(line for line in lines if line.startswith("#   ")))


def default_folder(args):
    """Where a command writes that is given no --output; None for those that need none."""
    names = [value for arg, value in itertools.pairwise(args) if arg == "--config"]
    stem = Path(names[0]).stem if names else args[0]
    return {
        "fit": f"outputs/{stem}",
        "pretrain": f"outputs/pretrain/{stem}",
        "picie": f"outputs/{stem}",
        "transfer": f"outputs/transfer-{args[1]}/{stem}",
        "predict": "outputs/predictions",
    }.get(args[0])


CALLS = [
    pytest.param(args, id=f"{path.stem}-{' '.join(args)[:60]}")
    for paths, of in ((PAGES, of_page), (CONFIGS, of_config))
    for path in paths
    for args in of(path)
    if not {"--help", "..."} & set(args)
]


def test_commands_are_found():
    assert len(CALLS) > 40
    assert {args.values[0][0] for args in CALLS} == set(COMMANDS)


@pytest.mark.parametrize("args", CALLS)
def test_commands_are_understood(args, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser, _ = build_parsers((args[0],))
    parser.parse_args([MADE_WITH.get(arg, arg) for arg in args])


def test_what_a_command_reads_another_has_written():
    """And no two trainings write to one folder, unless the second goes on with the first."""
    trained = {}
    for page in PAGES:
        for args in of_page(page):
            goes_on = "--ckpt_path" in args
            output = args[args.index("--output") + 1] if "--output" in args else None
            folder = output or default_folder(args)
            if args[0] in ("fit", "pretrain", "picie", "transfer") and not goes_on:
                assert trained.setdefault(folder, args[0]) == args[0], f"{page.name}: {args}"
            if args[0] == "predict" and output is not None:
                assert output not in trained, f"{page.name}: {args}"
    written = {*trained, "outputs/learned", "outputs/predictions"}
    for page in PAGES:
        for args in of_page(page):
            read = [arg for arg in args if re.match(r"outputs/.*/(checkpoints|config\.yaml)", arg)]
            for path in read:
                folder = re.sub(r"/(checkpoints|config\.yaml).*", "", path)
                assert folder in written, f"{page.name}: nothing has written {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    anchors = {}
    for path in PAGES:
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.M)
        anchors[path] = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles
        }
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or target not in anchors or anchor in anchors[target], link
    folders = "benchmarks|configs|csrc|densesiam|docs|examples|kernels|studies|tests|tools"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
        if not re.match(r"densesiam/_(cpu|cuda|info)\b", path):  # which the build makes
            assert (ROOT / path).exists(), path
