"""Fine-tuning of a pre-trained backbone with labels."""

from densesiam.transfer.detection import DetectionTransfer
from densesiam.transfer.semantic import SegmentationTransfer

__all__ = ["DetectionTransfer", "SegmentationTransfer"]
