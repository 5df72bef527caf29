"""Training in float32 and in bfloat16, compared over runs of the same seeds."""

from collections.abc import Mapping, Sequence
from statistics import mean

from scipy.stats import ttest_rel

FLOAT32, BFLOAT16 = "32-true", "bf16-mixed"
PRECISIONS = (FLOAT32, BFLOAT16)
"""What studies call ``--precision``: values of ``trainer.precision``."""

DIGITS = {"mIoU": 1, "accuracy": 1, "last loss": 4, "processor s": 1}
"""What is compared, and the digits after its point."""

Numbers = Mapping[str, float]
"""What came of a run, by names of `DIGITS`; not each has all."""


def paired(rows: Mapping[Sequence[str], Sequence[tuple[Numbers, Numbers]]]) -> str:
    """A table in Markdown: means, and the pairs' mean difference with its 95 % interval.

    Args:
        rows: what a row is about, and for each seed what came of float32 and of bfloat16; a row of
            fewer than two seeds has no interval, and is left out.
    """
    columns = ["", "seeds", "of", "float32", "bfloat16", "difference (95 %)"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for title, pairs in rows.items():
        if len(pairs) < 2:
            continue
        for name, digits in DIGITS.items():
            if name not in pairs[0][0]:
                continue
            before, after = (
                [numbers[name] for numbers in each] for each in zip(*pairs, strict=True)
            )
            cells = [", ".join(title), str(len(pairs)), name]
            cells += [f"{mean(each):.{digits}f}" for each in (before, after)]
            lines.append(f"| {' | '.join(cells)} | {difference(before, after, digits)} |")
    return "\n".join(lines) + "\n"


def difference(before: Sequence[float], after: Sequence[float], digits: int = 1) -> str:
    """Mean of the pairs' differences, with its 95 % interval by Student's t.

    Args:
        before: a number for each seed, at least two.
        after: the same seeds' in the same order.
        digits: after the point.

    Returns:
        Such as ``+0.3 (-1.1 to +1.7)``.
    """
    low, high = ttest_rel(after, before).confidence_interval(0.95)
    return f"{(low + high) / 2:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
