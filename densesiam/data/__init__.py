"""Images, and views of them that keep their geometry.

The Lightning data module is in `densesiam.data.module`.
"""

from densesiam.data.cityscapes import Cityscapes27, CityscapesImages
from densesiam.data.classes import ClassTable
from densesiam.data.coco import CocoImages, CocoStuff27
from densesiam.data.draws import Draw
from densesiam.data.evaluation import Evaluation, to_source
from densesiam.data.files import ImageReadError, find_images, read_image, read_label
from densesiam.data.frame import IMAGENET_MEAN, IMAGENET_STD, to_image
from densesiam.data.imagenet import ImageNetImages
from densesiam.data.images import ImageFiles, Images, PredictionImages, SamplePhotos, sample_paths
from densesiam.data.labelled import LabelledFiles, LabelledImages
from densesiam.data.official import OfficialSegmentationViews
from densesiam.data.photometric import MOCO_V2, Photometric
from densesiam.data.sampler import EvaluationSampler, TrainingSampler
from densesiam.data.unlabelled import FolderImages, ImageList
from densesiam.data.views import SegmentationViews, TwoCrops, Views
from densesiam.data.voc import VocImages, VocSegmentation

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
