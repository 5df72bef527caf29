"""What the segmentation method learns on CamVid, beside what needs no learning.

    python -m studies.camvid.study --data CAMVID [--output FOLDER] [--rows NAME ...] [--table]

Each run leaves one JSON file with its scores, seconds and memory. A run whose file exists is not
repeated, so a study that was stopped goes on. At the end ``table.md`` in the output folder has all
of them; ``--table`` writes it from the files that are there, and runs nothing.

A run is a number of steps rather than of minutes, so that results do not depend on how busy the
machine is: 132 steps take about a minute on two quiet cores. It has a process of its own, whose
peak memory is measured. Settings are those of the YAML files here and of `ROWS`.

``--precision 32-true bf16-mixed`` trains each row in both, with the same seeds, and adds a table of
the differences; scores are computed in float32. What was trained in float32 is scored in
bfloat16 too, where the processor has it, which a second row of that table shows.

Rows called ``search-...`` are for choosing settings: they see the validation split only, and run
only when named. All others are scored on the test split, as published results are.
"""

from __future__ import annotations

import os

# Before torch starts its threads, as in densesiam.cli, and for the same reason.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densesiam import ops
from densesiam._writing import write_json
from densesiam.data import LabelledImages, PredictionImages, find_images
from densesiam.data.modules.two_views import SegmentationData
from densesiam.evaluation import ClusterMetrics
from densesiam.evaluation.baselines import ColourPosition, KMeans, OneClass, settle_statistics
from densesiam.methods import DenseSiamSegmentation
from densesiam.models import Encoder
from densesiam.models.inference import in_bfloat16
from densesiam.training.options import build_trainer
from densesiam.training.precision import has_bfloat16
from densesiam.training.run import Built, add_config_arguments, build
from studies.pairs import BFLOAT16, FLOAT32, PRECISIONS, Numbers, paired

CONFIGS = Path(__file__).parent
TASKS = {
    "11 classes": [CONFIGS / "classes11.yaml"],
    "6 groups": [CONFIGS / "classes11.yaml", CONFIGS / "groups6.yaml"],
}
BUDGETS = {"1 minute": 6, "10 minutes": 60}
"""Epochs of 22 steps, by the time they take."""

SPLITS = ("train", "val", "test")
PREDICTED = "test in bfloat16"
"""What a result calls the test split's scores, computed in bfloat16."""
SEARCH = "search-"

Segmenter = Callable[[Tensor], Tensor]
"""Makes logits (B, K, h, w) of images (B, 3, H, W)."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        title: for the table.
        settings: what to change in the configuration, by dotted key.
        fit: makes the segmenter.
        trains: whether it takes a budget; the others are run once.
        random: whether the seed matters.
        share: of a budget's epochs that it trains, where its steps take longer.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    fit: Callable[[Built], Segmenter] = field(default=lambda built: _train(built))
    trains: bool = True
    random: bool = True
    share: float = 1


@dataclass(frozen=True)
class Run:
    """One run of the study: names in `TASKS`, `ROWS`, `BUDGETS` and `PRECISIONS`, and a seed."""

    task: str
    row: str
    budget: str
    seed: int
    precision: str = FLOAT32

    @property
    def file(self) -> str:
        """Name of its result."""
        names = asdict(self)
        if self.precision == FLOAT32:
            del names["precision"]  # as it was before there was another
        return "-".join(map(str, names.values())).replace(" ", "-") + ".json"


# How the rows come by their segmenters


def _train(built: Built) -> Segmenter:
    trainer = build_trainer(built.options, [], logger=False, limit_val_batches=0)
    trainer.fit(built.model, built.data)
    return built.model.segment


def _train_centred(built: Built) -> Segmenter:
    encoder = built.model.encoder
    encoder.backbone = Centred(encoder.backbone, encoder.strides)
    return _train(built)


def _one_class(built: Built) -> Segmenter:
    return OneClass(built.model.num_classes)


def _untrained(built: Built) -> Segmenter:
    return built.model.segment


def _settled(built: Built) -> Segmenter:
    settle_statistics(built.model, _training_images(built))
    return built.model.segment


def _colour_position(built: Built) -> Segmenter:
    return _kmeans(built, ColourPosition())


def _frozen_features(built: Built, stride: int) -> Segmenter:
    backbone, weights = (built.model.hparams[name] for name in ("backbone", "weights"))
    return _kmeans(built, Encoder(backbone, weights, [stride], fpn=False, backbone_lr_factor=0))


def _kmeans(built: Built, features: nn.Module) -> Segmenter:
    model = KMeans(features, built.model.num_classes, built.data.seed)
    return model.fit(_training_images(built))


def _training_images(built: Built) -> DataLoader:
    """The training images, shuffled, as they are in evaluation: batches (B, 3, H, W)."""
    images = PredictionImages(find_images(built.data.train), built.data.predict_transform)
    return DataLoader(
        images,  # type: ignore[arg-type]  # a data set of dicts, which collate_fn makes tensors
        built.data.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(built.data.seed),
        collate_fn=lambda samples: torch.stack([sample["image"] for sample in samples]),
    )


class Centred(nn.Module):
    """A backbone whose stages are moved to where their cells are taken to lie.

    TensorFlow's padding puts the features of stride s by (s - 1) / 2 pixels to the right of and
    below their cells' centres (`Encoder.feature_offset`), so each stage is read as far to the left
    and above. The coarsest move most: 15.5 pixels, an eighth of a view's width here.

    Args:
        backbone: with TensorFlow's padding.
        strides: of its stages.
    """

    def __init__(self, backbone: nn.Module, strides: Iterable[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = tuple(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The stages of images (B, 3, H, W)."""
        B, _, H, W = images.shape
        moved = []
        for stride, stage in zip(self.strides, self.backbone(images), strict=True):
            dx, dy = (stride - 1) / 2 / W, (stride - 1) / 2 / H
            box = images.new_tensor([-dx, -dy, 1 - dx, 1 - dy]).expand(B, 4)
            moved.append(ops.overlap_sample(stage, box, (stage.shape[2], stage.shape[3])))
        return moved


