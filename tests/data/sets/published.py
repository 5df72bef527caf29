"""Tiny data sets in the layout, the naming and the file formats of the published ones."""

from pathlib import Path

import numpy as np
from PIL import Image

from densesiam.data.sets.classes import known_table


def scene(seed, values, width=56, height=48, void=255):
    """An image of three noisy areas, and its label: their values, below a line of void."""
    rng = np.random.default_rng(seed)
    areas = np.zeros((height, width), dtype=np.int64)
    areas[:, width // 3 :] = 1
    areas[height // 2 :, width // 2 :] = 2
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    pixels = colours[areas] + rng.integers(-20, 20, (height, width, 3))
    label = np.array(values, dtype=np.uint8)[areas]
    label[0] = void
    return Image.fromarray(pixels.astype(np.uint8)), label


def _save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_coco(root: Path) -> Path:
    """COCO 2017 with the pixel maps of COCO-Stuff, and curated lists without extensions."""
    for split, numbers in (("train", (9, 25, 30, 34)), ("val", (139, 285, 632))):
        for number in numbers:
            # Person, grass and sky-other by COCO-Stuff; of the 27, classes 9, 22 and 23.
            image, label = scene(number, (0, 123, 156))
            name = f"{number:012d}"
            _save(image, root / "images" / f"{split}2017" / f"{name}.jpg", quality=95)
            _save(Image.fromarray(label), root / "annotations" / f"{split}2017" / f"{name}.png")
    grey = Image.open(root / "images" / "val2017" / "000000000285.jpg").convert("L")
    grey.save(root / "images" / "val2017" / "000000000285.jpg")  # COCO has some
    (root / "curated_train.txt").write_text("000000000009\n000000000030\n000000000034\n")
    (root / "curated_val.txt").write_text("000000000632\n000000000139\n")
    return root


def write_cityscapes(root: Path) -> Path:
    """Cityscapes with label ids beside its other label files, and the coarse extra images."""
    for split, city, count in (
        ("train", "aachen", 2),
        ("train", "bochum", 1),
        ("val", "frankfurt", 2),
        ("test", "berlin", 2),
        ("train_extra", "augsburg", 2),
    ):
        for i in range(count):
            name = f"{city}_{i:06d}_000019"
            # road, person and sky; license plates are unlabelled in label ids.
            image, label = scene(i, (7, 24, 23), void=3)
            _save(image, root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            folder = root / "gtFine" / split / city
            if split == "test":
                label[:] = 3  # the test set's labels are dummies
            if split != "train_extra":
                _save(Image.fromarray(label), folder / f"{name}_gtFine_labelIds.png")
                _save(Image.new("I;16", image.size), folder / f"{name}_gtFine_instanceIds.png")
                _save(Image.new("RGBA", image.size), folder / f"{name}_gtFine_color.png")
                (folder / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def write_voc(root: Path) -> Path:
    """Pascal VOC 2012: palette images for some of the photographs, and lists of these."""
    root = root / "VOCdevkit" / "VOC2012"
    splits = {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033", "2007_000042")}
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[:21] = known_table("voc").colours
    lists = {**splits, "trainval": sorted((*splits["train"], *splits["val"]))}
    for i, name in enumerate((*lists["trainval"], "2008_000001")):
        image, label = scene(i, (0, 15, 1))  # background, person, aeroplane
        _save(image, root / "JPEGImages" / f"{name}.jpg", quality=95)
        if name in lists["trainval"]:
            picture = Image.fromarray(label).convert("P")
            picture.putdata(label.ravel().tolist())
            picture.putpalette(colours.ravel().tolist())
            _save(picture, root / "SegmentationClass" / f"{name}.png")
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root
