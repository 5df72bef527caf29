"""Does pre-training help, and does DenseSiam segment better than PiCIE? Tried on CamVid.

    python -m studies.transfer.study --data CAMVID [--output FOLDER] [--seeds 0 1 2]
        [--kinds pretrain probe knn finetune segment] [--names NAME ...]
        [--precision 32-true bf16-mixed] [--minutes M] [--table]

Pre-training: SimSiam and DenseSiam train the same backbone from scratch on the training images,
without labels, for as many steps, 160 or 1600 (DenseSiam 480 too); then a linear probe, nearest
neighbours and fine-tuning start from them, from random tensors, and from random tensors whose batch
normalisation has seen the images.

Segmentation: DenseSiam and PiCIE train on the same images, with the same frozen encoder, for as
many steps; and DenseSiam for as much processor time as PiCIE takes.

Each may train in bfloat16 too, all that is trained for a score; a table has the differences.

Scores are of the test split, at the labels' full size; settings are those of the YAML
files here and of ``studies/camvid/classes11.yaml``, chosen beforehand and not tuned on it.

Each run is a call of the ``densesiam`` command, and leaves one JSON file with its scores, losses
and seconds of processor time. (Those of the clock would depend on what else the machine does.)
A run whose file exists is not repeated, so a study that was stopped goes on. At the end
``table.md`` in the output folder has all of them; ``--table`` writes it from the files that are
there, and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from densesiam import cli
from densesiam._writing import write_json
from studies.pairs import BFLOAT16, FLOAT32, PRECISIONS, Numbers, paired

HERE = Path(__file__).parent
INITIALISATIONS = {
    "random": "random",
    "settled": "random, statistics settled",
    "simsiam": "SimSiam",
    "densesiam": "DenseSiam",
    "densesiam-three": "DenseSiam, three times the steps",
    "simsiam-long": "SimSiam, ten times the steps",
    "densesiam-long": "DenseSiam, ten times the steps",
}
_SIMSIAM = ["--model.lambda1", "0", "--model.lambda2", "0"]
_LONG = ["--trainer.max_epochs", "80"]  # of 20 steps, in place of 8
PRETRAININGS: dict[str, list[str]] = {
    # A network that was never trained normalises by statistics of nothing. At this rate 20 steps
    # change those alone: what is better than this was learned.
    "settled": [*_SIMSIAM, "--model.lr", "1e-9", "--trainer.max_epochs", "1"],
    "simsiam": _SIMSIAM,
    "densesiam": [],
    "densesiam-three": ["--trainer.max_epochs", "24"],
    "simsiam-long": [*_SIMSIAM, *_LONG],
    "densesiam-long": _LONG,
}
USES = {
    "probe": ("probe", ["probe", "segmentation"], ["data", "probe"]),
    "knn": ("kNN", ["probe", "knn"], ["knn"]),
    "finetune": ("fine-tuned", ["transfer", "segmentation"], ["data", "finetune"]),
}
"""Title, command, and files of settings."""
KINDS = ["pretrain", *USES, "segment"]
SEGMENTATIONS = {
    "densesiam": ("DenseSiam", "fit", 3),
    "densesiam-equal": ("DenseSiam, at PiCIE's cost", "fit", 5),
    "picie": ("PiCIE", "picie", 3),
}
"""Title, command, and epochs of 22 steps."""


@dataclass(frozen=True)
class Run:
    """One call of the command.

    Attributes:
        kind: one of `KINDS`.
        name: the method, or what the run starts from.
        seed: of all its randomness.
        precision: of all that is trained.
    """

    kind: str
    name: str
    seed: int
    precision: str = FLOAT32

    def folder(self, output: Path) -> Path:
        """Where its files go."""
        suffix = "" if self.precision == FLOAT32 else f"-{self.precision}"
        return output / f"{self.kind}-{self.name}-{self.seed}{suffix}"

    def file(self, output: Path) -> Path:
        """Its JSON file."""
        return self.folder(output).with_suffix(".json")

    def arguments(self, data: Path, output: Path) -> list[str]:
        """What to call the command with."""
        common = ["--seed", str(self.seed), "--output", str(self.folder(output))]
        if self.kind != "knn":  # which trains nothing
            common += ["--trainer.precision", self.precision]
        images, labels = data / "train" / "images", data / "train" / "labels"
        test = [
            *("--data.val.images", str(data / "test" / "images")),
            *("--data.val.labels", str(data / "test" / "labels")),
        ]
        if self.kind == "pretrain":
            config = HERE / "pretrain.yaml"
            settings = [*PRETRAININGS[self.name], "--data.train", str(images)]
            return ["pretrain", "--config", str(config), *settings, *common]
        if self.kind == "segment":
            _, command, epochs = SEGMENTATIONS[self.name]
            settings = ["--data.train", str(images), *test, "--trainer.max_epochs", str(epochs)]
            settings += ["--trainer.validate_every_n_epochs", str(epochs)]
            return [command, *_segmentation_config(command, output), *settings, *common]
        _, command, files = USES[self.kind]
        configs = [HERE / f"{name}.yaml" for name in files]
        start = [] if self.name == "random" else ["--model.weights", str(self._weights(output))]
        settings = ["--data.train.images", str(images), "--data.train.labels", str(labels), *test]
        return [*command, *_config(configs), *start, *settings, *common]

    def _weights(self, output: Path) -> Path:
        pretraining = Run("pretrain", self.name, self.seed, self.precision)
        return pretraining.folder(output) / "checkpoints" / "last.ckpt"


def _config(files: Iterable[Path]) -> list[str]:
    return [argument for file in files for argument in ("--config", str(file))]


def _segmentation_config(command: str, output: Path) -> list[str]:
    """The configuration of CamVid, without what only DenseSiam has where PiCIE is to read it."""
    file = HERE.with_name("camvid") / "classes11.yaml"
    if command == "fit":
        return _config([file])
    content = yaml.safe_load(file.read_text())
    for setting in ("aux_classes", "hidden_channels"):
        del content["model"][setting]
    copy = output / "picie.yaml"
    copy.write_text(yaml.safe_dump(content))
    return _config([copy])


def runs(seeds: Sequence[int], precisions: Sequence[str] = (FLOAT32,)) -> Iterator[Run]:
    """All runs, seed by seed, each after what it starts from; segmentation last."""
    for seed, precision in itertools.product(seeds, precisions):
        for name in PRETRAININGS:
            yield Run("pretrain", name, seed, precision)
        for kind in USES:
            for name in INITIALISATIONS:
                yield Run(kind, name, seed, precision)
    for seed, name, precision in itertools.product(seeds, SEGMENTATIONS, precisions):
        yield Run("segment", name, seed, precision)


def execute(run: Run, data: Path, output: Path) -> None:
    """Do a run, and write its file."""
    folder = run.folder(output)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short
    processor, clock = time.process_time(), time.perf_counter()
    cli.run(run.arguments(data, output))
    seconds = time.process_time() - processor
    result: dict[str, Any] = {
        "processor_seconds": seconds,
        "seconds": time.perf_counter() - clock,
    }
    epochs = []
    if (summary := folder / "summary.json").is_file():  # nearest neighbours train nothing
        epochs = result["epochs"] = json.loads(summary.read_text())["epochs"]
    if run.kind in USES:
        result["scores"] = json.loads((folder / "results.json").read_text())["scores"]
    elif run.kind == "segment":
        result["scores"] = {name: epochs[-1][f"val/{name}"] for name in ("miou", "accuracy")}
    write_json(run.file(output), result)


def table(output: Path) -> str:
    """Both tables of the runs that are there, as Markdown."""
    results = {
        run: json.loads(run.file(output).read_text())
        for run in runs(range(100), PRECISIONS)
        if run.file(output).is_file()
    }

    def cell(kind: str, name: str, entry: str, scale: float = 100) -> str:
        values = [
            scale * {**r, **r.get("scores", {})}[entry]
            for run, r in results.items()
            if (run.kind, run.name, run.precision) == (kind, name, FLOAT32)
        ]
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread} ({len(values)})"

    columns = [f"{title} {score}" for title, *_ in USES.values() for score in ("mIoU", "accuracy")]
    columns = ["start", *columns, "pre-training, processor s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, title in INITIALISATIONS.items():
        cells = [cell(kind, name, entry) for kind in USES for entry in ("miou", "accuracy")]
        cells.append(cell("pretrain", name, "processor_seconds", 1))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| method | mIoU | accuracy | processor s |", "|---|---|---|---|"]
    for name, (title, _, _) in SEGMENTATIONS.items():
        cells = [cell("segment", name, entry) for entry in ("miou", "accuracy")]
        cells.append(cell("segment", name, "processor_seconds", 1))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    if any(run.precision == BFLOAT16 for run in results):
        lines += ["", _in_pairs(results).rstrip()]
    return "\n".join(lines) + "\n"


def _in_pairs(results: Mapping[Run, dict[str, Any]]) -> str:
    """What training in bfloat16 changes, see `paired`."""
    rows: dict[Sequence[str], list[tuple[Numbers, Numbers]]] = {}
    for run, after in results.items():
        if run.precision == BFLOAT16 and (before := results.get(replace(run, precision=FLOAT32))):
            segments = run.kind == "segment"
            title = SEGMENTATIONS[run.name][0] if segments else INITIALISATIONS[run.name]
            kind = USES[run.kind][0] if run.kind in USES else run.kind
            rows.setdefault((title, kind), []).append((_numbers(before), _numbers(after)))
    return paired(rows)


def _numbers(result: Mapping[str, Any]) -> Numbers:
    found = {"processor s": result["processor_seconds"]}
    if scores := result.get("scores"):
        found |= {"mIoU": 100 * scores["miou"], "accuracy": 100 * scores["accuracy"]}
    if epochs := result.get("epochs"):
        found["last loss"] = epochs[-1]["train/loss"]
    return found


def main() -> None:
    """Do what is not done yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="CamVid's folder, with train, val and test.")
    parser.add_argument("--output", type=Path, default=Path("outputs/transfer-study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    names = list(dict.fromkeys([*INITIALISATIONS, *SEGMENTATIONS]))
    parser.add_argument("--names", nargs="+", choices=names, default=names)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[FLOAT32])
    parser.add_argument("--minutes", type=float, help="Begin no run after so many.")
    parser.add_argument("--table", action="store_true", help="Write the table and run nothing.")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if options.data is None or not (options.data / "train" / "images").is_dir():
            parser.error("--data must be CamVid's folder: train/images, train/labels, test/images")
        start = time.perf_counter()
        for run in runs(options.seeds, options.precision):
            if run.kind not in options.kinds or run.name not in options.names:
                continue
            if run.file(options.output).is_file():
                continue
            if options.minutes and time.perf_counter() - start > 60 * options.minutes:
                print("out of time; the same command goes on")
                break
            print(f"--- {run.kind}, {run.name}, seed {run.seed}", flush=True)
            execute(run, options.data, options.output)
    text = table(options.output)
    (options.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
