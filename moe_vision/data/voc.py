# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC detection data: a folder with `Annotations`, `JPEGImages` and `ImageSets/Main`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from moe_vision.data.images import image_size, read_image
from moe_vision.data.problems import Problem, report, summarise
from moe_vision.data.samples import Sample, make_sample
from moe_vision.data.voc_xml import Box, VOCAnnotation, VOCObject, read_annotation

CACHE_BYTES = 2**30
FILL = 114


class _Record(NamedTuple):
    image: Path
    height: int
    width: int
    annotation: Path
    objects: list[VOCObject]


class VOCDetection(Dataset[Sample]):
    """Images and boxes of a Pascal VOC folder; whatever is wrong with a file is reported and the rest is used.

    All annotations and image headers are read at construction. Dropped and reported there: images with a missing or
    broken file, or a name that leads out of `root`; boxes that are degenerate, outside the image, not numeric or of
    an unknown class. Boxes that stick out of the image are clipped. Images without objects are kept.

    An image whose header is fine but whose pixels can not be decoded comes as uniform grey, without boxes.

    Args:
        root: The folder that holds `Annotations`, `JPEGImages` (any format that Pillow reads) and `ImageSets/Main`.
        split: Name of a list in `ImageSets/Main`, or several joined by "+" ("val+test").
        classes: Class names in the order of their labels; None takes the sorted names found in the data. Give the
            training set's `classes` to the evaluation set.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them. Loader workers that are forked
            share this memory.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There is no list of that name.
        ValueError: No image is usable.
    """

    def __init__(
        self, root: str | Path, split: str = "train", classes: Sequence[str] | None = None, cache: bool = True
    ) -> None:
        self.root = Path(root)
        self.problems: list[Problem] = []
        records = [record for name in _read_split(self.root, split) if (record := self._read(name))]
        if not records:
            raise ValueError(
                f"root must hold at least one usable image in split={split!r}, got {str(root)!r} with "
                f"{summarise(self.problems)}"
            )
        self.classes = tuple(classes) if classes is not None else _names_of(records)
        self.images = tuple(record.image for record in records)
        self._sizes = [(record.height, record.width) for record in records]
        objects = [self._objects(record) for record in records]
        self._boxes = [torch.tensor([box for _, box in pairs]).reshape(-1, 4) for pairs in objects]
        self._labels = [torch.tensor([label for label, _ in pairs], dtype=torch.int64) for pairs in objects]
        # In shared memory, so that a file is reported once however many loader workers meet it.
        self._undecodable = torch.zeros(len(records), dtype=torch.bool)
        self._undecodable.share_memory_()  # type: ignore[no-untyped-call]
        self._cache: dict[int, Tensor] = {}
        if cache:
            self._fill_cache(CACHE_BYTES)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self._cache[index] if index in self._cache else self._decode(index)
        boxes, labels = self._boxes[index], self._labels[index]
        if self._undecodable[index]:
            boxes, labels = boxes[:0], labels[:0]
        return make_sample(image, boxes, labels, index)

    def summary(self) -> str:
        """Count images, boxes and problems: "205 images, 2687 boxes, 1 problem (1 degenerate box)"."""
        return f"{len(self)} images, {sum(map(len, self._boxes))} boxes, {summarise(self.problems)}"

    def _report(self, file: Path | str, reason: str, detail: object = "") -> None:
        report(self.problems, Problem(str(file), reason, str(detail)))

    def _read(self, name: str) -> _Record | None:
        if not _stays_inside(name):
            self._report(name, "path outside the data set")
            return None
        path = self.root / "Annotations" / f"{name}.xml"
        try:
            annotation = read_annotation(path)
        except FileNotFoundError:
            self._report(path, "missing xml")
        except (ValueError, OSError) as error:
            self._report(path, "broken xml", error)
        else:
            return self._read_image(name, path, annotation)
        return None

    def _read_image(self, name: str, path: Path, annotation: VOCAnnotation) -> _Record | None:
        filename = annotation.filename or f"{name}.jpg"
        image = self.root / "JPEGImages" / filename
        if not _stays_inside(filename):
            self._report(path, "path outside the data set", filename)
            return None
        try:
            height, width = image_size(image)
        except FileNotFoundError:
            self._report(image, "missing image")
            return None
        except ValueError as error:
            self._report(image, "unreadable image", error.__cause__)
            return None
        return _Record(image, height, width, path, annotation.objects)

    def _objects(self, record: _Record) -> list[tuple[int, Box]]:
        kept = []
        for name, box in record.objects:
            if name not in self.classes:
                self._report(record.annotation, "unknown class", repr(name))
            elif box is None:
                self._report(record.annotation, "coordinate that is not a number", name)
            elif not _has_area(box):
                self._report(record.annotation, "degenerate box", box)
            elif not _has_area(clipped := _clip(box, record.height, record.width)):
                self._report(record.annotation, "box outside the image", box)
            else:
                kept.append((self.classes.index(name), clipped))
        return kept

    def _decode(self, index: int) -> Tensor:
        try:
            return read_image(self.images[index])
        except (OSError, ValueError) as error:
            if not self._undecodable[index]:
                self._undecodable[index] = True
                self._report(
                    self.images[index], "undecodable image, used as grey without boxes", error.__cause__ or error
                )
            return torch.full((3, *self._sizes[index]), FILL, dtype=torch.uint8)

    def _fill_cache(self, budget: int) -> None:
        for index, (height, width) in enumerate(self._sizes):
            budget -= 3 * height * width
            if budget < 0:
                break
            self._cache[index] = self._decode(index)


def _read_split(root: Path, split: str) -> Iterator[str]:
    """Yield the image names of the lists that `split` joins, each name once."""
    folder = root / "ImageSets" / "Main"
    names: dict[str, None] = {}
    for part in split.split("+"):
        path = folder / f"{part}.txt"
        if not path.is_file():
            existing = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
            raise FileNotFoundError(f"split must name a list in {folder} (existing: {existing}), got {part!r}")
        text = path.read_text("utf-8-sig", errors="replace")
        names.update(dict.fromkeys(line.strip() for line in text.splitlines()))
    return (name for name in names if name)


def _names_of(records: list[_Record]) -> tuple[str, ...]:
    return tuple(sorted({item.name for record in records for item in record.objects if item.name}))


def _stays_inside(name: str) -> bool:
    path = PureWindowsPath(name)  # knows both kinds of slash, and drives
    return not path.anchor and ".." not in path.parts


def _has_area(box: Box) -> bool:
    left, top, right, bottom = box
    return all(map(math.isfinite, box)) and right > left and bottom > top


def _clip(box: Box, height: int, width: int) -> Box:
    left, top, right, bottom = box
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
