# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix, counted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from moe_vision.train.confusion import confusion_of_images, confusion_of_objects


def objects(boxes: list[list[float]], labels: list[int], scores: list[float] | None = None) -> dict[str, Any]:
    """Boxes, and masks that fill them, in an image of 100 x 100."""
    rles = []
    for x1, y1, x2, y2 in boxes:
        mask = np.zeros((100, 100), np.uint8, order="F")
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        rles.append(coco_mask.encode(mask))
    known = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
    return {**known, "rles": rles, **({} if scores is None else {"scores": torch.tensor(scores)})}


TRUTHS = [
    objects([[0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 20, 60]], [0, 1, 1]),
    objects([], []),
    objects([[0, 0, 20, 20]], [0]),
]
FOUND = [
    objects(
        # The second class sits on the first object with the best score; the right one comes too late. Then a hit of
        # 0.75 (20 x 15 of 20 x 20), a miss of 1 / 3 (20 x 10 of 20 x 30), and one on its object but not likely enough.
        [[0, 0, 20, 20], [0, 0, 20, 20], [40, 0, 60, 15], [0, 50, 20, 70], [0, 40, 20, 60]],
        [0, 1, 1, 1, 1],
        [0.8, 0.9, 0.7, 0.6, 0.2],
    ),
    objects([[5, 5, 30, 30]], [0], [0.25]),
    objects([], [], []),
]


@pytest.mark.parametrize("masks", [False, True])
def test_objects(masks: bool) -> None:
    counts = confusion_of_objects(TRUTHS, FOUND, 2, masks=masks)
    # Class 0: one taken for class 1, one missed. Class 1: one right, one missed. Of nothing: the late one and that of
    # the empty image, both of class 0, and the one beside its object.
    assert counts.tolist() == [[0, 1, 1], [0, 1, 1], [2, 1, 0]]


def test_a_detection_takes_the_object_that_it_overlaps_most() -> None:
    truth = objects([[0, 0, 30, 20], [0, 0, 20, 20]], [0, 1])
    found = objects([[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]], [1, 0, 0], [0.9, 0.8, 0.7])
    # IoU 1 with the second object; then, for the next, 2 / 3 with the first; the third finds both taken.
    assert confusion_of_objects([truth], [found], 2).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_images() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert confusion_of_images(scores, torch.tensor([0, 1, 1])).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
