# SPDX-License-Identifier: Apache-2.0
"""What the readers of classified images share: samples of an image and its class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision import tv_tensors

from moe_vision.data.problems import summarise
from moe_vision.data.readers.reader import ImageFile, ImageReader
from moe_vision.data.samples import Sample


class ClassifiedImage(NamedTuple):
    """One image, its class name, and the file or folder that says so."""

    image: ImageFile
    name: str
    source: Path


class ClassificationReader(ImageReader):
    """Images of one class each."""

    def __getitem__(self, index: int) -> Sample:
        return tv_tensors.Image(self._image(index)), {"label": self._labels[index], "image_id": index}

    def summary(self) -> str:
        """Count images, classes and problems: "3068 images, 10 classes, 1 problem (1 unreadable image)"."""
        return f"{len(self)} images, {len(self.classes)} classes, {summarise(self.problems)}"

    def _take(
        self, classified: Sequence[ClassifiedImage], classes: Sequence[str], wanted: str, cache_bytes: int
    ) -> None:
        """Keep the images of known classes."""
        self.classes = tuple(classes)
        label_of = {name: label for label, name in enumerate(self.classes)}
        for image, name, source in classified:
            if name not in label_of:
                self._report(source, "unknown class", f"{name!r} of {image.path.name}")
        kept = [item for item in classified if item.name in label_of]
        self._labels = [label_of[item.name] for item in kept]
        self._keep([item.image for item in kept], wanted, cache_bytes)
