"""What the parser finds wrong with settings, in plain words."""

import difflib
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

# For a setting of several types: a complaint of each, nested where an object is wrong within.
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes: \[(?P<types>[^\n]*)\]"
    r"\s+Errors:(?P<errors>(?:(?!Does not validate).)*?)"
    r"\s+Given value type: [^\n]*\s+Given value: (?P<value>[^\n]*)",
    re.DOTALL,
)
_SEPARATE = re.compile(r",\s*(?![^\[]*\])")
_CLASS = r"Problem with given class_path '([\w.]+)':"
_SINGLE = re.compile(r"Expected a (?P<type>[^\n]*?)\. Got value: (?P<value>[^\n]*)")
_UNCHOSEN = re.compile(
    r'expected "(?:\w+\.)?(task|command)" to be one of \{(.*?)\}, but it was not provided\.?'
)
_NO_SUCH_CLASS = re.compile(r"Expected a dot import path string: (\S+)")


def readable(text: str, parsers: dict[str, ArgumentParser]) -> str:
    """Put a parser's complaint into plain words, and guess what a misspelt key was meant to be.

    Args:
        text: the parser's, in lines.
        parsers: of the commands.
    """
    text = re.sub(r"Parser key \"(.*?)\"(?: element \d+)?:", r"\1:", text.strip())
    text = _UNCHOSEN.sub(r"give a \1: one of \2", text)
    if not re.search(_CLASS, text):
        text = re.sub(
            r"(?<=arguments are required: ).*", lambda match: _given_as(match[0], parsers), text
        )
    while (plainer := _UNION.sub(_union, text)) != text:
        text = plainer
    text = _SINGLE.sub(lambda m: f"expected {_type(m['type'])}, got {m['value']}", text)
    text = re.sub(_CLASS + r"\s*Option '(\w+)' is not accepted", _unknown_option, text)
    text = re.sub(_CLASS, lambda m: f"{m[1].rpartition('.')[2]}:", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r"^Group '([\w.]+)' does not accept option '(?!\1\.)", r"Option '\1.", text)
    unknown = re.search(
        r"(?:unrecognized arguments: --|does not accept option '|^Option ')([\w.]+)", text
    )
    if unknown:
        known = {key for parser in parsers.values() for key in _settings(parser)}
        # A setting of another command is known, but no correction.
        hint = _meant(unknown[1], known - {unknown[1]})
        return f"unknown setting {unknown[1]}: {hint}`densesiam COMMAND --help` lists all"
    return text


def unreadable_config(args: Sequence[str]) -> str | None:
    """What is wrong with a configuration file that is named on a command line, as a file.

    The parser's own words for it name no file.

    Args:
        args: the command line.

    Returns:
        None where nothing is.
    """
    for name in _configs(args):
        path = Path(name)
        if path.is_dir():
            return f"--config {name} is a folder: expected a YAML file of settings"
        try:
            content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"no file --config {name}: expected a YAML file of settings"
        except OSError as error:
            return f"cannot read --config {name}: {error.strerror}"
        except UnicodeDecodeError:
            return f"--config {name} is no text: expected a YAML file of settings"
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            problem = getattr(error, "problem", None) or "it cannot be parsed"
            return f"--config {name} is no YAML{where}: {problem}"
        if not isinstance(content, dict):
            found = "is empty" if content is None else "holds no settings by name"
            return f"--config {name} {found}: expected lines such as `seed: 1`"
    return None


def _configs(args: Sequence[str]) -> list[str]:
    """The configuration files that a command line names."""
    given = [after for arg, after in itertools.pairwise(args) if arg == "--config"]
    return given + [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]


