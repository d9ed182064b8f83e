# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_vision.data import (
    ClassFolders,
    ClassList,
    COCODetection,
    InstanceMasks,
    VOCDetection,
    YOLODetection,
    open_dataset,
)

from .checks import save_image
from .conftest import VOCFolder

SQUARE = [10, 8, 30, 8, 30, 28, 10, 28]


def coco(path: Path, images: Path) -> Path:
    save_image(images / "a.png")
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 8, 20, 20], "segmentation": [SQUARE]}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def yolo(root: Path, images: str = "images/train", labels: str = "labels/train") -> Path:
    save_image(root / images / "a.png")
    (root / labels).mkdir(parents=True)
    (root / labels / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    (root / "data.yaml").write_text("names: [cell]")
    return root


def instances(root: Path) -> Path:
    save_image(root / "images" / "a.png")
    (root / "masks").mkdir()
    Image.fromarray(np.eye(48, 64, dtype=np.uint8)).save(root / "masks" / "a.png")
    (root / "train.txt").write_text("a")
    return root


def check(path: Path, kind: type, classes: tuple[str, ...] = ("cell",)) -> None:
    """The format is recognised for detect and segment, which alone has masks, and classes are handed on."""
    for task in ("detect", "segment"):
        data = open_dataset(path, "train", task=task)
        assert type(data) is kind
        assert data.classes == classes
        assert ("masks" in data[0][1]) == (task == "segment")
        assert data.summary() == "1 images, 1 boxes, 0 problems"
        assert open_dataset(path, "train", task=task, classes=["cell"]).classes == ("cell",)


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_coco(tmp_path: Path, file: str, images: str) -> None:
    path = coco(tmp_path / file, tmp_path / images)
    check(tmp_path, COCODetection)
    check(path, COCODetection)


def test_coco_file_beside_its_images(tmp_path: Path) -> None:
    check(coco(tmp_path / "any name.json", tmp_path), COCODetection)


@pytest.mark.parametrize(("images", "labels"), [("images/train", "labels/train"), ("train/images", "train/labels")])
def test_yolo(tmp_path: Path, images: str, labels: str) -> None:
    check(yolo(tmp_path, images, labels), YOLODetection)


def test_instance_masks(tmp_path: Path) -> None:
    check(instances(tmp_path), InstanceMasks, ("object",))


def test_voc(voc: VOCFolder) -> None:
    data = open_dataset(voc.root, "train", task="detect", classes=["dog", "cell"])
    assert type(data) is VOCDetection
    assert data[0][1]["labels"].tolist() == [1]
    with pytest.raises(ValueError, match="none of them in Annotations, ImageSets, JPEGImages"):  # it has no masks
        open_dataset(voc.root, "train", task="segment")


def test_class_folders(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "cat" / "a.png")
    data = open_dataset(tmp_path, "train", task="classify", classes=["dog", "cat"])
    assert type(data) is ClassFolders
    assert data[0][1]["label"] == 1


@pytest.mark.parametrize(("name", "text"), [("train.txt", "a.png cat"), ("train.csv", "path,label\na.png,cat")])
def test_class_list(tmp_path: Path, name: str, text: str) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    for path, split in ((tmp_path, "train"), (tmp_path / name, "any")):
        data = open_dataset(path, split, task="classify")
        assert type(data) is ClassList
        assert data.classes == ("cat",)


def test_what_is_not_recognised_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    with pytest.raises(ValueError, match="none of them in stuff") as error:
        open_dataset(tmp_path, "train", task="detect")
    for wanted in ("ImageSets/Main", "annotations/instances_train.json", "train/labels (YOLO)", "images, masks"):
        assert wanted in str(error.value)
    with pytest.raises(
        ValueError, match=r"train.csv; train with a folder for each class; got .* none of them in stuff"
    ):
        open_dataset(tmp_path, "train", task="classify")
    with pytest.raises(ValueError, match="an empty folder"):
        open_dataset(tmp_path / "stuff", "train", task="classify")


def test_more_than_one_format_is_ambiguous(tmp_path: Path) -> None:
    file = coco(tmp_path / "annotations" / "train.json", tmp_path / "images" / "train")
    yolo(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"COCO {file} and YOLO")):
        open_dataset(tmp_path, "train", task="detect")
    assert type(open_dataset(file, "train", task="detect")) is COCODetection
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train.txt").touch()
    with pytest.raises(ValueError, match=r"list .*train.txt and folders in .*train"):
        open_dataset(tmp_path, "train", task="classify")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task must be one of detect, segment, classify, got 'pose'"):
        open_dataset(tmp_path, "train", task="pose")
    with pytest.raises(FileNotFoundError, match=r"path must be a folder or file, got '.*none', which does not exist"):
        open_dataset(tmp_path / "none", "train", task="detect")
    with pytest.raises(FileNotFoundError, match=r"split must name .*, got 'test'"):
        open_dataset(yolo(tmp_path), "test", task="detect")
