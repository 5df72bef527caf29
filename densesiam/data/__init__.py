"""Images, and views of them that keep their geometry.

Lightning's data modules are in `densesiam.data.modules`.
"""

from densesiam.data.image.files import ImageReadError, find_images, read_image, read_label
from densesiam.data.image.frame import IMAGENET_MEAN, IMAGENET_STD, to_image
from densesiam.data.image.photometric import MOCO_V2, Photometric
from densesiam.data.image.transform import Evaluation, to_source
from densesiam.data.order.draws import Draw
from densesiam.data.order.sampler import EvaluationSampler, TrainingSampler
from densesiam.data.sets.cityscapes import Cityscapes27, CityscapesImages
from densesiam.data.sets.classes import ClassTable
from densesiam.data.sets.coco import CocoImages, CocoStuff27
from densesiam.data.sets.imagenet import ImageNetImages
from densesiam.data.sets.images import (
    ImageFiles,
    Images,
    PredictionImages,
    SamplePhotos,
    sample_paths,
)
from densesiam.data.sets.labelled import LabelledFiles, LabelledImages
from densesiam.data.sets.unlabelled import FolderImages, ImageList
from densesiam.data.sets.voc import VocImages, VocSegmentation
from densesiam.data.views.official import OfficialSegmentationViews
from densesiam.data.views.paired import SegmentationViews, TwoCrops, Views

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MOCO_V2",
    "Cityscapes27",
    "CityscapesImages",
    "ClassTable",
    "CocoImages",
    "CocoStuff27",
    "Draw",
    "Evaluation",
    "EvaluationSampler",
    "FolderImages",
    "ImageFiles",
    "ImageList",
    "ImageNetImages",
    "ImageReadError",
    "Images",
    "LabelledFiles",
    "LabelledImages",
    "OfficialSegmentationViews",
    "Photometric",
    "PredictionImages",
    "SamplePhotos",
    "SegmentationViews",
    "TrainingSampler",
    "TwoCrops",
    "Views",
    "VocImages",
    "VocSegmentation",
    "find_images",
    "read_image",
    "read_label",
    "sample_paths",
    "to_image",
    "to_source",
]
