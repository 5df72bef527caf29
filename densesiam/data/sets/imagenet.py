"""ImageNet's photographs, without their labels."""

from pathlib import Path

from densesiam.data.image.files import find_images
from densesiam.data.sets.layout import find_folder
from densesiam.data.sets.unlabelled import ImageList

_TREE = ("train/n01440764/n01440764_10026.JPEG ...", "train/n01443537/ ...", "val/ ...")


class ImageNetImages(ImageList):
    """The training images of ImageNet: ``ROOT/train/<wnid>/*.JPEG``.

    The data's own folders put the root at ``ILSVRC/Data/CLS-LOC``. Validation and test images,
    which lie beside ``train``, are not touched. Any folder of folders of this form will do.

    Args:
        root: the folder with ``train`` in it.

    Raises:
        FileNotFoundError: there is no ``train`` with images; the message draws the layout.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__(find_images(find_folder(Path(root), ["train"], "ImageNet", _TREE)))
