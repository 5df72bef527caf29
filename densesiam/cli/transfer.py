"""``densesiam transfer``: fine-tune a pre-trained backbone with labels."""

from jsonargparse import ArgumentParser, Namespace

from densesiam.data.modules.supervised import DetectionData, LabelledData
from densesiam.training.task import Task, add_tasks
from densesiam.transfer import DetectionTransfer, SegmentationTransfer

USAGE = "{detection,segmentation} --config FILE [--model.weights FILE] [other settings]"

TASKS = {
    "detection": Task(
        "transfer detection",
        "Fine-tune Faster R-CNN or Mask R-CNN.",
        DetectionTransfer,
        DetectionData,
    ),
    "segmentation": Task(
        "transfer segmentation",
        "Fine-tune a fully convolutional network for semantic segmentation.",
        SegmentationTransfer,
        LabelledData,
        of_data=("classes", "ignore_index"),
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's tasks to its parser."""
    add_tasks(parser, {name: (task.summary, task.parser()) for name, task in TASKS.items()})


def run(parser: ArgumentParser, config: Namespace) -> None:
    """Run the chosen task."""
    TASKS[config.task].run(config[config.task])