# What rows change, and the rows


def _sizes(shorter: int, view: tuple[int, int]) -> dict[str, Any]:
    """Settings of images' shorter side and of views' height and width, in training and scoring."""
    return {
        "data.views.init_args.resize": shorter,
        "data.views.init_args.size": list(view),
        **_scored_at(shorter),
    }


def _scored_at(shorter: int) -> dict[str, Any]:
    """Settings of images' shorter side in scoring alone."""
    return {
        "data.val.init_args.transform.resize": shorter,
        "data.predict_transform.resize": shorter,
    }


def _photometric(**amounts: float) -> dict[str, float]:
    """Settings of how much the views' colours and sharpness change."""
    return {f"data.views.init_args.photometric.{name}": v for name, v in amounts.items()}


BASELINES = {
    "one-class": Row("one class", fit=_one_class, trains=False, random=False),
    "colour-position": Row("k-means, colour + position", fit=_colour_position, trains=False),
    "features-16": Row(
        "k-means, frozen features at stride 16",
        fit=lambda built: _frozen_features(built, 16),
        trains=False,
    ),
    "features-16-216": Row(
        "k-means, stride 16, images of 216 x 288",
        _scored_at(216),
        fit=lambda built: _frozen_features(built, 16),
        trains=False,
    ),
    "features-32": Row(
        "k-means, frozen features at stride 32",
        fit=lambda built: _frozen_features(built, 32),
        trains=False,
    ),
    "untrained": Row("untrained network", fit=_untrained, trains=False),
    "untrained-settled": Row(
        "untrained network, normalisation settled", fit=_settled, trains=False
    ),
}
DENSESIAM = {
    "densesiam": Row("DenseSiam"),
    "no-pseudo-label": Row("pseudo-label loss off", {"model.pseudo_label_weight": 0}),
    "no-region": Row("RegionSim off", {"model.region_weight": 0}),
    "no-aux": Row("over-clustering off", {"model.aux_classes": None}),
}
SEARCHED = {
    SEARCH + name: row
    for name, row in {
        "centred": Row("feature offset removed", fit=_train_centred),
        "no-stride-4": Row("no stride 4", {"model.strides": [8, 16, 32]}),
        "frequency-10": Row(
            "`frequency` balancing x 10",
            {"model.rebalance": "frequency", "model.pseudo_label_weight": 10},
        ),
        "strides-16-32": Row("strides 16 and 32 alone", {"model.strides": [16, 32]}),
        "backbone-0.1": Row("backbone at 0.1 lr", {"model.backbone_lr_factor": 0.1}),
        "backbone-0.01": Row("backbone at 0.01 lr", {"model.backbone_lr_factor": 0.01}),
        "scale-0.8": Row("crops from 0.8 of a side", {"data.views.init_args.scale_min": 0.8}),
        "pseudo-label-2": Row("pseudo-label loss x 2", {"model.pseudo_label_weight": 2}),
        "cross-labels": Row(
            "pseudo-labels of the other view", {"model.pseudo_label_view": "cross"}
        ),
        "free-sizes": Row("z not normalised", {"model.normalize_z": False}),
        "half-colours": Row(
            "colours changed half as much",
            _photometric(brightness=0.15, contrast=0.15, saturation=0.15, hue=0.05, p_grey=0.1),
        ),
        "same-colours": Row("colours never changed", _photometric(p_jitter=0, p_grey=0)),
        "geometry-alone": Row(
            "colours never changed, no blur", _photometric(p_jitter=0, p_grey=0, p_blur=0)
        ),
        "region-from-0": Row("RegionSim from the start", {"model.region_start": 0}),
        "lr-0.2": Row("learning rate 0.2", {"model.lr": 0.2}),
        "wide": Row("128 channels", {"model.channels": 128, "model.hidden_channels": 128}),
        "scored-216": Row("images of 216 x 288 in scoring alone", _scored_at(216)),
        "half-the-steps": Row("half the steps", share=1 / 2),
        "fine-144-all": Row("views of 144 x 192, all steps", _sizes(216, (144, 192))),
        "fine-144": Row("views of 144 x 192, half the steps", _sizes(216, (144, 192)), share=1 / 2),
        "fine-192": Row(
            "views of 192 x 256, a third of the steps", _sizes(288, (192, 256)), share=1 / 3
        ),
    }.items()
}
CHOSEN = {name: SEARCHED[SEARCH + name] for name in ("same-colours", "fine-144")}
"""What was found on the validation split, and then scored on the test split."""

