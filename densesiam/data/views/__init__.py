"""Two views of one image."""

from densesiam.data.views.official import OfficialSegmentationViews
from densesiam.data.views.paired import (
    SegmentationViews,
    TwoCrops,
    Views,
    output_size,
    pack,
    place,
)

__all__ = [
    "OfficialSegmentationViews",
    "SegmentationViews",
    "TwoCrops",
    "Views",
    "output_size",
    "pack",
    "place",
]
