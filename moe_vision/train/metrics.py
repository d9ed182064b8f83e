# SPDX-License-Identifier: Apache-2.0
"""Metrics: COCO mean average precision of boxes and masks, by faster-coco-eval, and top-k accuracy."""

from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_functions
from torch import Tensor

METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


def coco_metrics(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], classes: tuple[str, ...], *, masks: bool = False
) -> dict[str, Any]:
    """Compare what was found in each image with its objects.

    Args:
        truths: For each image ``boxes`` (M, 4), xyxy in pixels, ``labels`` (M,) and, for masks, ``rles``: M run lengths
            as COCO writes them.
        found: For each image ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) and, for masks, ``rles``.
        classes: Names of the classes.
        masks: Compare the masks, not the boxes.

    Returns:
        ``map`` (50:95), ``map50``, ``map75``, ``map_small``, ``map_medium``, ``map_large``, each in [0, 1] (-1 where
        there is no object of the size), and ``class_map`` by class name.

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import coco_metrics
        >>> truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([0])}
        >>> round(coco_metrics([truth], [{**truth, "scores": torch.tensor([0.9])}], ("cell",))["map"], 3)
        1.0
    """
    names = [{"id": label, "name": name} for label, name in enumerate(classes)]
    images = [
        {"id": image, **_size(truth, detected)}
        for image, (truth, detected) in enumerate(zip(truths, found, strict=True))
    ]
    known = COCO({"images": images, "annotations": _annotations(truths, masks), "categories": names})
    detections = _annotations(found, masks)
    if not detections or not known.anns:
        return {**dict.fromkeys(METRICS, 0.0), "class_map": dict.fromkeys(classes, 0.0)}
    evaluation = COCOeval_faster(known, known.loadRes(detections), iouType="segm" if masks else "bbox")
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class), all sizes, most detections
    by_class = {name: _mean(precision[:, :, label]) for label, name in enumerate(classes)}
    return {**dict(zip(METRICS, map(float, evaluation.stats[:6]), strict=True)), "class_map": by_class}


def accuracy_metrics(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Count how often the right class is the likeliest, and among the five likeliest.

    Args:
        scores: Scores or logits of the classes.
        labels: The right classes, int64.
        classes: Names of the classes.

    Shape:
        - scores: (N, num_classes)
        - labels: (N,)

    Returns:
        ``top1``, ``top5`` (of all classes, if there are fewer), each in [0, 1], and ``class_top1`` by class name (-1
        where there is no image of the class).

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import accuracy_metrics
        >>> accuracy_metrics(torch.eye(3), torch.tensor([0, 1, 0]), ("a", "b", "c"))["class_top1"]
        {'a': 0.5, 'b': 1.0, 'c': -1.0}
    """
    best = scores.topk(min(5, len(classes)), dim=1).indices
    hits = best == labels[:, None]
    first = hits[:, 0].float()
    by_class = {
        name: first[labels == label].mean().item() if (labels == label).any() else -1.0
        for label, name in enumerate(classes)
    }
    return {"top1": first.mean().item(), "top5": hits.any(dim=1).float().mean().item(), "class_top1": by_class}


def _size(*of_image: dict[str, Any]) -> dict[str, int]:
    """Return the height and width of an image that has masks."""
    for objects in of_image:
        for rle in objects.get("rles", []):
            return {"height": rle["size"][0], "width": rle["size"][1]}
    return {}


def _annotations(objects: list[dict[str, Any]], masks: bool) -> list[dict[str, Any]]:
    """Write objects as COCO does, with a mask or with a box: its corner, width and height."""
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(objects):
        shapes = map(_mask, target["rles"]) if masks else map(_box, target["boxes"].tolist())
        scores = target.get("scores", torch.ones(len(target["labels"]))).tolist()
        for shape, score, label in zip(shapes, scores, target["labels"].tolist(), strict=True):
            place = {"id": len(annotations) + 1, "image_id": image, "category_id": label}
            annotations.append({**place, **shape, "iscrowd": 0, "score": score})
    return annotations


def _box(corners: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = corners
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _mask(rle: dict[str, Any]) -> dict[str, Any]:
    return {"segmentation": rle, "area": int(mask_functions.area(rle))}


def _mean(precision: Any) -> float:
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else -1.0
