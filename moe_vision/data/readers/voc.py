# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC detection data: a folder with `Annotations`, `JPEGImages` and `ImageSets/Main`."""

from collections.abc import Sequence
from pathlib import Path

from moe_vision.data.readers.detection_reader import DetectionReader, Record, names_of
from moe_vision.data.readers.paths import read_split, stays_inside
from moe_vision.data.readers.reader import CACHE_BYTES
from moe_vision.data.readers.voc_xml import read_annotation


class VOCDetection(DetectionReader):
    """Images and boxes of a Pascal VOC folder; whatever is wrong with a file is reported and the rest is used.

    All annotations and image headers are read at construction. Dropped and reported there: images with a missing or
    broken file, or a name that leads out of `root`; boxes that are degenerate, outside the image, not numeric or of
    an unknown class. Boxes that stick out of the image are clipped. Images without objects are kept.

    An image whose header is fine but whose pixels can not be decoded comes as uniform grey, without boxes.

    Args:
        root: The folder that holds `Annotations`, `JPEGImages` (BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP) and
            `ImageSets/Main`.
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

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from moe_vision.data import VOCDetection
        >>> box = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>35</ymax></bndbox>"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        ...         Path(folder, name).mkdir(parents=True)
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/JPEGImages/a.jpg")
        ...     text = f"<annotation><object><name>cell</name>{box}</object></annotation>"
        ...     _ = Path(folder, "Annotations/a.xml").write_text(text)
        ...     _ = Path(folder, "ImageSets/Main/train.txt").write_text("a")
        ...     VOCDetection(folder)[0][1]["boxes"].tolist()
        [[10.0, 5.0, 30.0, 35.0]]
    """

    def __init__(
        self, root: str | Path, split: str = "train", classes: Sequence[str] | None = None, cache: bool = True
    ) -> None:
        super().__init__()
        self.root = Path(root)
        names = read_split(self.root / "ImageSets" / "Main", split)
        records = [record for name in names if (record := self._read(name))]
        self._take(
            records,
            names_of(records) if classes is None else classes,
            f"root must hold at least one usable image in split={split!r}, got {str(root)!r}",
            CACHE_BYTES if cache else 0,
        )

    def _read(self, name: str) -> Record | None:
        if not stays_inside(name):
            self._report(name, "path outside the data set")
            return None
        path = self.root / "Annotations" / f"{name}.xml"
        try:
            annotation = read_annotation(path)
        except FileNotFoundError:
            self._report(path, "missing xml")
            return None
        except (ValueError, OSError) as error:
            self._report(path, "broken xml", error)
            return None
        image = self._open_inside(self.root / "JPEGImages", annotation.filename or f"{name}.jpg", path)
        return Record(image, path, annotation.objects) if image else None
