# SPDX-License-Identifier: Apache-2.0
"""What all readers of boxes and masks share: the checks of objects, and samples made of those that pass."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_vision.data.problems import summarise
from moe_vision.data.readers.objects import Box, LabelledObject, clip, has_area
from moe_vision.data.readers.reader import ImageFile, ImageReader
from moe_vision.data.samples import Sample, make_sample

MAX_MASK_BYTES = 2**30  # of one image, a byte a pixel and object


class Record(NamedTuple):
    """One image, the file that annotates it, and its objects and crowd regions as they are written there."""

    image: ImageFile
    annotation: Path
    objects: Sequence[LabelledObject]
    crowds: Sequence[LabelledObject] = ()


class Objects(NamedTuple):
    """The usable objects of one image; `shapes`, if masks are asked for, are what the reader makes masks of."""

    boxes: Tensor
    labels: Tensor
    areas: Tensor
    shapes: list[Any]


class DetectionReader(ImageReader):
    """Images with boxes, and with masks where the format has them and they are asked for."""

    undecodable = "undecodable image, used as grey without boxes"

    masks = False

    def __getitem__(self, index: int) -> Sample:
        image = self._image(index)
        boxes, labels, _, shapes = self._objects[index]
        masks = self._rasterise(index, shapes) if self.masks else None
        if self._undecodable[index]:
            boxes, labels, masks = boxes[:0], labels[:0], None if masks is None else masks[:0]
        return make_sample(image, boxes, labels, index, masks)

    def summary(self) -> str:
        """Count images, boxes and problems: "205 images, 2687 boxes, 1 problem (1 degenerate box)"."""
        boxes = sum(len(objects.labels) for objects in self._objects)
        return f"{len(self)} images, {boxes} boxes, {summarise(self.problems)}"

    def _rasterise(self, index: int, shapes: Sequence[Any]) -> Tensor:
        """Make masks (M, H, W), bool, of the shapes of one image."""
        raise NotImplementedError

    def _take(
        self, records: Sequence[Record], classes: Sequence[str], wanted: str, cache_bytes: int
    ) -> Sequence[Record]:
        """Check the objects, keep what is usable, and return the records that were kept."""
        self.classes = tuple(classes)
        self._label_of = {name: label for label, name in enumerate(self.classes)}
        pairs = [(record, self._check(record, record.objects)) for record in records]
        kept = [(record, objects) for record, objects in pairs if self._masks_fit(record, objects)]
        self._objects = [objects for _, objects in kept]
        self._keep([record.image for record, _ in kept], wanted, cache_bytes)
        return [record for record, _ in kept]

    def _check(self, record: Record, objects: Sequence[LabelledObject]) -> Objects:
        """Keep the objects that are usable, with their boxes clipped to the image, and report the others."""
        boxes, labels, areas, shapes = [], [], [], []
        for name, box, shape, place, area in objects:
            problem = self._problem(name, box, record.image)
            if problem is None and box is not None:
                boxes.append(clip(box, record.image.height, record.image.width))
                areas.append(math.nan if area is None else area)
                labels.append(self._label_of[name])
                shapes.append(shape)
            elif problem is not None:
                reason, detail = problem
                self._report(record.annotation, reason, f"{place}: {detail}" if place else detail)
        kept = torch.tensor(labels, dtype=torch.int64)
        return Objects(torch.tensor(boxes).reshape(-1, 4), kept, torch.tensor(areas), shapes if self.masks else [])

    def _problem(self, name: str, box: Box | None, image: ImageFile) -> tuple[str, object] | None:
        """Say what is wrong with an object: the reason and its detail."""
        if name not in self._label_of:
            return "unknown class", repr(name)
        if box is None:
            return "coordinate that is not a number", name
        if not has_area(box):
            return "degenerate box", box
        if not has_area(clip(box, image.height, image.width)):
            return "box outside the image", box
        return None

    def _masks_fit(self, record: Record, objects: Objects) -> bool:
        size = len(objects.shapes) * record.image.height * record.image.width
        if size > MAX_MASK_BYTES:
            self._report(record.annotation, "masks too large", f"{len(objects.shapes)} objects, {size} bytes")
        return size <= MAX_MASK_BYTES


def names_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Sort the class names that occur."""
    return tuple(sorted({item.name for record in records for item in record.objects if item.name}))
