# SPDX-License-Identifier: Apache-2.0
"""Small Pascal VOC folders made with Pillow."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Objects = Iterable[tuple[str, Sequence[object]]]


class VOCFolder:
    """A VOC folder that a test fills; it starts with one good image of 64 x 48 and one box."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        self.image("good")
        self.xml("good", [("cell", (10, 8, 30, 28))])
        self.split("train", ["good"])

    def image(self, name: str, width: int = 64, height: int = 48, suffix: str = "jpg") -> Path:
        path = self.root / "JPEGImages" / f"{name}.{suffix}"
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def xml(self, name: str, objects: Objects = (), filename: str | None = None) -> Path:
        sides = ("xmin", "ymin", "xmax", "ymax")
        items = "".join(
            f"<object><name>{label}</name><bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True))
            + "</bndbox></object>"
            for label, box in objects
        )
        text = f"<annotation><filename>{filename or f'{name}.jpg'}</filename>{items}</annotation>"
        return self.raw_xml(name, text.encode())

    def raw_xml(self, name: str, data: bytes) -> Path:
        path = self.root / "Annotations" / f"{name}.xml"
        path.write_bytes(data)
        return path

    def split(self, name: str, images: Iterable[str]) -> None:
        (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images) + "\n")

    def add(self, name: str, objects: Objects = (), **image: object) -> None:
        """Adds an image with its annotation to the train list."""
        self.image(name, **image)
        self.xml(name, objects)
        self.split("train", ["good", name])


@pytest.fixture
def voc(tmp_path: Path) -> VOCFolder:
    return VOCFolder(tmp_path / "voc")
