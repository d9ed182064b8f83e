# SPDX-License-Identifier: Apache-2.0
"""From coefficients and prototypes to binary masks in the pixels of an image, by numpy.

Axes: D instances, H and W pixels of the image, h and w cells of the prototypes.
"""

import numpy as np
from numpy.typing import NDArray

from moe_vision.runtime.letterbox import letterbox_geometry

Floats = NDArray[np.float32]


def render_masks(
    coefficients: Floats, prototypes: Floats, boxes: Floats, height: int, width: int, size: int
) -> NDArray[np.bool_]:
    """Return masks (D, H, W): an instance is where its logits are above 0 and the centre of the pixel lies in its box.

    Args:
        coefficients: Coefficients of the prototypes (D, 32).
        prototypes: Prototypes (32, h, w) of the square.
        boxes: Boxes (D, 4), xyxy in pixels of the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        size: Side of the square in pixels.
    """
    masks = np.zeros((len(boxes), height, width), bool)
    place, (rows, columns) = letterbox_geometry(height, width, size), prototypes.shape[1:]
    y = _cell_weights(height, place.height / height, place.top, size / rows, rows)
    x = _cell_weights(width, place.width / width, place.left, size / columns, columns)
    # The first pixel whose centre lies in the box, and the first beyond it.
    bounds = np.clip(np.ceil(boxes - 0.5), 0, [width, height, width, height]).astype(int)
    for mask, mixed, (left, top, right, bottom) in zip(masks, coefficients, bounds, strict=True):
        logits = y[top:bottom] @ np.tensordot(mixed, prototypes, axes=1) @ x[left:right].T
        mask[top:bottom, left:right] = logits > 0
    return masks


def _cell_weights(pixels: int, scale: float, offset: int, cell: float, cells: int) -> Floats:
    """Return how much each cell weighs at the centre of each pixel along one axis, (pixels, cells).

    Bilinear interpolation between the centres of cells, constant beyond the outermost ones.
    """
    centres = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    positions = ((centres * np.float32(scale) + offset) / np.float32(cell) - np.float32(0.5)).clip(0, cells - 1)
    weights = 1 - np.abs(positions[:, None] - np.arange(cells, dtype=np.float32))
    return weights.clip(min=0)
