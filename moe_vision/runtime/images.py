# SPDX-License-Identifier: Apache-2.0
"""Images by Pillow: read, and fitted to the square that a network sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from moe_vision.runtime.letterbox import letterbox_geometry

Pixels = NDArray[np.uint8]

# Pillow decodes these itself. For others, such as PostScript, it starts programs that run what is in the file.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# What undoes an EXIF orientation, as PIL.ImageOps.exif_transpose has it.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no image, or broken, here or where its pixels are read.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no regular file")  # a pipe would be waited for without end
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise ValueError(f"path must be a readable image, got {str(path)!r}: {error}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) in pixels of the upright image from a file's header.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The header is broken or of an unknown format.
    """
    with opened(path) as image:
        lies = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if lies else (image.height, image.width)


def read_pixels(path: str | Path) -> Pixels:
    """Read an image file as RGB (H, W, 3), turned upright as its EXIF data says; 16-bit grey is scaled to 8 bits."""
    with opened(path) as image:
        turn = UPRIGHT.get(_orientation(image))
        if image.mode.startswith("I;16"):  # Pillow would clip it at 255
            colours = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        else:
            colours = image.convert("RGB")
        return np.array(colours if turn is None else colours.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """Return how an image whose pixels were not read yet is to be turned; 1 is upright."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the whole to look behind the pixels
        return 1
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data is no reason to lose the image
        return 1
    return orientation


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
