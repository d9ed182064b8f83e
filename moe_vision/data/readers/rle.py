# SPDX-License-Identifier: Apache-2.0
"""Masks as run lengths: made of polygons or of COCO's counts, checked, and decoded, as pycocotools does it.

A mask is kept as run lengths of some hundred bytes and becomes pixels only when its image is asked for. Needs the extra
`train`, whose faster-coco-eval holds the functions.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_OUTLINE = 10**6  # pixels: rasterising takes 60 bytes for each

RLE = dict[str, Any]  # as COCO's: size (height, width) and compressed counts


def polygon_problem(points: object) -> str | None:
    """Say what is wrong with one polygon, which should be a list [x1, y1, x2, y2, ...] in pixels."""
    if not isinstance(points, list) or not all(isinstance(value, int | float) for value in points):
        return "coordinate that is not a number"
    if len(points) % 2:
        return "polygon with an odd number of coordinates"
    if len(points) < 6:
        return "polygon of fewer than 3 points"
    if not all(abs(value) <= MAX_OUTLINE for value in points):  # refuses nan too
        return "polygon far outside the image"
    corners = list(zip(points[::2], points[1::2], strict=True))
    if sum(map(math.dist, corners, corners[1:] + corners[:1])) > MAX_OUTLINE:
        return "polygon too long"
    return None


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """Encode the union of polygons without problems.

    Raises:
        ValueError: The mask has no pixel in the image.
    """
    from faster_coco_eval.core import mask as coco

    parts = coco.frPyObjects([list(map(float, points)) for points in polygons], height, width)
    return _not_empty(coco.merge(parts))


def from_counts(size: object, counts: object, height: int, width: int) -> RLE:
    """Encode COCO's counts, which may be a list or a compressed string.

    Raises:
        ValueError: The counts are broken, or of another size than the image, or the mask is empty.
    """
    from faster_coco_eval.core import mask as coco

    if not isinstance(size, list) or size != [height, width]:
        raise ValueError(f"run lengths must have the size of the image, {[height, width]}, got {size}")
    runs = _decompress(counts.encode()) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("counts must be numbers from 0 or a string that holds such")
    if sum(runs) != height * width:
        raise ValueError(f"counts must sum to the {height * width} pixels of the image, got {sum(runs)}")
    return _not_empty(coco.frPyObjects({"size": size, "counts": runs}, height, width))


def decode(masks: Sequence[RLE], height: int, width: int) -> Tensor:
    """Make masks of run lengths.

    Shape:
        - Output: (M, height, width), bool

    Examples:
        >>> decode([from_polygons([[1, 0, 3, 0, 3, 2, 1, 2]], 2, 4)], 2, 4).int()
        tensor([[[0, 1, 1, 0],
                 [0, 1, 1, 0]]], dtype=torch.int32)
    """
    from faster_coco_eval.core import mask as coco

    if not masks:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.from_numpy(coco.decode(list(masks))).permute(2, 0, 1).contiguous().view(torch.bool)


def _not_empty(mask: RLE) -> RLE:
    from faster_coco_eval.core import mask as coco

    if not coco.area(mask):
        raise ValueError("mask must have at least one pixel in the image, got none")
    return mask


def _decompress(text: Iterable[int]) -> list[int]:
    """Decode COCO's compressed counts: 5 bits a character from 48 on, bit 6 says that more follow, lowest first.

    From the fourth on, a number is the difference to the one two before it.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"counts must be a string of COCO's code, got the byte {character}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts must end with a whole number")
    return counts
