# SPDX-License-Identifier: Apache-2.0
"""Metrics: COCO mean average precision of boxes and masks, by faster-coco-eval, and top-k accuracy."""

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_functions
from torch import Tensor

METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
CLASS_METRICS = ("class_map", "class_map50", "class_precision", "class_recall")


def coco_metrics(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], classes: tuple[str, ...], *, masks: bool = False
) -> dict[str, Any]:
    """Compare what was found in each image with its objects.

    Args:
        truths: For each image ``boxes`` (M, 4), xyxy in pixels, ``labels`` (M,) and, for masks, ``rles``: M run lengths
            as COCO writes them. Perhaps also ``areas`` (M,), by which objects are small, medium or large, with
            NaN for that of the box or mask; and ``crowds``: the same of regions in which a detection is no mistake.
        found: For each image ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) and, for masks, ``rles``.
        classes: Names of the classes.
        masks: Compare the masks, not the boxes.

    Returns:
        ``map`` (50:95), ``map50``, ``map75``, ``map_small``, ``map_medium``, ``map_large``, and by class name
        ``class_map``, ``class_map50`` and, at an IoU of 0.5 and the score of which F1 is best, ``class_precision`` and
        ``class_recall``; each in [0, 1], or -1 where there is no object of the size or class.

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import coco_metrics
        >>> truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([0])}
        >>> round(coco_metrics([truth], [{**truth, "scores": torch.tensor([0.9])}], ("cell",))["map"], 3)
        1.0
    """
    evaluation = _coco_evaluation(truths, found, classes, masks)
    if evaluation is None:
        return {**dict.fromkeys(METRICS, 0.0), **{name: dict.fromkeys(classes, 0.0) for name in CLASS_METRICS}}
    precision = _precision(evaluation)
    by_class: dict[str, dict[str, float]] = {name: {} for name in CLASS_METRICS}
    for label, table in zip(classes, precision, strict=True):
        values = (_mean(table), _mean(table[0]), *_best_f1(table[0]))
        for name, value in zip(CLASS_METRICS, values, strict=True):
            by_class[name][label] = value
    return {**dict(zip(METRICS, map(float, evaluation.stats[:6]), strict=True)), **by_class}


def precision_curves(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], classes: tuple[str, ...], *, masks: bool = False
) -> dict[str, list[float]]:
    """Return the precision at recalls of 0, 0.01, ... 1, at an IoU of 0.5, of each class that has objects.

    Args:
        truths: As for `coco_metrics`.
        found: As for `coco_metrics`.
        classes: Names of the classes.
        masks: Compare the masks, not the boxes.

    Returns:
        By class name 101 values in [0, 1], as COCO interpolates them: none is below a later one.

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import precision_curves
        >>> truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([0])}
        >>> curves = precision_curves([truth], [{**truth, "scores": torch.tensor([0.9])}], ("cell", "dirt"))
        >>> [(name, len(curve), round(min(curve), 3)) for name, curve in curves.items()]
        [('cell', 101, 1.0)]
    """
    evaluation = _coco_evaluation(truths, found, classes, masks)
    if evaluation is None:
        objects = count_objects(truths, classes)["class_objects"]
        return {name: [0.0] * 101 for name, count in objects.items() if count}
    curves = zip(classes, _precision(evaluation)[:, 0], strict=True)
    return {name: curve.tolist() for name, curve in curves if curve[0] >= 0}


