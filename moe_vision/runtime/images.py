# SPDX-License-Identifier: Apache-2.0
"""Images by Pillow: read, and fitted to the square that a network sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moe_vision.runtime.letterbox import letterbox_geometry

Pixels = NDArray[np.uint8]


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no image, or broken, here or where its pixels are read.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise ValueError(f"path must be a readable image, got {str(path)!r}: {error}") from error


def read_pixels(path: str | Path) -> Pixels:
    """Read an image file as RGB (H, W, 3); 16-bit grey is scaled to 8 bits, EXIF rotation is not applied."""
    with opened(path) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip it at 255
            return np.array(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
        return np.array(image.convert("RGB"))


def check_pixels(pixels: Pixels) -> Pixels:
    """Raise ValueError unless the array is an RGB image (H, W, 3) of bytes."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"image must be an array (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
    return pixels


def letterboxed(pixels: Pixels, size: int, fill: int) -> Pixels:
    """Resize an image to fit a size x size square, centre it, and fill the border."""
    height, width, top, left = letterbox_geometry(pixels.shape[0], pixels.shape[1], size)
    square = np.full((size, size, 3), fill, np.uint8)
    square[top : top + height, left : left + width] = _resized(pixels, height, width, Image.Resampling.BILINEAR)
    return square


def centre_crop(pixels: Pixels, size: int) -> Pixels:
    """Resize an image's shorter side and crop the centre to a size x size square."""
    height, width = pixels.shape[:2]
    if height <= width:
        height, width = size, int(size * width / height)
    else:
        height, width = int(size * height / width), size
    top, left = round((height - size) / 2), round((width - size) / 2)
    return _resized(pixels, height, width, Image.Resampling.BICUBIC)[top : top + size, left : left + size]


def _resized(pixels: Pixels, height: int, width: int, filter: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter))
