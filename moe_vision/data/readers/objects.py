# SPDX-License-Identifier: Apache-2.0
"""Objects as an annotation names them, before they are checked, and what can be wrong with their boxes."""

import math
from typing import Any, NamedTuple

Box = tuple[float, float, float, float]


class LabelledObject(NamedTuple):
    """One object of an annotation.

    Attributes:
        name: Its class name.
        box: xyxy in pixels, or None where a coordinate is not a number.
        shape: Its mask in the form that the reader understands, or None.
        place: Where in its file it stands, such as "line 3", or empty.
        area: Its area in pixels as the file says, or None.
    """

    name: str
    box: Box | None
    shape: Any = None
    place: str = ""
    area: float | None = None


def has_area(box: Box) -> bool:
    """Tell whether a box is finite, with its right and lower sides beyond its left and upper ones."""
    left, top, right, bottom = box
    return all(map(math.isfinite, box)) and right > left and bottom > top


def clip(box: Box, height: int, width: int) -> Box:
    """Clip a box to an image."""
    left, top, right, bottom = box
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