def count_objects(truths: list[dict[str, Any]], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count the objects of each class, and the images that hold them.

    Args:
        truths: For each image ``labels``.
        classes: Names of the classes.

    Returns:
        ``class_images`` and ``class_objects`` by class name.

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import count_objects
        >>> count_objects([{"labels": torch.tensor([0, 0])}, {"labels": torch.tensor([0])}], ("cell", "dirt"))
        {'class_images': {'cell': 2, 'dirt': 0}, 'class_objects': {'cell': 3, 'dirt': 0}}
    """
    labels = [truth["labels"].tolist() for truth in truths]
    images = Counter(label for of_image in labels for label in set(of_image))
    objects = Counter(label for of_image in labels for label in of_image)
    counts = {"class_images": images, "class_objects": objects}
    return {name: {title: found[label] for label, title in enumerate(classes)} for name, found in counts.items()}


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
        ``top1``, ``top5`` (of all classes, if there are fewer), each in [0, 1], and by class name ``class_top1``,
        ``class_top5`` (-1 where there is no image of the class) and ``class_images``, the number of its images.

    Examples:
        >>> import torch
        >>> from moe_vision.train.metrics import accuracy_metrics
        >>> accuracy_metrics(torch.eye(3), torch.tensor([0, 1, 0]), ("a", "b", "c"))["class_top1"]
        {'a': 0.5, 'b': 1.0, 'c': -1.0}
    """
    best = scores.topk(min(5, len(classes)), dim=1).indices
    hits = best == labels[:, None]
    ranks = {"top1": hits[:, 0].float(), "top5": hits.any(dim=1).float()}
    members = {name: labels == label for label, name in enumerate(classes)}
    return {
        **{rank: right.mean().item() for rank, right in ranks.items()},
        **{f"class_{rank}": _mean_by_class(right, members) for rank, right in ranks.items()},
        "class_images": {name: int(of_class.sum()) for name, of_class in members.items()},
    }


def _mean_by_class(right: Tensor, members: dict[str, Tensor]) -> dict[str, float]:
    return {name: right[of_class].mean().item() if of_class.any() else -1.0 for name, of_class in members.items()}


def _coco_evaluation(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], classes: tuple[str, ...], masks: bool
) -> Any | None:
    """Run COCO's evaluation, or return None where there is nothing to evaluate."""
    names = [{"id": label, "name": name} for label, name in enumerate(classes)]
    images = [
        {"id": image, **_size(truth, truth.get("crowds", {}), detected)}
        for image, (truth, detected) in enumerate(zip(truths, found, strict=True))
    ]
    known = COCO({"images": images, "annotations": _annotations(truths, masks), "categories": names})
    detections = _annotations(found, masks)
    if not detections or not known.anns:
        return None
    evaluation = COCOeval_faster(known, known.loadRes(detections), iouType="segm" if masks else "bbox")
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _precision(evaluation: Any) -> Any:
    """Return the precisions by (class, IoU, recall), of objects of all sizes with the most detections."""
    return np.moveaxis(evaluation.eval["precision"][:, :, :, 0, -1], 2, 0)


def _best_f1(precision: Any) -> tuple[float, float]:
    """Return the precision and the recall with the highest harmonic mean, on a curve over equal steps of recall."""
    if precision[0] < 0:
        return -1.0, -1.0
    recall = np.linspace(0, 1, len(precision))
    best = np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    return float(precision[best]), float(recall[best])


def _size(*of_image: dict[str, Any]) -> dict[str, int]:
    """Return the height and width of an image that has masks."""
    for objects in of_image:
        for rle in objects.get("rles", []):
            return {"height": rle["size"][0], "width": rle["size"][1]}
    return {}


def _annotations(images: list[dict[str, Any]], masks: bool) -> list[dict[str, Any]]:
    """Write the objects and crowd regions of images as COCO does."""
    entries = []
    for image, target in enumerate(images):
        entries += [{"image_id": image, "iscrowd": 0, **entry} for entry in _entries(target, masks)]
        if "crowds" in target:
            entries += [{"image_id": image, "iscrowd": 1, **entry} for entry in _entries(target["crowds"], masks)]
    return [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]


def _entries(objects: dict[str, Any], masks: bool) -> list[dict[str, Any]]:
    """Write each object with a mask or with a box: its corner, width and height."""
    shapes = map(_mask, objects["rles"]) if masks else map(_box, objects["boxes"].tolist())
    labels = objects["labels"].tolist()
    scores = objects.get("scores", torch.ones(len(labels))).tolist()
    entries = [
        {**shape, "category_id": label, "score": score}
        for shape, label, score in zip(shapes, labels, scores, strict=True)
    ]
    for entry, area in zip(entries, objects.get("areas", []), strict=False):
        if not math.isnan(area):
            entry["area"] = float(area)
    return entries


def _box(corners: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = corners
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _mask(rle: dict[str, Any]) -> dict[str, Any]:
    return {"segmentation": rle, "area": int(mask_functions.area(rle))}


def _mean(precision: Any) -> float:
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else -1.0