ROWS = {**BASELINES, **DENSESIAM, **CHOSEN, **SEARCHED}


# One run


def measure(run: Run, data: Path, output: Path, threads: int) -> None:
    """Do one run, and write its file.

    Args:
        run: which.
        data: CamVid's folder.
        output: where the file goes.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    row = ROWS[run.row]
    built = _build(run, data)
    with _measured() as used:
        segment = row.fit(built)
    splits = ["val"] if run.row.startswith(SEARCH) else ["val", "test"]
    result = {
        **asdict(run),
        "settings": row.settings,
        **used,
        "threads": threads,
        "torch": torch.__version__,
        **{split: _score(segment, built, data / split) for split in splits},
    }
    if row.trains and "test" in splits and run.precision == FLOAT32 and has_bfloat16("cpu"):
        result[PREDICTED] = _score(in_bfloat16(segment), built, data / "test")
    write_json(output / run.file, result)


def _build(run: Run, data: Path) -> Built:
    """Make model and data, as `densesiam fit` would with the same settings."""
    settings = {
        "seed": run.seed,
        "trainer.precision": run.precision,
        "trainer.max_epochs": round(ROWS[run.row].share * BUDGETS[run.budget]),
        "data.train": str(data / "train" / "images"),
        "data.val.init_args.images": str(data / "val" / "images"),
        "data.val.init_args.labels": str(data / "val" / "labels"),
        **ROWS[run.row].settings,
    }
    parser = ArgumentParser(exit_on_error=False)
    add_config_arguments(parser, DenseSiamSegmentation, SegmentationData, "")
    arguments = [f"--config={path}" for path in TASKS[run.task]]
    arguments += [f"--{key}={_argument(value)}" for key, value in settings.items()]
    return build(parser, parser.parse_args(arguments))


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    """Seconds on the clock and of the processor, and the process's peak memory so far."""
    used: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield used
    used["seconds"] = time.perf_counter() - wall
    used["cpu_seconds"] = time.process_time() - cpu
    used["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _score(segment: Segmenter, built: Built, split: Path) -> dict[str, Any]:
    """Score a segmentation of a labelled split, in per cent."""
    val = built.data.val
    images = LabelledImages(
        split / "images", split / "labels", val.classes, val.ignore_index, transform=val.transform
    )
    names = val.classes.names
    metrics = ClusterMetrics(built.model.num_classes, len(names), val.ignore_index, names)
    for batch in DataLoader(images, built.data.val_batch_size):
        metrics.update(segment(batch["image"]), batch["label"])
    scores = metrics.compute()
    return {
        "miou": 100 * float(scores["miou"]),
        "accuracy": 100 * float(scores["accuracy"]),
        "iou": dict(zip(names, (100 * scores["iou"]).tolist(), strict=True)),
        "confusion": metrics.confusion.tolist(),
    }


# All of them


def check_layout(data: Path) -> None:
    """Stop before the first run where folders are missing.

    Raises:
        SystemExit: naming them.
    """
    folders = [data / split / kind for split in SPLITS for kind in ("images", "labels")]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        sys.exit(
            f"no folder {', '.join(missing)}: CamVid is expected as "
            f"{data}/{{{','.join(SPLITS)}}}/{{images,labels}}"
        )


def planned(
    rows: Sequence[str],
    tasks: Sequence[str],
    budgets: Sequence[str],
    seeds: int,
    precisions: Sequence[str] = (FLOAT32,),
) -> Iterator[Run]:
    """The runs to do, without those that a budget, a seed or a precision would only repeat."""
    for budget, task, seed, row, precision in itertools.product(
        budgets, tasks, range(seeds), rows, precisions
    ):
        once = (budget, precision) == (budgets[0], precisions[0])
        if (once or ROWS[row].trains) and (seed == 0 or ROWS[row].random):
            yield Run(task, row, budget, seed, precision)


def tables(results: Sequence[dict[str, Any]]) -> str:
    """All results in Markdown: rows on the test split, then those tried on the validation split.

    The latter stand beside what they are to improve upon. Then what bfloat16 changes.
    """
    both, results = results, [run for run in results if run["precision"] == FLOAT32]
    searched = {run["row"] for run in results if run["row"] in SEARCHED}
    rows = [*BASELINES, *DENSESIAM, *CHOSEN]
    text = table(results, rows, "test")
    if searched:
        baselines = [name for name in BASELINES if name.startswith("features-16")]
        tried = [*baselines, "densesiam", *(row for row in SEARCHED if row in searched)]
        compared = [run for run in results if run["budget"] == next(iter(BUDGETS))]
        text += "\n" + table(compared, tried, "val")
    if len(both) > len(results):
        text += "\n" + in_pairs(both)
    return text


def in_pairs(results: Sequence[dict[str, Any]]) -> str:
    """What bfloat16 changes of the test split's scores, in training and in prediction; `paired`."""
    found = {Run(**{f.name: r[f.name] for f in fields(Run)}): r for r in results if "test" in r}
    rows: dict[Sequence[str], list[tuple[Numbers, Numbers]]] = {}
    for run, result in found.items():
        title = (run.task, ROWS[run.row].title, run.budget)
        if run.precision == BFLOAT16 and (before := found.get(replace(run, precision=FLOAT32))):
            rows.setdefault((*title, "trained"), []).append((_numbers(before), _numbers(result)))
        if PREDICTED in result:
            scored = (_scores(result["test"]), _scores(result[PREDICTED]))
            rows.setdefault((*title, "predicted"), []).append(scored)
    return paired(rows)


def _numbers(result: dict[str, Any]) -> Numbers:
    return {**_scores(result["test"]), "processor s": result["cpu_seconds"]}


def _scores(split: dict[str, Any]) -> Numbers:
    return {"mIoU": split["miou"], "accuracy": split["accuracy"]}


def table(results: Sequence[dict[str, Any]], rows: Sequence[str], split: str) -> str:
    """Some rows' scores on one split: means over the seeds, with the least and the greatest."""
    columns = ["task", "row", "budget", "seeds", f"{split} mIoU", f"{split} accuracy"]
    columns += ["seconds", "CPU s", "MiB"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for task, budget, row in itertools.product(TASKS, BUDGETS, rows):
        runs = [r for r in results if (r["task"], r["budget"], r["row"]) == (task, budget, row)]
        if not runs:
            continue
        cells = [task, ROWS[row].title, budget if ROWS[row].trains else "", str(len(runs))]
        cells += [_spread([r[split][name] for r in runs]) for name in ("miou", "accuracy")]
        cells += [
            f"{statistics.mean(r[name] for r in runs):.0f}"
            for name in ("seconds", "cpu_seconds", "peak_memory_mib")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


def main() -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.camvid.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="CamVid: train, val, test with images and labels")
    parser.add_argument("--output", type=Path, default=Path("outputs/camvid"))
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=[*BASELINES, *DENSESIAM, *CHOSEN]
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=[FLOAT32], help="of training"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--table", action="store_true", help="only write the table")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.table:
        if args.data is None:
            parser.error("--data is needed, the folder of CamVid")
        check_layout(args.data)
        for run in planned(args.rows, args.tasks, args.budgets, args.seeds, args.precision):
            if (args.output / run.file).exists():
                continue
            print(run, flush=True)
            # A process of its own: peak memory is the process's.
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(run, args.data, args.output, args.threads)
            )
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{run} failed, see above; the runs before it are kept")
    results = [
        {"precision": FLOAT32, **json.loads(path.read_text())}  # the first runs had no other
        for path in sorted(args.output.glob("*.json"))
    ]
    (args.output / "table.md").write_text(tables(results))
    print(tables(results))


if __name__ == "__main__":
    main()
