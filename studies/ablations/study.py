"""The paper's ablations at a budget of one's own, beside what the paper found.

    python -m studies.ablations.study table4 --data FOLDER --epochs 20 [--rows NAME ...]
        [--probe CONFIG]
    python -m studies.ablations.study table5 --data FOLDER --epochs 10
        --base studies/camvid/classes11.yaml

Table 4 is about pre-training, Table 5 about segmentation. Each row is an entry of ``rows.yaml``,
laid over the base; the row ``base`` is the base alone. A row leaves its run in ``OUTPUT/<row>``;
one that is finished there is not run again, so a table that was stopped goes on. At the end the
table is printed, and written to ``OUTPUT/table.md``.

A row's score is the mIoU of its last epoch where the base has labelled images (Table 5), or of
`densesiam probe knn` on the frozen backbone, by the settings of ``--probe`` (Table 4). Losses of
different rows do not compare. "Signs of collapse" is what `densesiam.training.monitor.diagnose`
says of the last epoch's means. What follows ``--`` goes to every run:
``-- --trainer.limit_train_batches 50``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from densesiam import cli
from densesiam.training.monitor import diagnose

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("rows.yaml").read_text()
)
"""For each table its rows, each with the model's settings that it changes."""
COMMANDS = {"table4": "pretrain", "table5": "fit"}
BASES = {"table4": CONFIGS / "pretrain" / "small.yaml", "table5": CONFIGS / "folder.yaml"}
PUBLISHED = {
    "table4_global": "on the overlap, training collapses",
    "table4_start": "best started in mid-training",
}
"""The direction of effect, where we know it; the tables' figures are not known to us."""


def rows_of(table: str) -> list[str]:
    """Names of a table's rows, those of one setting together."""
    return ["base", *sorted(ROWS[table])]


def arguments_of(table: str, row: str) -> list[str]:
    """What a row changes, as arguments of the command."""
    changes = {} if row == "base" else ROWS[table][row]
    return [
        f"--model.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changes.items()
    ]


def published(table: str, row: str) -> str:
    """What the paper says of a row's setting."""
    return PUBLISHED.get(f"{table}_{row.rpartition('_')[0]}", "not known to us")


def run_row(
    table: str,
    row: str,
    base: Sequence[Path],
    folder: Path,
    settings: Sequence[str],
    probe: Path | None,
) -> None:
    """Train one row, and score it.

    Args:
        table: the table's name.
        row: the row's name.
        base: config files that all rows share.
        folder: of the row's run; nothing is done that is done there.
        settings: further arguments of the command.
        probe: settings of ``densesiam probe knn``; None to do without.
    """
    summary = folder / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["state"] != "finished":
        started = (folder / "checkpoints" / "last.ckpt").exists()
        _command(
            [
                COMMANDS[table],
                *(f"--config={path}" for path in base),
                *arguments_of(table, row),
                f"--output={folder}",
                *settings,
                *(["--ckpt_path=last"] if started else []),
            ]
        )
    if probe is not None and not (folder / "probe" / "results.json").exists():
        model = yaml.safe_load((folder / "config.yaml").read_text())["model"]
        backbone = [f"--model.{name}={model[name]}" for name in ("backbone", "output_stride")]
        weights = f"--model.weights={folder / 'checkpoints' / 'last.ckpt'}"
        output = f"--output={folder / 'probe'}"
        _command(["probe", "knn", f"--config={probe}", *backbone, weights, output])


def _command(args: list[str]) -> None:
    """Run the command ``densesiam``, and stop where it fails; it has said why."""
    if code := cli.main(args):
        sys.exit(code)


def table_line(table: str, row: str, folder: Path, base_score: float | None) -> tuple[str, ...]:
    """The cells of a row, from the files of its run."""
    summary = json.loads((folder / "summary.json").read_text())
    last = summary["epochs"][-1]
    losses = ("sim", "dense", "region") if table == "table4" else ("loss",)
    watched = {
        name.removeprefix("monitor/"): value
        for name, value in last.items()
        if name.startswith("monitor/") and value is not None
    }
    findings = "; ".join(diagnose(watched).values()) or ("none" if watched else "not watched")
    score = score_of(folder)
    return (
        row,
        *(f"{last[f'train/{name}']:.3f}" if f"train/{name}" in last else "-" for name in losses),
        "-" if score is None else f"{100 * score:.1f}",
        "-" if score is None or base_score is None else f"{100 * (score - base_score):+.1f}",
        f"{watched['encoder/std']:.2f}" if "encoder/std" in watched else "-",
        f"{watched['encoder/effective_rank']:.2f}" if "encoder/effective_rank" in watched else "-",
        findings,
        f"{summary['seconds']:.0f}",
        published(table, row) if row != "base" else "-",
    )


def score_of(folder: Path) -> float | None:
    """The mIoU of a row, in [0, 1]; None where nothing was scored."""
    if (folder / "probe" / "results.json").exists():
        return json.loads((folder / "probe" / "results.json").read_text())["scores"]["miou"]
    return json.loads((folder / "summary.json").read_text())["epochs"][-1].get("val/miou")


def print_table(table: str, rows: Sequence[str], output: Path) -> None:
    """Print the rows that have been run, and write them to ``table.md``."""
    base = output / "base"
    base_score = score_of(base) if (base / "summary.json").exists() else None
    head = (
        "row",
        *(("sim", "dense", "region") if table == "table4" else ("loss",)),
        "mIoU",
        "to base",
        "std",
        "rank",
        "signs of collapse",
        "seconds",
        "the paper",
    )
    lines = [
        table_line(table, row, output / row, base_score)
        for row in rows
        if (output / row / "summary.json").exists()
    ]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
    (output / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nwrote {output / 'table.md'}")


def main(args: Sequence[str] | None = None) -> None:
    """Run a table as the command line says."""
    arguments = list(sys.argv[1:] if args is None else args)
    own, settings = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, settings = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m studies.ablations.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=COMMANDS)
    parser.add_argument("--data", help="folder of training images; default: the base's own")
    parser.add_argument("--epochs", type=int, help="of each row; default: the base's own")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--base", nargs="+", type=Path, help="config files that all rows share")
    parser.add_argument("--probe", type=Path, help="settings of `densesiam probe knn`")
    parser.add_argument("--output", type=Path, help="default: outputs/ablation/TABLE")
    options = parser.parse_args(own)
    if options.probe is not None and options.table != "table4":
        parser.error("--probe is for table4: a segmentation is scored by the base's data.val")
    known = rows_of(options.table)
    rows = options.rows or known
    if unknown := [row for row in rows if row not in known]:
        parser.error(f"no row {', '.join(unknown)}; {options.table} has {', '.join(known)}")
    if options.data is not None:
        settings = [f"--data.train={options.data}", *settings]
    if options.epochs is not None:
        settings = [f"--trainer.max_epochs={options.epochs}", *settings]
    base = options.base or [BASES[options.table]]
    output = options.output or Path("outputs", "ablation", options.table)
    for row in rows:
        print(f"\n{options.table}, {row}", flush=True)
        run_row(options.table, row, base, output / row, settings, options.probe)
    print_table(options.table, rows, output)


if __name__ == "__main__":
    main()
