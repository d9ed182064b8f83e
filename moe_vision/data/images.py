# SPDX-License-Identifier: Apache-2.0
"""Read image files with Pillow."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_vision.runtime.images import image_size, opened, read_pixels

__all__ = ["IMAGE_SUFFIXES", "image_size", "read_image", "read_indices"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: str | Path) -> Tensor:
    """Read an image file as RGB in [0, 255], turned upright as its EXIF data says; 16-bit grey is scaled to 8 bits.

    Shape:
        - Output: (3, H, W), uint8, channels last in memory, which torchvision resizes fastest

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no image, or broken.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/black.png")
        ...     read_image(f"{folder}/black.png").shape
        torch.Size([3, 48, 64])
    """
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1)


def read_indices(path: str | Path) -> NDArray[np.generic]:
    """Read an image file of one channel as it is: its pixels are numbers, not colours.

    Shape:
        - Output: (H, W), of an integer type

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no image, broken, or not of one channel of integers.
    """
    with opened(path) as image:
        pixels = np.array(image)
    if pixels.ndim != 2 or pixels.dtype.kind not in "bui":
        raise ValueError(f"image must have one channel of integers, got mode {image.mode} in {str(path)!r}")
    return pixels
