# SPDX-License-Identifier: Apache-2.0
"""YOLO detection and segmentation data: a text file for each image, in folders `images` and `labels`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_vision.data.readers.detection_reader import DetectionReader, Record
from moe_vision.data.readers.files import MAX_ANNOTATION_BYTES, read_text
from moe_vision.data.readers.objects import Box, LabelledObject
from moe_vision.data.readers.reader import CACHE_BYTES, ImageFile
from moe_vision.data.readers.rle import RLE, decode, from_polygons, polygon_problem
from moe_vision.data.readers.yolo_names import read_names

LIMITS = (-1.0, 2.0)  # of a coordinate, normalised: some stick out a little, but pixels are far beyond


class YOLODetection(DetectionReader):
    """Images, boxes and masks of a YOLO folder; whatever is wrong with a file is reported and the rest is used.

    A line of a label file is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon, all divided by the
    width or height of the image. A polygon's box is the one around it.

    All label files and image headers are read at construction. Dropped and reported there: lines that are neither, that
    are not numbers, not normalised or of an unknown class; broken images; label files without an image; boxes as in
    `VOCDetection`; with `masks`, lines that give a box alone or a polygon without a pixel. Images without a label file
    have no objects, and are kept.

    Args:
        root: The folder that holds `images/<split>` and `labels/<split>`, or `<split>/images` and `<split>/labels`.
        split: Name of a part, or several joined by "+".
        classes: Class names in the order of their labels; None takes the `names` of `data.yaml` or the lines of
            `classes.txt`. Needed where there are none, and then the names of the numbers in the label files.
        masks: Give the masks of polygons too; needs faster-coco-eval, which the extra `train` has.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There are no such folders.
        ValueError: No image is usable, or the names can't be read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from moe_vision.data import YOLODetection
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("images", "labels"):
        ...         Path(folder, "train", name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/train/images/a.png")
        ...     _ = Path(folder, "train/labels/a.txt").write_text("0 0.5 0.5 0.25 0.5")
        ...     YOLODetection(folder, classes=["cell"])[0][1]["boxes"].tolist()
        [[24.0, 12.0, 40.0, 36.0]]
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        cache: bool = True,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.masks = masks
        self._names = tuple(read_names(self.root) or classes or ())
        if not self._names:
            raise ValueError(f"classes must be given where root has no data.yaml or classes.txt, got {classes!r}")
        records = [record for part in split.split("+") for record in self._read(*yolo_folders(self.root, part))]
        self._take(
            records,
            self._names if classes is None else classes,
            f"root must hold at least one usable image in split={split!r}, got {str(root)!r}",
            CACHE_BYTES if cache else 0,
        )

    def _read(self, images: Path, labels: Path) -> Iterator[Record]:
        found = self._images_below(images)
        label_files = [labels / path.relative_to(images).with_suffix(".txt") for path in found]
        for path in sorted(set(labels.rglob("*.txt")) - set(label_files)):
            if path.name != "classes.txt":
                self._report(path, "label file without an image")
        for path, label_file in zip(found, label_files, strict=True):
            if image := self._open(path):
                yield Record(image, label_file, list(self._objects_of(label_file, image)))

    def _objects_of(self, path: Path, image: ImageFile) -> Iterator[LabelledObject]:
        try:
            text = read_text(path, MAX_ANNOTATION_BYTES)
        except FileNotFoundError:  # an image without objects
            return
        except (ValueError, OSError) as error:
            self._report(path, "unreadable label file", error)
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield self._object(line.split(), f"line {number}", image)
                except ValueError as error:
                    self._report(path, str(error), f"line {number}: {line.strip()[:80]}")

    def _object(self, words: Sequence[str], place: str, image: ImageFile) -> LabelledObject:
        """Read one line; the message of its ValueError is a reason to report."""
        try:
            category, *values = map(float, words)
        except ValueError:
            raise ValueError("line that is not of numbers") from None
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise ValueError("line that is neither a box nor a polygon")
        if not all(LIMITS[0] <= value <= LIMITS[1] for value in values):  # refuses nan too
            raise ValueError("coordinate that is not normalised")
        name = self._name(category)
        if len(values) == 4:
            if self.masks:
                raise ValueError("object without a mask")
            return LabelledObject(name, _box(values, image), None, place)
        points = [value * (image.height if axis % 2 else image.width) for axis, value in enumerate(values)]
        box = min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
        return LabelledObject(name, box, _encoded(points, image) if self.masks else None, place)

    def _name(self, category: float) -> str:
        known = category.is_integer() and 0 <= category < len(self._names)
        return self._names[int(category)] if known else f"class {category:g}"

    def _rasterise(self, index: int, shapes: Sequence[Any]) -> Tensor:
        return decode(shapes, *self._sizes[index])


def yolo_folders(root: Path, part: str) -> tuple[Path, Path]:
    """Find the folders of images and labels of one part of a data set.

    Raises:
        FileNotFoundError: There are none.
    """
    pairs = [(root / "images" / part, root / "labels" / part), (root / part / "images", root / part / "labels")]
    for images, labels in pairs:
        if images.is_dir() and labels.is_dir():
            return images, labels
    places = " or ".join(f"{images} with {labels}" for images, labels in pairs)
    raise FileNotFoundError(f"split must name folders {places}, got {part!r}")


def _box(values: Sequence[float], image: ImageFile) -> Box:
    x, y, width, height = values
    left, top = (x - width / 2) * image.width, (y - height / 2) * image.height
    return left, top, left + width * image.width, top + height * image.height


def _encoded(points: list[float], image: ImageFile) -> RLE:
    if problem := polygon_problem(points):
        raise ValueError(problem)
    try:
        return from_polygons([points], image.height, image.width)
    except ValueError:
        raise ValueError("empty mask") from None
