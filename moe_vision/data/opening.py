# SPDX-License-Identifier: Apache-2.0
"""Open a data set without naming its format, which its folders and files tell."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, overload

from moe_vision.data.readers.class_folders import ClassFolders
from moe_vision.data.readers.class_list import ClassList
from moe_vision.data.readers.classification_reader import ClassificationReader
from moe_vision.data.readers.coco import COCODetection
from moe_vision.data.readers.detection_reader import DetectionReader
from moe_vision.data.readers.instance_masks import InstanceMasks
from moe_vision.data.readers.paths import printable
from moe_vision.data.readers.voc import VOCDetection
from moe_vision.data.readers.yolo import YOLODetection

Reader = DetectionReader | ClassificationReader
Found = Iterator[tuple[str, Callable[..., Reader]]]  # name of a format, and what opens it when given classes

_WITH_MASKS = (
    "a COCO .json file, annotations/instances_{split}.json, annotations/{split}.json or {split}/_annotations.coco.json",
    "images and labels, or {split}/images and {split}/labels (YOLO)",
    "images, masks and lists such as {split}.txt (instance-index PNG)",
)
LOOKED_FOR = {
    "detect": ("Annotations and ImageSets/Main (Pascal VOC)", *_WITH_MASKS),
    "segment": _WITH_MASKS,
    "classify": ("a .txt or .csv list, {split}.txt or {split}.csv", "{split} with a folder for each class"),
}


@overload
def open_dataset(
    path: str | Path, split: str, *, task: Literal["classify"], classes: Sequence[str] | None = None
) -> ClassificationReader: ...
@overload
def open_dataset(
    path: str | Path, split: str, *, task: Literal["detect", "segment"], classes: Sequence[str] | None = None
) -> DetectionReader: ...
@overload
def open_dataset(path: str | Path, split: str, *, task: str, classes: Sequence[str] | None = None) -> Reader: ...
def open_dataset(path: str | Path, split: str, *, task: str, classes: Sequence[str] | None = None) -> Reader:
    """Open one part of a data set for a task, in whichever of the formats it is.

    Args:
        path: The folder of the data set, or its COCO `.json` file, or a `.txt` or `.csv` list of classified images. A
            file is opened whole; for a COCO file the split may name the folder of its images.
        split: Name of the part, such as "train". Pascal VOC, YOLO and instance-index PNG take several joined by "+".
        task: What it is for: "detect", "segment" (with masks) or "classify".
        classes: Class names in the order of their labels; None takes those of the data.

    Returns:
        A `VOCDetection`, `COCODetection`, `YOLODetection`, `InstanceMasks`, `ClassFolders` or `ClassList`.

    Raises:
        FileNotFoundError: There is no such folder, file or split.
        ValueError: No format or more than one is recognised, no image is usable, or there is no such task.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         Path(folder, "train", name).mkdir(parents=True)
        ...         Image.new("RGB", (8, 8)).save(f"{folder}/train/{name}/0.png")
        ...     open_dataset(folder, "train", task="classify").summary()
        '2 images, 2 classes, 0 problems'
    """
    if task not in LOOKED_FOR:
        raise ValueError(f"task must be one of {', '.join(LOOKED_FOR)}, got {task!r}")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path must be a folder or file, got {str(path)!r}, which does not exist")
    found = dict(_classified(path, split) if task == "classify" else _annotated(path, split, task))
    if len(found) != 1:
        wanted = "; ".join(LOOKED_FOR[task]).format(split=split)
        seen = " and ".join(found) or f"none of them in {_content(path)}"
        raise ValueError(f"path must be one of these for task={task!r}: {wanted}; got {str(path)!r}, {seen}")
    (opener,) = found.values()
    return opener(classes=classes)


def _annotated(path: Path, split: str, task: str) -> Found:
    masks = task == "segment"
    if not masks and (path / "Annotations").is_dir() and (path / "ImageSets" / "Main").is_dir():
        yield "Pascal VOC", partial(VOCDetection, path, split)
    for file in _coco_files(path, split):
        yield f"COCO {file}", partial(COCODetection, file, _coco_images(path, split), masks=masks)
    if any(_has(folder, "images", "labels") for folder in (path, path / split.split("+")[0])):
        yield "YOLO", partial(YOLODetection, path, split, masks=masks)
    if _has(path, "images", "masks") and any(path.glob("*.txt")):
        yield "instance-index PNG", partial(InstanceMasks, path, split, masks=masks)


def _classified(path: Path, split: str) -> Found:
    lists = [path] if path.is_file() else [path / f"{split}{suffix}" for suffix in (".txt", ".csv")]
    for file in lists:
        if file.is_file() and file.suffix.lower() in (".txt", ".csv"):
            yield f"list {file}", partial(ClassList, file)
    folder = path / split
    if folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir()):
        yield f"folders in {folder}", partial(ClassFolders, folder)


def _content(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())[:20] if path.is_dir() else [path.name]
    return printable(", ".join(names)) or "an empty folder"


def _has(path: Path, *folders: str) -> bool:
    return all((path / folder).is_dir() for folder in folders)


def _coco_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    names = (f"annotations/instances_{split}.json", f"annotations/{split}.json", f"{split}/_annotations.coco.json")
    return [path / name for name in names if (path / name).is_file()]


def _coco_images(path: Path, split: str) -> Path:
    """Find the folder of images that belongs to a COCO file or folder."""
    base = path.parent if path.is_file() else path
    if base.name == "annotations":
        base = base.parent
    candidates = (base / "images" / split, base / split, base / "images")
    return next((folder for folder in candidates if folder.is_dir()), base)
