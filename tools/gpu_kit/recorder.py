"""Plugin of pytest's (``-p tools.gpu_kit.recorder``): each outcome, a line of JSON as it comes.

The environment's DENSESIAM_RECORD names the file; DENSESIAM_RECORDED names one with the tests that
an earlier run has told about, which are left out. A run that is cut short has then told all that it
had to tell. After a failure that leaves the device unusable the process ends, so that one fault is
not reported as many: pytest-xdist then starts another.
"""

from __future__ import annotations

import json
import os
from typing import Any

BROKEN = 70


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what is on record."""
    with open(os.environ["DENSESIAM_RECORDED"], encoding="utf-8") as file:
        recorded = set(file.read().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in recorded])
    items[:] = [item for item in items if item.nodeid not in recorded]


def pytest_runtest_logreport(report: Any) -> None:
    """Write what became of a test; with pytest-xdist the process that gathers them does."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when != "call" and report.outcome == "passed":
        return
    told = {
        "test": report.nodeid,
        "outcome": report.outcome if report.when == "call" else f"{report.outcome}, {report.when}",
        "seconds": round(report.duration, 3),
    }
    if report.outcome != "passed":
        told["said"] = _reason(report)
    with open(os.environ["DENSESIAM_RECORD"], "a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")


def _reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):  # a skipped test: file, line, reason
        return str(report.longrepr[2])[:500]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr))[:500]


def pytest_runtest_teardown() -> None:
    """End a worker whose device answers no more, once its test has been reported."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    import torch

    from benchmarks import device

    if device.gpu is None or not torch.cuda.is_initialized():
        return
    try:
        device.gpu.synchronize()
    except RuntimeError:
        os._exit(BROKEN)
