"""Which photographs a command is to segment: files, folders and patterns, and names for results."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densesiam._writing import digest
from densesiam.data.image.files import EXTENSIONS, scan_folder
from densesiam.data.sets.images import SamplePhotos, sample_paths

SAMPLES = "samples"
_LONGEST = 250  # bytes of a result's name: 255 is usual, and the longest extension is .json


@dataclass(frozen=True)
class Photo:
    """A photograph to segment.

    Attributes:
        path: its file.
        name: of its results: a path with slashes and without an extension, no other photograph's.
    """

    path: Path
    name: str


@dataclass
class Gathered:
    """What was asked for, and what of it is not used.

    Attributes:
        photos: in the order of the arguments, folders by path.
        others: how many files of each other kind the folders hold, by extension.
        repeated: names of files and folders that came once already.
        own: folders of this package's results, which are passed over.
        closed: folders that cannot be looked into, and why.
    """

    photos: list[Photo] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    repeated: list[Path] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    closed: dict[Path, str] = field(default_factory=dict)


def gather(sources: Sequence[str]) -> Gathered:
    """Find photographs.

    Args:
        sources: folders (searched at any depth), files, patterns such as ``day*/*.jpg``, or
            "samples" for `SamplePhotos`.

    Raises:
        FileNotFoundError: there is no such thing, or no photograph in all of them.
    """
    found = Gathered()
    paths: list[Path] = []
    named: dict[Path, str] = {}
    roots: list[Path] = []
    for source in sources:
        if source == SAMPLES and not Path(source).exists():
            samples = sample_paths()
            named |= zip(samples, SamplePhotos.names, strict=True)
            paths += samples
            continue
        for path in _expanded(source):
            if not path.is_dir():
                roots.append(path.parent)
                paths.append(path)
                continue
            scan = scan_folder(path)
            roots.append(path)
            paths += scan.images
            found.repeated += scan.repeated
            found.own += scan.own
            found.closed |= scan.closed
            for kind, count in scan.others.items():
                found.others[kind] = found.others.get(kind, 0) + count
    seen: set[tuple[int, int] | str] = set()
    taken: list[Path] = []
    for path in paths:
        identity = _identity(path)
        (found.repeated if identity in seen else taken).append(path)
        seen.add(identity)
    if not taken:
        content = f"{sum(found.others.values())} other files" if found.others else "nothing else"
        raise FileNotFoundError(
            f"no images in {', '.join(sources)}, {content}; expected any of "
            f"{' '.join(sorted(EXTENSIONS))}"
        )
    common = Path(os.path.commonpath([os.path.abspath(root) for root in roots])) if roots else None
    relative = [
        named[path] if path in named else os.path.relpath(os.path.abspath(path), common)
        for path in taken
    ]
    found.photos = [
        Photo(path, name) for path, name in zip(taken, result_names(relative), strict=True)
    ]
    return found


def _expanded(source: str) -> list[Path]:
    path = Path(source)
    if path.exists():
        return [path]
    if matches := sorted(glob.glob(source, recursive=True)):
        return [Path(match) for match in matches]
    if glob.has_magic(source):
        raise FileNotFoundError(f"nothing matches the pattern {source}")
    raise FileNotFoundError(f"no such folder of images or file: {source}")


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        status = path.stat()
    except OSError:  # a link to nothing: it will be listed as what cannot be read
        return str(path)
    return status.st_dev, status.st_ino


def result_names(files: Sequence[str]) -> list[str]:
    """Names for the results of files, no two of them alike.

    The name is the file's without extension; with it where another file has the same, or is called
    so altogether. It follows that no name without extension is any other's. Of one that leaves no
    room for an extension within what file systems allow, there is the beginning, and a digest.

    Args:
        files: distinct paths.
    """
    stems = [os.path.splitext(file)[0] for file in files]
    whole, count = set(files), Counter(stems)
    return [
        _shortened(stem if count[stem] == 1 and (stem == file or stem not in whole) else file)
        for file, stem in zip(files, stems, strict=True)
    ]


def _shortened(name: str) -> str:
    folder, last = os.path.split(name)
    if len(os.fsencode(last)) <= _LONGEST:
        return name
    begin = last[: _LONGEST // 2]  # characters
    while len(os.fsencode(begin)) > _LONGEST // 2:
        begin = begin[:-1]
    return os.path.join(folder, f"{begin}~{digest(name)}")
