"""``python -m benchmarks pipeline``: what an image costs from its file to what is made of it.

Views: two of a photograph from its file, as training makes them, next to the same by other
libraries: torchvision's transforms on Pillow's images and on tensors, and lightly's and kornia's
where they are installed. The peers' views are of MoCo v2's kind (crop, flip, colours, grey, blur),
as ours are; none of them tells where its crops lie. Steps: see `benchmarks.stepping`. Predictions,
and the files of one: see `benchmarks.predicting`. Scores: see `benchmarks.evaluating`.

One thread unless told otherwise, the processor time of this process, everything in turn; each image
is another file, and the files are JPEGs made from scikit-image's and scikit-learn's pictures at the
sizes named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks import evaluating, predicting, stepping
from benchmarks.machine import describe_machine
from benchmarks.measure import Timing, extra_memory
from densesiam.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageFiles,
    SegmentationViews,
    TwoCrops,
    Views,
    read_image,
    sample_paths,
)
from densesiam.data.image.lazy import Decode
from densesiam.data.order.draws import Draw

Read = Callable[[Path, int], Any]
"""Makes the views of a file; the number makes them others each time."""

Work = Callable[[Sequence[Path], int], Any]
"""Does what is to be timed with all files; the number is the round's."""

PHOTO, PICTURE = (4000, 3000), (1154, 866)
SIZES = {"12 Mpx": PHOTO, "1 Mpx": PICTURE}
VIEWS = {
    "12 Mpx, folder.yaml": ("12 Mpx", 224, lambda d: SegmentationViews(224, 256, None, decode=d)),
    "12 Mpx, two crops of 224": ("12 Mpx", 224, lambda d: TwoCrops(224, decode=d)),
    "1 Mpx, two crops of 224": ("1 Mpx", 224, lambda d: TwoCrops(224, decode=d)),
    "1 Mpx, two crops of 128": ("1 Mpx", 128, lambda d: TwoCrops(128, decode=d)),
}
OTHERS = {
    "step, SimSiam R18 at 128 px": ("1 Mpx", stepping.simsiam),
    "step, segmentation R18-FPN at 160 px": ("1 Mpx", stepping.segmentation),
    "fit, 12 Mpx, folder.yaml": ("12 Mpx", stepping.fit),
    "fit, the demo": ("1 Mpx", stepping.fit_demo),
    "evaluate, 27 classes at 320 px": ("1 Mpx", evaluating.evaluate),
    "write, 1 Mpx": ("1 Mpx", predicting.write),
    "predict, 1 Mpx": ("1 Mpx", predicting.predict),
}
CASES = (*VIEWS, *OTHERS)


def make_files(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """JPEGs of that width and height, each another picture."""
    files = []
    for i, path in enumerate(sample_paths()[:count]):
        file = folder / f"{size[0]}-{i}.jpg"
        read_image(path).resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files


def ours(views: Views, files: Sequence[Path]) -> Read:
    """Our own data set, one image at a time."""
    data = ImageFiles(files, views)
    index = {path: i for i, path in enumerate(files)}
    return lambda path, number: data[Draw(index[path], number, 0)]


def peers(size: int) -> dict[str, Read]:
    """Two views by other libraries."""
    changes = [
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
    ]
    scaled = v2.ToDtype(torch.float32, scale=True)
    normalised = v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))
    on_images = v2.Compose([*changes, v2.ToImage(), scaled, normalised])
    on_tensors = v2.Compose([*changes, scaled, normalised])

    def images(path: Path, number: int) -> Any:
        with Image.open(path) as file:
            image = file.convert("RGB")
        return on_images(image), on_images(image)

    def tensors(path: Path, number: int) -> Any:
        image = decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
        return on_tensors(image), on_tensors(image)

    found: dict[str, Read] = {"torchvision, images": images, "torchvision, tensors": tensors}
    if importlib.util.find_spec("lightly"):
        from lightly.transforms import SimSiamTransform

        lightly = SimSiamTransform(input_size=size)
        found["lightly"] = lambda path, number: lightly(Image.open(path).convert("RGB"))
    if importlib.util.find_spec("kornia"):
        import kornia.augmentation as K

        kornia = K.AugmentationSequential(
            K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((9, 9), (0.1, 2.0), p=0.5),
            K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        )

        def with_kornia(path: Path, number: int) -> Any:
            image = scaled(decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB))[None]
            return kornia(image), kornia(image)

        found["kornia"] = with_kornia
    return found


def measure(
    rounds: int, files: int, names: Sequence[str], with_threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Milliseconds of the processor an image, by case and by who reads it.

    Of steps, the peak of the memory that they take too: ``extra_mb``, in 10^6 bytes.
    """
    results: dict[str, dict[str, Any]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(with_threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = {name: make_files(Path(folder), SIZES[name], files) for name in SIZES}
            for name in names:
                if name in OTHERS:
                    kind, build = OTHERS[name]
                    works = build(made[kind])
                    results[name] = _time(works, made[kind], rounds)
                    if name.startswith("step"):
                        for who, work in works.items():
                            results[name][who]["extra_mb"] = _memory(work, made[kind])
                    continue
                kind, size, views = VIEWS[name]
                decodes: tuple[Decode, ...] = ("reduced", "full")
                readers = {f"ours, {d}": ours(views(d), made[kind]) for d in decodes}
                works = {who: _each(read) for who, read in (readers | peers(size)).items()}
                results[name] = _time(works, made[kind], rounds)
    finally:
        torch.set_num_threads(threads)
    return results


def _each(read: Read) -> Work:
    def work(files: Sequence[Path], number: int) -> None:
        for path in files:
            read(path, number)

    return work


def _memory(work: Work, files: Sequence[Path]) -> float:
    def run() -> tuple[Tensor, ...]:
        work(files, 0)
        return ()

    return extra_memory(run) / 1e6


def _time(works: dict[str, Work], files: Sequence[Path], rounds: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, rounds):  # the first one warms up
        for name, work in works.items():
            start = time.process_time()
            work(files, number + 1)
            if number >= 0:
                samples[name].append(1e3 * (time.process_time() - start) / len(files))
    return {name: vars(Timing.of(each)) for name, each in samples.items()}


def render(results: dict[str, dict[str, Any]]) -> str:
    """Markdown tables: milliseconds an image, and times what ours takes.

    Cases that are timed next to the same others share a table.
    """
    tables: dict[tuple[str, ...], list[str]] = {}
    for case, row in results.items():
        own = next(iter(row.values()))["median"]
        cells = [_cell(each, own) for each in row.values()]
        tables.setdefault(tuple(row), []).append(f"| {case} | {' | '.join(cells)} |")
    return "\n\n".join(
        "\n".join([f"| ms an image | {' | '.join(who)} |", "|---" * (len(who) + 1) + "|", *lines])
        for who, lines in tables.items()
    )


def _cell(each: dict[str, Any], own: float) -> str:
    memory = f", {each['extra_mb']:.0f} MB" if "extra_mb" in each else ""
    return f"{each['median']:.1f} ({each['median'] / own:.2f}x{memory})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pipeline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--files", type=int, default=9, help="another picture each; default: 9")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(CASES)}")
    results = measure(options.rounds, options.files, options.cases or list(CASES), options.threads)
    machine = describe_machine()
    print(render(results))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "ms": results}, indent=1) + "\n")
    return 0
