"""``python -m benchmarks report RESULT``: a page, or tables for documents, from a result.

``--html PAGE`` writes one self-contained page. ``--markdown`` prints every table. ``--into FILE``
fills the tables of a document: what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` is
replaced by the table of that name, and ``<!-- table: machine -->`` by what the numbers belong to.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.devices import DEVICES
from benchmarks.goals import goal, unmet
from benchmarks.processor import PROCESSORS
from benchmarks.results import CEILING, PEER_NAMES, Results
from benchmarks.roofline import read_baseline
from benchmarks.suite import GROUPS
from benchmarks.tables import Table
from densesiam.reports import page
from densesiam.reports.page import Html

TITLES = {
    "own": "The method's own shapes",
    "goals": "Goals",
    "composites": "Everything after the encoder",
    "steps": "A whole training step",
    "host": "Host time of a call",
    "compile": "Compile time of torch.compile",
    "shapes": "Other shapes",
    "types": "Number types",
    "batch": "Over the batch",
    "side": "Over the size of the map",
    "threads": "Over threads",
}
TEXTS = {
    "own": "Forward and backward. The ratios say how many times faster ours is; every row was "
    "measured interleaved, in one run.",
    "goals": "What the project asks of itself at these shapes.",
    "composites": "Heads, losses, and backward to features and parameters. The matrix products "
    "alone bound every arrangement from below.",
    "steps": "Forward and backward through encoder, heads and losses.",
    "host": "Tiny maps, one thread: what is left is Python, checks and the dispatcher. The "
    "yardstick is torchvision's roi_align.",
    "compile": "The first call, forward and backward, every cache off; not in the times above.",
}


def write_report(results: Results, path: Path) -> None:
    """Write one self-contained page.

    Args:
        results: what was measured.
        path: the page.
    """
    try:
        from benchmarks import plots
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"the page needs {error.name} for its plots: pip install 'densesiam[bench]'. The "
            "numbers are in the JSON file; `python -m benchmarks report` makes the page from it"
        ) from None
    every = tables.every(results)
    own = [row for row in results.rows if row.group == "own" and row.backends]
    parts: list[Html] = [page.cards(_cards(results))]
    if own:
        parts.append(
            page.section(
                "At a glance",
                page.figure(
                    page.picture(plots.speed_ups(own), "speed-up of each operation"),
                    "How many times faster, forward and backward, than each way to compute the "
                    "same.",
                ),
                page.figure(
                    page.picture(plots.ceiling_shares(own), "share of the ceiling"),
                    "Beyond 100 % the clone pays for fresh memory that ours does not need.",
                ),
            )
        )
    for name, table in every.items():
        plot: list[Html] = []
        rows = [row for row in results.rows if row.group == name]
        if rows and all(row.x is not None for row in rows):
            picture = plots.scaling(rows, GROUPS[name])
            plot = [page.figure(page.picture(picture, TITLES[name]))]
        content = _html(table)
        if name not in ("own", "goals", "composites", "steps", "host"):
            content = page.details(f"{len(table.rows)} rows", content)
        text = [page.paragraph(TEXTS[name])] if name in TEXTS else []
        parts.append(page.section(TITLES[name], *text, *plot, content))
    parts += [_prediction(results), _how(results)]
    page.write_page(path, "densesiam: benchmarks", parts, results.machine["device"])


def fill(text: str, results: Results) -> str:
    """Fill the tables of a document.

    Args:
        text: the document.
        results: where the tables come from.

    Raises:
        ValueError: the document asks for a table that there is not.
    """
    known = {name: table.markdown() for name, table in tables.every(results).items()}
    known["machine"] = _machine(results).markdown()

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name not in known:
            raise ValueError(
                f"there is no table {name!r} in this result; it has {', '.join(known)}. "
                "Measure it with `python -m benchmarks --full`"
            )
        return f"<!-- table: {name} -->\n{known[name]}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def _cards(results: Results) -> list[tuple[str, str, str]]:
    own = [row for row in results.rows if goal(row) and row.backends]
    judged = [(row, backend) for row in own for backend in row.backends]
    met = sum(not unmet(row, backend) for row, backend in judged)
    cards = [(f"{met} of {len(judged)}", "goals met", "rows and backends; see below")]
    for peer in ("eager", "compile", "release"):
        ratios = sorted(r for row, b in judged if (r := row.faster(b, peer)) is not None)
        if ratios:
            middle = ratios[len(ratios) // 2]
            reach = f"from {ratios[0]:.1f}x to {ratios[-1]:.1f}x"
            cards.append((f"{middle:.1f}x", f"against {PEER_NAMES[peer]}", reach))
    return cards


def _html(table: Table) -> Html:
    columns = [
        page.Column(title, "text", note)
        for title, note in zip(table.columns, table.notes, strict=True)
    ]
    return page.table(columns, table.rows)


def _machine(results: Results) -> Table:
    lines = [[str(name), str(value)] for name, value in results.machine.items()]
    return Table(["", ""], ["", ""], [*lines, ["command", f"`{results.command}`"]])


def _prediction(results: Results) -> Html:
    """What is counted of the CUDA kernels and predicted from it, marked as what it is."""
    lines: list[Sequence[str | int | float | None]] = [
        [
            PROCESSORS[architecture].device,
            name,
            f"{row.microseconds:.1f}",
            f"{row.share:.0%}",
            row.bound,
            f"{row.roof:.1f}",
            row.roof_bound,
            row.launches + row.clears,
            f"{row.instructions:.2f}",
            f"{row.sectors:.2f}",
            row.widest,
            f"{row.conflict:.0f}",
            row.registers,
        ]
        for architecture, rows in read_baseline().items()
        for name, row in rows.items()
    ]
    columns = [
        page.Column("device"),
        page.Column("case"),
        page.Column("us", "number", "predicted"),
        page.Column("share", "number", "of the roof, predicted"),
        page.Column("bound by"),
        page.Column("roof, us", "number", "no kernel can be faster"),
        page.Column("of"),
        page.Column("launches", "number", "and memory that is filled"),
        page.Column("instructions", "number", "of threads, a mandatory byte"),
        page.Column("sectors", "number", "bytes of them, a mandatory byte"),
        page.Column("load", "number", "bytes of the widest"),
        page.Column("conflict", "number", "of shared memory: wavefronts over the least, the worst"),
        page.Column("registers", "number", "of the kernel that has the most"),
    ]
    figures = page.table(
        [page.Column(t) for t in ("device", "GB/s", "SMs", "GHz", "tf32 TFLOP/s", "source")],
        [
            [d.name, f"{d.bandwidth:g}", d.multiprocessors, d.clock, f"{d.tensor:g}", d.source]
            for d in DEVICES.values()
        ],
    )
    return page.section(
        "GPUs: counts and a prediction, not a measurement",
        page.paragraph(
            "The machine code of the CUDA kernels was executed on the CPU and counted. The times "
            "are a model's, made from the counts; docs/benchmarks.md says what it knows and what "
            "it does not."
        ),
        page.details(f"{len(lines)} cases", page.table(columns, lines)),
        page.details("Public figures of the devices", figures),
    )


def _how(results: Results) -> Html:
    """Machine, command, and how to read it all."""
    return page.section(
        "How it was measured",
        page.facts([(name, str(value)) for name, value in results.machine.items()]),
        page.paragraph(f"Command: {results.command}"),
        page.paragraph(
            "Each round runs every candidate of a row once, on the next of several sets of "
            "inputs, after two rounds of warm-up; the tables have median and quartiles. "
            "A candidate whose result or gradients are wrong has no time. The ceiling is "
            f"torch.{CEILING} of the bytes that the operation must read and write. Extra memory "
            "is the peak of what is held beyond inputs, outputs and gradients. "
            "docs/benchmarks.md has the details."
        ),
    )


def main(arguments: Sequence[str]) -> int:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, help="a JSON file")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page")
    parser.add_argument("--markdown", action="store_true", help="print every table")
    parser.add_argument("--into", type=Path, metavar="FILE", help="fill a document's tables")
    options = parser.parse_args(arguments)
    if not (options.html or options.markdown or options.into):
        parser.error("say what to write: --html PAGE, --markdown or --into FILE")
    try:
        results = Results.read(options.result)
        if options.into:
            options.into.write_text(fill(options.into.read_text(), results))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.html:
        write_report(results, options.html)
    if options.markdown:
        for name, table in tables.every(results).items():
            print(f"## {TITLES[name]}\n\n{table.markdown()}\n")
    return 0
