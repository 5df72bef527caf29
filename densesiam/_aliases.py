"""Names of earlier versions: modules that have moved are found under their old names too.

Configuration files, checkpoints and other people's code name classes by their modules. An old
module looks its names up in the modules of `MOVED` when they are asked for, so nothing is imported
for its sake alone.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "densesiam.callbacks": (
        "densesiam.training.report",
        "densesiam.training.pictures",
        "densesiam.training.checkpoints",
        "densesiam.reports.prediction",
        "densesiam._writing",
    ),
    "densesiam.commands": ("densesiam.cli",),
    "densesiam.commands.checkpoints": ("densesiam.training.checkpoints",),
    "densesiam.commands.console": ("densesiam.training.console",),
    "densesiam.commands.demo": ("densesiam.cli.demo",),
    "densesiam.commands.export": ("densesiam.cli.export",),
    "densesiam.commands.fit": ("densesiam.cli.fit",),
    "densesiam.commands.folders": ("densesiam.training.folders",),
    "densesiam.commands.picie": ("densesiam.cli.picie",),
    "densesiam.commands.predict": ("densesiam.cli.predict",),
    "densesiam.commands.pretrain": ("densesiam.cli.pretrain",),
    "densesiam.commands.probe": ("densesiam.cli.probe",),
    "densesiam.commands.scoring": ("densesiam.training.scoring",),
    "densesiam.commands.supervised": ("densesiam.training.task",),
    "densesiam.commands.trainer": ("densesiam.training.options", "densesiam.training.run"),
    "densesiam.commands.training": ("densesiam.training.run",),
    "densesiam.commands.transfer": ("densesiam.cli.transfer",),
    "densesiam.commands.validate": ("densesiam.cli.validate",),
    "densesiam.data.cityscapes": ("densesiam.data.sets.cityscapes",),
    "densesiam.data.classes": ("densesiam.data.sets.classes",),
    "densesiam.data.classified": (
        "densesiam.data.sets.classified",
        "densesiam.data.modules.supervised",
    ),
    "densesiam.data.coco": ("densesiam.data.sets.coco",),
    "densesiam.data.crops": ("densesiam.data.sets.crops", "densesiam.data.modules.supervised"),
    "densesiam.data.draws": ("densesiam.data.order.draws",),
    "densesiam.data.evaluation": ("densesiam.data.image.transform",),
    "densesiam.data.files": ("densesiam.data.image.files",),
    "densesiam.data.frame": ("densesiam.data.image.frame",),
    "densesiam.data.imagenet": ("densesiam.data.sets.imagenet",),
    "densesiam.data.images": ("densesiam.data.sets.images",),
    "densesiam.data.labelled": ("densesiam.data.sets.labelled",),
    "densesiam.data.layout": ("densesiam.data.sets.layout",),
    "densesiam.data.loading": ("densesiam.data.modules.loading",),
    "densesiam.data.module": ("densesiam.data.modules.two_views",),
    "densesiam.data.objects": ("densesiam.data.sets.objects", "densesiam.data.modules.supervised"),
    "densesiam.data.official": ("densesiam.data.views.official",),
    "densesiam.data.photometric": ("densesiam.data.image.photometric",),
    "densesiam.data.pretraining": ("densesiam.data.modules.two_views",),
    "densesiam.data.sampler": ("densesiam.data.order.sampler",),
    "densesiam.data.supervised": ("densesiam.data.modules.supervised",),
    "densesiam.data.unlabelled": ("densesiam.data.sets.unlabelled",),
    "densesiam.data.voc": ("densesiam.data.sets.voc",),
    "densesiam.evaluation.images": ("densesiam.evaluation.ranking",),
    "densesiam.evaluation.probes": ("densesiam.transfer.probes",),
    "densesiam.evaluation.report": (
        "densesiam.reports.validation",
        "densesiam.reports.prediction",
        "densesiam.reports.page",
    ),
    "densesiam.evaluation.segmentation": (
        "densesiam.evaluation.scores",
        "densesiam.transfer.semantic",
    ),
    "densesiam.evaluation.supervised": ("densesiam.transfer.base",),
    "densesiam.methods.assignment": ("densesiam.methods.losses.assignment",),
    "densesiam.methods.averages": ("densesiam.nn",),
    "densesiam.methods.clustering": ("densesiam.methods.losses.clustering",),
    "densesiam.methods.early": ("densesiam.methods.losses.early",),
    "densesiam.methods.losses.averages": ("densesiam.nn",),
    "densesiam.methods.method": ("densesiam.methods.base",),
    "densesiam.methods.region": ("densesiam.methods.losses.region", "densesiam.nn"),
    "densesiam.monitor": ("densesiam.training.monitor",),
    "densesiam.page": ("densesiam.reports.page",),
    "densesiam.transfer.segmentation": ("densesiam.transfer.semantic",),
    "densesiam.visualize": ("densesiam.reports.visualize",),
}
"""Each old module, and the modules that have its names now."""


class _Moved(MetaPathFinder, Loader):
    """Finds the old modules, before what an earlier version may have left in their folders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        has_children = any(old.startswith(f"{fullname}.") for old in MOVED)
        return ModuleSpec(fullname, self, is_package=has_children)

    def exec_module(self, module: ModuleType) -> None:
        def look_up(name: str) -> Any:
            if not name.startswith("__"):  # the import system asks for those of its own
                for home in map(importlib.import_module, MOVED[module.__name__]):
                    if hasattr(home, name):
                        return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = look_up  # type: ignore[method-assign]  # PEP 562


def install() -> None:
    """Let imports find the old names."""
    sys.meta_path.insert(0, _Moved())
