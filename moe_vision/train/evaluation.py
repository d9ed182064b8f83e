# SPDX-License-Identifier: Apache-2.0
"""Evaluation: COCO mean average precision of a detector on a data set."""

from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor, nn
from tqdm import tqdm

from moe_vision.data import DetectionPipeline, DetectionSource, build_loader
from moe_vision.diagnostics import ExpertUsage
from moe_vision.inference import in_original
from moe_vision.models import YOLOMaster
from moe_vision.models.yolo_master import check_image_size
from moe_vision.tasks import postprocess

METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: DetectionSource,
    *,
    image_size: int,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Detect on every image and compare with its objects, in pixels of the original images.

    Boxes with a score above 0.001 count, at most 300 an image after suppression at an IoU of 0.7. The metrics are
    those of COCO, by faster-coco-eval.

    Args:
        model: A detector; it is put into eval mode and left there.
        source: Images with boxes and labels.
        image_size: Side to which images are letterboxed, in pixels, a multiple of 32.
        batch_size: Images a forward.
        num_workers: Processes that load images.
        progress: Show a progress bar.

    Returns:
        ``map`` (50:95), ``map50``, ``map75``, ``map_small``, ``map_medium``, ``map_large``, each in [0, 1] (-1 where
        there is no object of the size), ``class_map`` by class name, and ``experts``: the share of selections of each
        expert by the name of its layer.

    Raises:
        ValueError: If the network's task is not to detect, or ``image_size`` is not a multiple of 32.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.train import evaluate
        >>> scenes = ShapeScenes(2, image_size=64)
        >>> model = create_model("yolo_master_n", num_classes=len(scenes.classes))
        >>> evaluate(model, scenes, image_size=64)["map"] < 0.1
        True
    """
    check_task(model)
    check_image_size(image_size)
    model.eval()
    device = next(model.parameters()).device
    loader = build_loader(DetectionPipeline(source, image_size), batch_size, num_workers=num_workers)
    usage = ExpertUsage(model)
    truths: list[dict[str, Tensor]] = []
    found: list[dict[str, Tensor]] = []
    for images, targets in tqdm(loader, desc="evaluate", leave=False, disable=not progress):
        detections = postprocess(model(images.to(device)), score=0.001)
        usage.update()
        for target, detection in zip(targets, detections, strict=True):
            height, width = target["size"]
            objects = {"boxes": target["boxes"], "labels": target["labels"]}
            truths.append(in_original(objects, height, width, image_size))
            found.append(in_original(detection, height, width, image_size))
    return {**coco_metrics(truths, found, source.classes), "experts": usage.shares()}


def check_task(model: nn.Module) -> None:
    """Raise ValueError if this is a network whose task is not to detect."""
    if isinstance(model, YOLOMaster) and model.config.task != "detect":
        raise ValueError(
            f"task must be detect to train or evaluate, got {model.config.task!r}; for the other tasks, minimise "
            "moe_vision.tasks.segment_loss or classify_loss in a loop of your own"
        )


def coco_metrics(
    truths: list[dict[str, Tensor]], found: list[dict[str, Tensor]], classes: tuple[str, ...]
) -> dict[str, Any]:
    """Compare the detections of each image with its objects.

    Args:
        truths: For each image ``boxes`` (M, 4), xyxy in pixels, and ``labels`` (M,).
        found: For each image ``boxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,).
        classes: Names of the classes.

    Returns:
        The metrics that `evaluate` returns, without ``experts``.

    Examples:
        >>> import torch
        >>> from moe_vision.train.evaluation import coco_metrics
        >>> truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([0])}
        >>> round(coco_metrics([truth], [{**truth, "scores": torch.tensor([0.9])}], ("cell",))["map"], 3)
        1.0
    """
    names = [{"id": label, "name": name} for label, name in enumerate(classes)]
    images = [{"id": image} for image in range(len(truths))]
    truth = COCO({"images": images, "annotations": _annotations(truths), "categories": names})
    detections = _annotations(found)
    if not detections or not truth.anns:
        return {**dict.fromkeys(METRICS, 0.0), "class_map": dict.fromkeys(classes, 0.0)}
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox")
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class), all sizes, most detections
    by_class = {name: _mean(precision[:, :, label]) for label, name in enumerate(classes)}
    return {**dict(zip(METRICS, map(float, evaluation.stats[:6]), strict=True)), "class_map": by_class}


def _annotations(objects: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Write boxes as COCO does: corner, width and height."""
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(objects):
        scores = target.get("scores", torch.ones(len(target["boxes"])))
        for (x1, y1, x2, y2), score, label in zip(
            target["boxes"].tolist(), scores.tolist(), target["labels"].tolist(), strict=True
        ):
            width, height = x2 - x1, y2 - y1
            box = {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0, "score": score}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": label, **box})
    return annotations


def _mean(precision: Any) -> float:
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else -1.0
