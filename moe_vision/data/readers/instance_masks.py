# SPDX-License-Identifier: Apache-2.0
"""Instance segmentation data of one class: for each image a PNG whose pixels say which instance they belong to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_vision.data.images import IMAGE_SUFFIXES, read_indices
from moe_vision.data.readers.detection_reader import DetectionReader, Record
from moe_vision.data.readers.objects import LabelledObject
from moe_vision.data.readers.paths import read_split, stays_inside
from moe_vision.data.readers.reader import CACHE_BYTES, ImageFile

MAX_INSTANCES = 2**16  # of one image
PIXELS_AT_ONCE = 2**20


class InstanceMasks(DetectionReader):
    """Images with an instance-index PNG each; whatever is wrong with a file is reported and the rest is used.

    In `masks/<name>.png`, of 8 or 16 bits, 0 is background and every other value one instance; values may have gaps.
    Boxes are those around the instances.

    All index files and image headers are read at construction, and the index file again with its image. Dropped and
    reported there: images whose file or index file is missing, broken, not of one channel or of another size, or whose
    name leads out of `root`. Images without an instance are kept.

    Args:
        root: The folder that holds `images`, `masks` and the lists `<split>.txt` of names without ending.
        split: Name of a list, or several joined by "+".
        classes: The name of the one class; None takes "object".
        masks: Give masks, or only boxes.
        cache: Decode images at construction, up to 1 GiB of pixels, and keep them.

    Attributes:
        classes: The one class name; all labels are 0.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.

    Raises:
        FileNotFoundError: There is no list of that name.
        ValueError: No image is usable, or `classes` is not one name.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from moe_vision.data import InstanceMasks
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("images", "masks"):
        ...         Path(folder, name).mkdir()
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/images/a.png")
        ...     numbers = Image.new("L", (64, 48))
        ...     numbers.paste(1, (10, 5, 30, 35))  # the first instance
        ...     numbers.save(f"{folder}/masks/a.png")
        ...     _ = Path(folder, "train.txt").write_text("a")
        ...     target = InstanceMasks(folder)[0][1]
        >>> target["boxes"].tolist(), target["masks"].sum()
        ([[10.0, 5.0, 30.0, 35.0]], tensor(600))
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        masks: bool = True,
        cache: bool = True,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.masks = masks
        self.classes = ("object",) if classes is None else tuple(classes)
        if len(self.classes) != 1:
            raise ValueError(f"classes must be one name, for an index PNG tells no classes apart, got {self.classes}")
        self._index_files: dict[Path, Path] = {}
        records = [record for name in read_split(self.root, split) if (record := self._read(name))]
        self._take(
            records,
            self.classes,
            f"root must hold at least one usable image in split={split!r}, got {str(root)!r}",
            CACHE_BYTES if cache else 0,
        )

    def _read(self, name: str) -> Record | None:
        if not stays_inside(name):
            self._report(name, "path outside the data set")
            return None
        image = self._open(_with_suffix(self.root / "images" / name))
        path = self.root / "masks" / f"{name}.png"
        objects = self._instances(path, image) if image else None
        if image is None or objects is None:
            return None
        self._index_files[image.path] = path
        return Record(image, path, objects)

    def _instances(self, path: Path, image: ImageFile) -> list[LabelledObject] | None:
        try:
            indices = read_indices(path)
            if indices.shape == (image.height, image.width):
                return _found(indices, self.classes[0])
            self._report(path, "mask of another size than its image", indices.shape)
        except FileNotFoundError:
            self._report(path, "missing mask")
        except ValueError as error:
            self._report(path, "unreadable mask", error.__cause__ or error)
        return None

    def _rasterise(self, index: int, shapes: Sequence[Any]) -> Tensor:
        height, width = self._sizes[index]
        try:
            indices = read_indices(self._index_files[self.images[index]])
            return torch.from_numpy(indices[None] == np.array(shapes, indices.dtype).reshape(-1, 1, 1))
        except (OSError, ValueError) as error:  # it could be read at construction
            self._give_up(index, error)
            return torch.zeros(len(shapes), height, width, dtype=torch.bool)


def _with_suffix(path: Path) -> Path:
    """Find the image of a name; a path that does not exist if there is none."""
    candidates = [path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES]
    try:
        return next((candidate for candidate in candidates if candidate.is_file()), path)
    except OSError:  # the name is too long; opening it will be reported
        return path


Bounds = tuple[NDArray[np.generic], NDArray[np.int64]]  # values (N,), and boxes (N, 4) around their pixels


def _found(indices: NDArray[np.generic], name: str) -> list[LabelledObject]:
    """List the instances of an index image with the boxes around them.

    Raises:
        ValueError: There are too many.
    """
    # In parts: a file of a few bytes can hold more pixels than there is room for their coordinates.
    starts = range(0, indices.size, PIXELS_AT_ONCE)
    parts = [_bounds(indices, start) for start in starts]
    values, boxes = _joined(*(np.concatenate(both) for both in zip(*parts, strict=True)))
    corners = (tuple(box) for box in boxes.astype(float).tolist())
    return [LabelledObject(name, box, value) for box, value in zip(corners, values.tolist(), strict=True)]


def _bounds(indices: NDArray[np.generic], start: int) -> Bounds:
    """Return the values that some pixels have, but 0, and boxes around them."""
    values = indices.reshape(-1)[start : start + PIXELS_AT_ONCE]
    places = values.nonzero()[0]
    y, x = np.divmod(places + start, indices.shape[1])
    return _joined(values[places], np.stack([x, y, x + 1, y + 1], axis=1))


def _joined(values: NDArray[np.generic], boxes: NDArray[np.int64]) -> Bounds:
    """Return each value once, with the box around its boxes."""
    found, instance = np.unique(values, return_inverse=True)
    if len(found) > MAX_INSTANCES:
        raise ValueError(f"it must have at most {MAX_INSTANCES} instances, got {len(found)} or more")
    low = np.full((len(found), 2), np.iinfo(np.int64).max)
    high = np.zeros_like(low)
    np.minimum.at(low, instance, boxes[:, :2])
    np.maximum.at(high, instance, boxes[:, 2:])
    return found, np.concatenate([low, high], axis=1)
