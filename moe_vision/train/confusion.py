# SPDX-License-Identifier: Apache-2.0
"""Which class is taken for which."""

from typing import Any

import torch
from faster_coco_eval.core import mask as mask_functions
from torch import Tensor
from torchvision.ops import box_iou

SCORE, IOU = 0.25, 0.5


def confusion_of_objects(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], num_classes: int, *, masks: bool = False
) -> Tensor:
    """Count as which class each object was found, whatever its own.

    Of the detections with a score of at least 0.25 each, the likeliest first, takes the object that it overlaps most
    of those that are left, if their IoU is at least 0.5.

    Args:
        truths: For each image ``boxes`` (M, 4), xyxy in pixels, ``labels`` (M,) and, for masks, ``rles``: M run lengths
            as COCO writes them.
        found: For each image the same of D detections, and their ``scores`` (D,).
        num_classes: Number of classes.
        masks: Compare the masks, not the boxes.

    Shape:
        - Output: (num_classes + 1, num_classes + 1), int64: true classes by found ones; the last row counts detections
          of nothing, the last column objects that were missed

    Examples:
        >>> import torch
        >>> from moe_vision.train.confusion import confusion_of_objects
        >>> box = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
        >>> truth = {"boxes": box, "labels": torch.tensor([0])}
        >>> confusion_of_objects([truth], [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.ones(1)}], 2)
        tensor([[0, 1, 0],
                [0, 0, 0],
                [0, 0, 0]])
    """
    pairs: list[tuple[int, int]] = []
    for truth, detected in zip(truths, found, strict=True):
        order = detected["scores"].argsort(descending=True, stable=True)
        order = order[detected["scores"][order] >= SCORE]
        matches = _match(_overlaps(truth, detected, masks)[order])
        true_labels = truth["labels"].tolist()
        for label, match in zip(detected["labels"][order].tolist(), matches, strict=True):
            pairs.append((num_classes if match is None else true_labels[match], label))
        missed = set(range(len(true_labels))) - set(matches)
        pairs += [(true_labels[index], num_classes) for index in missed]
    return _count(pairs, num_classes + 1)


def confusion_of_images(scores: Tensor, labels: Tensor) -> Tensor:
    """Count as which class each image was taken.

    Args:
        scores: Scores or logits of the classes.
        labels: The right classes, int64.

    Shape:
        - scores: (N, num_classes)
        - labels: (N,)
        - Output: (num_classes, num_classes), int64: true classes by predicted ones

    Examples:
        >>> import torch
        >>> from moe_vision.train.confusion import confusion_of_images
        >>> confusion_of_images(torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([0, 1]))
        tensor([[0, 1],
                [0, 1]])
    """
    pairs = list(zip(labels.tolist(), scores.argmax(dim=1).tolist(), strict=True))
    return _count(pairs, scores.shape[1])


def _overlaps(truth: dict[str, Any], detected: dict[str, Any], masks: bool) -> Tensor:
    """Return the IoU of each detection with each object, (D, M)."""
    shape = (len(detected["labels"]), len(truth["labels"]))
    if not all(shape):
        return torch.zeros(shape)
    if masks:
        return torch.as_tensor(mask_functions.iou(detected["rles"], truth["rles"], [0] * shape[1]))
    overlaps: Tensor = box_iou(detected["boxes"], truth["boxes"])
    return overlaps


def _match(overlaps: Tensor) -> list[int | None]:
    """Return the object that each detection takes, if any."""
    left = overlaps.clone()
    matches: list[int | None] = []
    for row in left if left.shape[1] else ():
        best = int(row.argmax())
        matches.append(best if row[best] >= IOU else None)
        if row[best] >= IOU:
            left[:, best] = 0.0
    return matches or [None] * len(left)


def _count(pairs: list[tuple[int, int]], size: int) -> Tensor:
    places = torch.tensor([row * size + column for row, column in pairs], dtype=torch.int64)
    return torch.bincount(places, minlength=size * size).reshape(size, size)
