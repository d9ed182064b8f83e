# SPDX-License-Identifier: Apache-2.0
"""Suppression of boxes that score low or repeat better ones of their class, by numpy.

Axes: N anchor points, C classes, M candidates.
"""

import numpy as np
from numpy.typing import NDArray

# More candidates than this before suppression change no result worth having, and its time grows with their square.
MAX_CANDIDATES = 5000

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def check_limits(score: float, iou: float, max_detections: int) -> None:
    """Raise ValueError unless ``score`` and ``iou`` are in [0, 1] and ``max_detections`` is at least 1."""
    for name, value in {"score": score, "iou": iou}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")


def suppress(boxes: Floats, scores: Floats, score: float, iou: float, most: int) -> tuple[Indices, Floats, Indices]:
    """Return the anchor points, scores and labels to keep of an image, the best first.

    Args:
        boxes: Boxes (N, 4), xyxy.
        scores: Scores (N, C).
        score: Lowest score to keep.
        iou: Overlap with a better box of the same class above which a box is dropped.
        most: Most boxes to keep.
    """
    points, labels = np.nonzero(scores > score)
    values = scores[points, labels]
    best = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    points, values, labels = points[best], values[best], labels[best]
    kept = _not_repeated(boxes[points], labels, iou)[:most]
    return points[kept], values[kept], labels[kept]


def _not_repeated(boxes: Floats, labels: Indices, iou: float) -> Indices:
    """Return which boxes (M, 4), the best first, overlap no better one of their class that is kept itself."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    alive = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        rivals = index + 1 + np.flatnonzero(alive[index + 1 :] & (labels[index + 1 :] == labels[index]))
        others = boxes[rivals]
        sides = np.minimum(boxes[index, 2:], others[:, 2:]) - np.maximum(boxes[index, :2], others[:, :2])
        common = sides.clip(min=0).prod(axis=1)
        # Not a quotient: boxes without an area overlap nothing.
        alive[rivals] = common <= iou * (areas[index] + areas[rivals] - common)
    return np.flatnonzero(alive)