def of_another_command(
    args: Sequence[str], parsers: Callable[[], dict[str, ArgumentParser]] | None = None
) -> str | None:
    """For which command a configuration file is, where that is another than the command line's.

    Args:
        args: the command line. Its files can be read.
        parsers: gives those of all commands. By their settings a file is known that does not say in
            its comments which command takes it, as those of a run's folder do not.

    Returns:
        A sentence; None where no file is for another command.
    """
    said = " ".join(args[: 2 if args[:1] in (["transfer"], ["probe"]) else 1])
    for name in _configs(args):
        text = Path(name).read_text(encoding="utf-8")
        takes = list(dict.fromkeys(_SAYS_ITS_COMMAND.findall(text)))
        if not takes and parsers is not None:
            keys = set(_keys(yaml.safe_load(text)))
            known = {
                command: set(_settings(parser)) for command, parser in _trainings(parsers()).items()
            }
            takes = [command for command, settings in known.items() if keys <= settings]
        trains = said.startswith(("fit", "pretrain", "picie", "transfer", "probe"))
        if takes and said not in takes and (trains or takes[0] not in ("fit", "picie")):
            named = " or ".join(f"`densesiam {command}`" for command in takes)
            return f"{name} is for {named}, and this is `densesiam {said}`"
    return None


_SAYS_ITS_COMMAND = re.compile(
    r"^# +densesiam (fit|pretrain|picie|(?:transfer|probe) \w+)(?= )", re.MULTILINE
)


def _trainings(parsers: dict[str, ArgumentParser]) -> dict[str, ArgumentParser]:
    """The parsers of what a configuration file may be for, tasks one by one."""
    found = {name: parsers[name] for name in ("fit", "pretrain", "picie")}
    for command in ("transfer", "probe"):
        for action in parsers[command]._actions:
            if isinstance(action.choices, dict):
                found |= {f"{command} {task}": each for task, each in action.choices.items()}
    return found


def _keys(settings: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings in a file, those within an object left out."""
    for key, value in settings.items():
        inner = isinstance(value, dict) and "class_path" not in value
        if inner and not prefix:
            yield from _keys(value, f"{key}.")
        else:
            yield f"{prefix}{key}"


def _given_as(keys: str, parsers: dict[str, ArgumentParser]) -> str:
    """How missing settings are given: those with a place in capitals, others by name."""
    found = []
    for key in keys.split(", "):
        command, _, name = key.partition(".")
        if command not in parsers:
            command, name = "", key
        actions = parsers[command]._actions if command else []
        placed = any(action.dest == name and not action.option_strings for action in actions)
        found.append(name.upper() if placed else f"--{name}")
    return ", ".join(found)


def _union(match: re.Match[str]) -> str:
    """A value that is of none of its types: what it should be, or what is wrong within it."""
    errors = [error.strip() for error in re.split(r"\n\s*- ", match["errors"])]
    value, hint = match["value"], ""
    for error in errors:
        if error.startswith("Problem with given class_path"):
            return error  # it is an object, as it should be
        if missing := _NO_SUCH_CLASS.match(error):
            known = dir(importlib.import_module("densesiam.data"))
            if missing[1] in known:
                types = [_type(each).rpartition(".")[2] for each in _SEPARATE.split(match["types"])]
                return f"{missing[1]} is of another kind: expected {' or '.join(types)}"
            meant = _meant(missing[1], known).strip()
            if value.startswith("{"):
                return f"there is no class {missing[1]}: {meant}".rstrip(": ")
            hint = f": {meant}" if meant else ""
    types = [_type(each) for each in _SEPARATE.split(match["types"])]
    return f"expected {' or '.join(types)}, got {value}{hint}"


def _unknown_option(match: re.Match[str]) -> str:
    """What a class does not take, and what may have been meant."""
    module, _, name = match[1].rpartition(".")
    takes = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return f"{name} does not take {match[2]}: {_meant(match[2], takes)}it takes {', '.join(takes)}"


def _type(text: str) -> str:
    """A type in the words of configuration files."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[('[^',]*')\]", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    return {"NoneType": "null", "tuple": "a list such as [1, 2]"}.get(text, text)


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""


def _settings(parser: ArgumentParser) -> Iterator[str]:
    """Names of a command's settings, and of its subcommands'."""
    for action in parser._actions:
        yield action.dest
        if isinstance(action.choices, dict):
            for each in action.choices.values():
                yield from _settings(each)
