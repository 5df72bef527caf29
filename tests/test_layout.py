"""One name, one thing: what lies where in the package, and in its tests."""

import ast
from collections import Counter
from pathlib import Path

import densesiam

PACKAGE = Path(densesiam.__file__).parent
TESTS = Path(__file__).parent

# An operation has its name in each of its parts, and a command's module is named as it is typed.
NAMED_BY_THEIR_SUBJECT = {"ops", "reference", "kernels", "cli"}
# A room's base classes.
SHARED = {"__init__", "base"}


def test_no_two_modules_share_a_name():
    found = Counter()
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] not in NAMED_BY_THEIR_SUBJECT and path.stem not in SHARED:
            found[path.stem] += 1
    rooms = {p.name for p in PACKAGE.rglob("*") if p.is_dir() and (p / "__init__.py").is_file()}
    assert not [name for name, count in found.items() if count > 1 or name in rooms]


def test_no_test_imports_from_another():
    for path in [*TESTS.rglob("*.py"), *TESTS.with_name("studies").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                ours = node.level or module.split(".")[0] in ("tests", "studies")
                parts = [*module.split("."), *(alias.name for alias in node.names)]
                assert not (ours and any(part.startswith("test_") for part in parts)), path


def test_folders_of_tests_are_folders_of_the_project():
    root = TESTS.parent
    elsewhere = {"emulator", "packaging"}  # of the tests' own
    for folder in {path.parent for path in TESTS.rglob("test_*.py")} - {TESTS}:
        inside = folder.relative_to(TESTS)
        there = (root / inside).is_dir() or (PACKAGE / inside).is_dir()
        assert there or inside.parts[0] in elsewhere, inside
