# SPDX-License-Identifier: Apache-2.0
"""COCO detection and instance segmentation data: one JSON file and a folder of images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_vision.data.readers.coco_json import Entry, Id, place, read_area, read_box, read_coco
from moe_vision.data.readers.detection_reader import DetectionReader, Record
from moe_vision.data.readers.objects import LabelledObject
from moe_vision.data.readers.reader import CACHE_BYTES, ImageFile
from moe_vision.data.readers.rle import RLE, decode, from_counts, from_polygons, polygon_problem
from moe_vision.data.samples import Target


class COCODetection(DetectionReader):
    """Images, boxes and masks of a COCO data set; whatever is wrong with an entry is reported and the rest is used.

    All annotations and image headers are read at construction. Dropped and reported there: entries without id, of a
    repeated id, of an unknown image or category; images whose file is missing, broken, of another size than annotated
    or outside of `images`; boxes as in `VOCDetection`; with `masks`, objects whose polygons or run lengths are
    broken, missing or empty (of several polygons the good ones are kept). Images without objects are kept.

    Crowd regions are no objects to learn; `crowd_regions` has them for evaluation. Boxes are those of the file, not
    those around the masks. Masks are held as run lengths and agree with pycocotools to the pixel.

    Args:
        annotations: The JSON file.
        images: The folder to which its file names are relative.
        classes: Class names in the order of their labels; None takes the categories in the order of their ids, which
            may have gaps.
        masks: Give masks too; needs faster-coco-eval, which the extra `train` has.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There is no such JSON file.
        ValueError: It is no COCO file, or no image is usable.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import json
        >>> from moe_vision.data import COCODetection
        >>> file = {"images": [{"id": 7, "file_name": "a.png", "height": 48, "width": 64}]}
        >>> file["categories"] = [{"id": 3, "name": "cell"}]
        >>> file["annotations"] = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30]}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/a.png")
        ...     _ = Path(folder, "all.json").write_text(json.dumps(file))
        ...     COCODetection(f"{folder}/all.json", folder)[0][1]["boxes"].tolist()
        [[10.0, 5.0, 30.0, 35.0]]
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        cache: bool = True,
    ) -> None:
        super().__init__()
        self.annotations = Path(annotations)
        self.root = Path(images)
        self.masks = masks
        self._names, entries, by_image = read_coco(self.annotations, self._report_entry)
        read = (self._record(entry, by_image.get(identity, [])) for identity, entry in entries.items())
        records = self._take(
            [record for record in read if record],
            list(dict.fromkeys(self._names.values())) if classes is None else classes,
            f"images must hold at least one usable image of {str(annotations)!r}, got {str(images)!r}",
            CACHE_BYTES if cache else 0,
        )
        self._crowds = [self._check(record, record.crowds) for record in records]

    def areas(self, index: int) -> Tensor:
        """Areas of the objects of an image as the file gives them, in pixels, (N,); NaN where it gives none.

        Args:
            index: Index of an image whose sample was asked for.
        """
        areas = self._objects[index].areas
        return areas[:0] if self._undecodable[index] else areas

    def crowd_regions(self, index: int) -> Target:
        """Regions of an image with more objects than were annotated one by one: a detection there is no mistake.

        Returns:
            `boxes`, `labels` and, with `masks`, `masks`, as in a sample.
        """
        boxes, labels, _, shapes = self._crowds[index]
        target: Target = {"boxes": boxes, "labels": labels}
        return {**target, "masks": self._rasterise(index, shapes)} if self.masks else target

    def _report_entry(self, reason: str, detail: object) -> None:
        self._report(self.annotations, reason, detail)

    def _record(self, entry: Entry, annotations: Sequence[Entry]) -> Record | None:
        image = self._open_inside(self.root, entry["file_name"], self.annotations)
        if image is None:
            return None
        annotated = entry.get("height") or image.height, entry.get("width") or image.width
        if annotated != (image.height, image.width):
            self._report(image.path, "image of another size than annotated", annotated)
            return None
        crowds = [annotation for annotation in annotations if annotation.get("iscrowd")]
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd")]
        return Record(
            image, self.annotations, list(self._objects_of(objects, image)), list(self._objects_of(crowds, image))
        )

    def _objects_of(self, annotations: Sequence[Entry], image: ImageFile) -> Iterator[LabelledObject]:
        for annotation in annotations:
            shape = self._shape(annotation, image) if self.masks else None
            if shape is not None or not self.masks:
                name = self._name(annotation.get("category_id"))
                yield LabelledObject(name, read_box(annotation), shape, place(annotation), read_area(annotation))

    def _name(self, category: object) -> str:
        unknown = f"category {category!r}"
        return self._names.get(category, unknown) if isinstance(category, Id) else unknown

    def _shape(self, annotation: Entry, image: ImageFile) -> RLE | None:
        """Encode the mask of an annotation; report it and return None if there is none."""
        shape = annotation.get("segmentation")
        try:
            if isinstance(shape, dict):
                return from_counts(shape.get("size"), shape.get("counts"), image.height, image.width)
            polygons = list(self._polygons(annotation, shape))
            return from_polygons(polygons, image.height, image.width) if polygons else None
        except ValueError as error:
            self._report_entry("unusable mask", f"{place(annotation)}: {error}")
            return None

    def _polygons(self, annotation: Entry, shape: object) -> Iterator[list[float]]:
        if not isinstance(shape, list) or not shape:
            self._report_entry("object without a mask", place(annotation))
            return
        for points in shape:
            if problem := polygon_problem(points):
                self._report_entry(problem, place(annotation))
            else:
                yield points

    def _rasterise(self, index: int, shapes: Sequence[Any]) -> Tensor:
        return decode(shapes, *self._sizes[index])
