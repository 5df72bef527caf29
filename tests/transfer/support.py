"""Small labelled data, written in the real on-disk formats, and the command on top of it."""

import json
from xml.etree import ElementTree

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw

from densesiam import cli

COLOURS = {"square": (220, 40, 40), "disc": (40, 60, 220)}


def error(capsys, *args, code=1):
    """Run a command that must fail, and return what it says: one message, no traceback."""
    capsys.readouterr()
    assert cli.main([str(arg) for arg in args]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("densesiam: error: ") == 1
    return said


def write(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def results(folder):
    return json.loads((folder / "results.json").read_text())


def tensors(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def scene(seed, size=64, kinds=("square", "disc")):
    """A picture with one object of each kind, and where each lies: (kind, box) pairs."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(90, 130, (size, size, 3), dtype=np.uint8))
    label = Image.new("L", (size, size), 0)
    found = []
    for number, kind in enumerate(kinds, start=1):
        side = int(rng.integers(16, 25))
        left, top = (int(v) for v in rng.integers(0, size - side, 2))
        box = (left, top, left + side - 1, top + side - 1)  # Pillow draws the last pixel too
        for image, fill in ((picture, COLOURS[kind]), (label, number)):
            draw = ImageDraw.Draw(image)
            (draw.rectangle if kind == "square" else draw.ellipse)(box, fill=fill)
        found.append((kind, box))
    return picture, label, found


def save_labelled(root, count=4):
    """Images and label images of three classes; returns the settings of such a set."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        picture, label, _ = scene(i)
        picture.save(root / "images" / f"{i}.png")
        label.save(root / "labels" / f"{i}.png")
    return {
        "class_path": "LabelledImages",
        "init_args": {
            "images": str(root / "images"),
            "labels": str(root / "labels"),
            "classes": {"names": ["ground", "square", "disc"]},
        },
    }


def save_classes(root, count=4, classes=("blue", "red")):
    """ImageNet's layout: a folder for each class, its images in shades of the class's colour."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            shade = Image.new("RGB", (64, 64), name)
            Image.blend(scene(i, kinds=())[0], shade, 0.6).save(root / name / f"{i}.png")
    return root


def save_coco(root, count=4):
    """COCO's layout: a folder of images, a json file; polygons, a run-length crowd, odd ids."""
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        picture, _, objects = scene(i)
        picture.save(root / "images" / f"{i:012}.png")
        images.append({"id": 10 + i, "file_name": f"{i:012}.png", "height": 64, "width": 64})
        for kind, (left, top, right, bottom) in objects:
            right, bottom = right + 1, bottom + 1  # continuous edges
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + i,
                    "category_id": {"square": 7, "disc": 90}[kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
    annotations.append(
        {
            "id": 1000,
            "image_id": 10,
            "category_id": 7,
            "bbox": [0, 0, 2, 64],
            "area": 128,
            "iscrowd": 1,
            # By columns: two columns inside, the rest outside.
            "segmentation": {"size": [64, 64], "counts": [0, 128, 64 * 64 - 128]},
        }
    )
    # An image without objects: nothing to learn, but scored.
    scene(99, kinds=())[0].save(root / "images" / "empty.png")
    images.append({"id": 5, "file_name": "empty.png", "height": 64, "width": 64})
    categories = [{"id": 90, "name": "disc"}, {"id": 7, "name": "square"}]
    path = root / "instances.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return {
        "class_path": "CocoObjects",
        "init_args": {"images": str(root / "images"), "annotations": str(path)},
    }


def save_voc(root, year="VOC2007", name="trainval", count=4):
    """VOC's layout: JPEG images, xml annotations, a list; the second object is difficult."""
    home = root / year
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    stems = [f"{name}{i:04}" for i in range(count)]
    for i, stem in enumerate(stems):
        picture, _, objects = scene(i)
        picture.save(home / "JPEGImages" / f"{stem}.jpg")
        annotation = ElementTree.Element("annotation")
        for k, (_, box) in enumerate(objects):
            entry = ElementTree.SubElement(annotation, "object")
            ElementTree.SubElement(entry, "name").text = ("dog", "aeroplane")[k]
            ElementTree.SubElement(entry, "difficult").text = str(k)
            bounds = ElementTree.SubElement(entry, "bndbox")
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(bounds, edge).text = str(value + 1)  # counted from 1
        ElementTree.ElementTree(annotation).write(home / "Annotations" / f"{stem}.xml")
    (home / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return {
        "class_path": "VocObjects",
        "init_args": {"root": str(root), "splits": [f"{year}/{name}"]},
    }
