# SPDX-License-Identifier: Apache-2.0
"""What all readers of image files share: checked headers, a bounded cache of pixels, and the problems found."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from moe_vision.data.images import IMAGE_SUFFIXES, image_size, read_image
from moe_vision.data.problems import Problem, report, summarise
from moe_vision.data.readers.paths import printable, stays_inside
from moe_vision.data.samples import Sample

CACHE_BYTES = 2**30
FILL = 114
MAX_DETAIL = 300  # characters of what a report quotes of a file


class ImageFile(NamedTuple):
    """An image file whose header could be read."""

    path: Path
    height: int
    width: int


class ImageReader(Dataset[Sample]):
    """Images of a data set; what is wrong with one is reported and the rest is used.

    Attributes:
        classes: Class names; a label is an index into it.
        images: Path of each image.
        problems: Everything this process reported so far, as `Problem`.
    """

    classes: tuple[str, ...]
    images: tuple[Path, ...]

    undecodable = "undecodable image, used as grey"

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self.images)

    def summary(self) -> str:
        """Count images and problems: "205 images, 1 problem (1 missing image)"."""
        return f"{len(self)} images, {summarise(self.problems)}"

    def _report(self, file: Path | str, reason: str, detail: object = "") -> None:
        report(self.problems, Problem(printable(file), reason, printable(detail)[:MAX_DETAIL]))

    def _open(self, image: Path) -> ImageFile | None:
        """Read an image's header; report it and return None if it can't be read."""
        try:
            return ImageFile(image, *image_size(image))
        except FileNotFoundError:
            self._report(image, "missing image")
        except ValueError as error:
            self._report(image, "unreadable image", error.__cause__)
        return None

    def _open_inside(self, folder: Path, name: str, source: Path) -> ImageFile | None:
        """Read the header of the image that the file `source` names, unless the name leads out of the folder."""
        if stays_inside(name):
            return self._open(folder / name)
        self._report(source, "path outside the data set", name)
        return None

    def _images_below(self, folder: Path) -> list[Path]:
        """List the images in a folder and its folders; other files are reported, hidden ones passed over."""
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        for file in files:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                self._report(file, "file that is no image by its name")
        return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]

    def _keep(self, files: Sequence[ImageFile], wanted: str, cache_bytes: int) -> None:
        """Take the images that are usable; `wanted` says in an error which were asked for."""
        if not files:
            raise ValueError(f"{wanted} with {summarise(self.problems)}")
        self.images = tuple(file.path for file in files)
        self._sizes = [(file.height, file.width) for file in files]
        # In shared memory, so that a file is reported once however many loader workers meet it.
        self._undecodable = torch.zeros(len(files), dtype=torch.bool)
        self._undecodable.share_memory_()  # type: ignore[no-untyped-call]
        self._cache: dict[int, Tensor] = {}
        self._fill_cache(cache_bytes)

    def _image(self, index: int) -> Tensor:
        return self._cache[index] if index in self._cache else self._decode(index)

    def _decode(self, index: int) -> Tensor:
        try:
            image = read_image(self.images[index])
            if image.shape[1:] != self._sizes[index]:
                raise ValueError(f"its size must be {self._sizes[index]} as its header says, got {image.shape[1:]}")
            return image
        except (OSError, ValueError) as error:
            self._give_up(index, error)
            return torch.full((3, *self._sizes[index]), FILL, dtype=torch.uint8)

    def _give_up(self, index: int, error: Exception) -> None:
        """Mark an image as undecodable and report it, once."""
        if not self._undecodable[index]:
            self._undecodable[index] = True
            self._report(self.images[index], self.undecodable, error.__cause__ or error)

    def _fill_cache(self, budget: int) -> None:
        for index, (height, width) in enumerate(self._sizes):
            budget -= 3 * height * width
            if budget < 0:
                break
            self._cache[index] = self._decode(index)
