# SPDX-License-Identifier: Apache-2.0
"""Where an image lies in the square that a network sees, and the way back, by numpy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LetterboxGeometry(NamedTuple):
    """Where the resized image lies in the square, in pixels.

    Examples:
        >>> from moe_vision.data import LetterboxGeometry
        >>> LetterboxGeometry(height=240, width=320, top=40, left=0).top
        40
    """

    height: int
    width: int
    top: int
    left: int


def letterbox_geometry(height: int, width: int, size: int) -> LetterboxGeometry:
    """Size and place of a height x width image in a size x size square, centred.

    Examples:
        >>> from moe_vision.data import letterbox_geometry
        >>> letterbox_geometry(480, 640, 320)
        LetterboxGeometry(height=240, width=320, top=40, left=0)
    """
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    return LetterboxGeometry(new_height, new_width, (size - new_height) // 2, (size - new_width) // 2)


def undo_letterbox(boxes: NDArray[np.float32], height: int, width: int, size: int) -> NDArray[np.float32]:
    """Map boxes (N, 4) from the square back to the height x width image and clip them to it."""
    new_height, new_width, top, left = letterbox_geometry(height, width, size)
    offset = np.array([left, top, left, top], np.float32)
    scale = np.array([width / new_width, height / new_height] * 2, np.float32)  # per axis: the new size was rounded
    limit = np.array([width, height, width, height], np.float32)
    clipped: NDArray[np.float32] = np.minimum(np.maximum((boxes - offset) * scale, 0), limit)
    return clipped
