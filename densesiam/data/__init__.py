"""Images, and views of them that keep their geometry.

The Lightning data module is in `densesiam.data.module`.
"""

from densesiam.data.classes import ClassTable
from densesiam.data.draws import Draw
from densesiam.data.evaluation import Evaluation, to_source
from densesiam.data.files import ImageReadError, find_images, read_image, read_label
from densesiam.data.frame import IMAGENET_MEAN, IMAGENET_STD
from densesiam.data.images import ImageFiles, Images, PredictionImages, SamplePhotos, sample_paths
from densesiam.data.labelled import LabelledImages
from densesiam.data.official import OfficialSegmentationViews
from densesiam.data.photometric import MOCO_V2, Photometric
from densesiam.data.sampler import EvaluationSampler, TrainingSampler
from densesiam.data.views import SegmentationViews, TwoCrops, Views

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOCO_V2",
    "ClassTable",
    "Draw",
    "Evaluation",
    "EvaluationSampler",
    "ImageFiles",
    "ImageReadError",
    "Images",
    "LabelledImages",
    "OfficialSegmentationViews",
    "Photometric",
    "PredictionImages",
    "SamplePhotos",
    "SegmentationViews",
    "TrainingSampler",
    "TwoCrops",
    "Views",
    "find_images",
    "read_image",
    "read_label",
    "sample_paths",
    "to_source",
]
