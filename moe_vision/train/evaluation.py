# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a network on a data set: mean average precision of boxes and masks, or accuracy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_functions
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from moe_vision.data import (
    ClassificationPipeline,
    ClassificationSource,
    DetectionSource,
    Sample,
    Target,
    collate,
    eval_transform,
)
from moe_vision.diagnostics import RoutingMonitor
from moe_vision.inference import results_in_original
from moe_vision.models import ExportedNetwork, YOLOMaster
from moe_vision.models.exported import device_of
from moe_vision.models.yolo_master import check_image_size
from moe_vision.tasks.masks import paste_windows
from moe_vision.train.metrics import accuracy_metrics, coco_metrics, count_objects
from moe_vision.train.pictures import draw_classification, draw_detection

Batches = Iterator[tuple[Any, list[dict[str, Any]]]]  # a network's output, and what is known of the images


@torch.no_grad()
def evaluate(
    model: YOLOMaster | ExportedNetwork,
    source: DetectionSource | ClassificationSource,
    *,
    image_size: int,
    batch_size: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Predict on every image and compare with what is known of it, in pixels of the original images.

    Boxes with a score above 0.001 count, at most 300 an image after suppression at an IoU of 0.7. Their metrics are
    those of COCO, by faster-coco-eval; where the source has `crowd_regions`, detections inside them are no mistakes.

    Args:
        model: The network, or a file of one; it is put into eval mode and left there.
        source: Images with what the network's task is about: boxes and labels, masks too, or a label each.
        image_size: Side to which images are letterboxed (to classify: resized and cropped), a multiple of 32 pixels.
        batch_size: Images a forward.
        num_workers: Processes that load images.
        progress: Show a progress bar.
        pictures: Folder for pictures of the evaluation, see `moe_vision.train.pictures`; none are drawn if None.

    Returns:
        What `moe_vision.train.metrics.coco_metrics` returns of the boxes and `moe_vision.train.metrics.count_objects`
        of the objects; to segment also what the former returns of the masks, with ``mask_`` before each name; to
        classify what `moe_vision.train.metrics.accuracy_metrics` returns. And ``experts``: the share of selections of
        each expert by the name of its layer.

    Raises:
        ValueError: If ``image_size`` is not a multiple of 32.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.train import evaluate
        >>> scenes = ShapeScenes(2, image_size=64)
        >>> model = create_model("yolo_master_n", num_classes=len(scenes.classes))
        >>> evaluate(model, scenes, image_size=64)["map"] < 0.1
        True
    """
    check_image_size(image_size)
    model.eval()
    samples = _samples(source, image_size, model.config.task)
    loader = DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=collate)
    batches = _forwards(model, tqdm(loader, desc="evaluate", leave=False, disable=not progress))
    with RoutingMonitor(model) as monitor:
        if model.config.task == "classify":
            metrics = _judge_classes(batches, source, pictures)
        else:
            truths, found = _collect(batches, image_size)
            metrics = _judge_objects(truths, found, source, pictures, masks=model.config.task == "segment")
    # Of this process alone: under several, one evaluates.
    return {**metrics, "experts": {name: layer.shares for name, layer in monitor.summary(sync=False).items()}}


def _samples(source: Any, image_size: int, task: str) -> Dataset[Sample]:
    if task == "classify":
        return ClassificationPipeline(source, image_size)
    return _LetterboxedImages(source, image_size, masks=task == "segment")


def _forwards(model: nn.Module, loader: Any) -> Batches:
    device = device_of(model)
    for images, targets in loader:
        yield model(images.to(device)), targets


def _judge_classes(batches: Batches, source: ClassificationSource, pictures: Path | None) -> dict[str, Any]:
    scores, labels = [], []
    for logits, targets in batches:
        scores.append(logits.float().cpu())
        labels += [target["label"] for target in targets]
    if pictures is not None:
        draw_classification(source, torch.cat(scores), torch.tensor(labels), pictures)
    return accuracy_metrics(torch.cat(scores), torch.tensor(labels), source.classes)


def _judge_objects(
    truths: list[dict[str, Any]],
    found: list[dict[str, Any]],
    source: DetectionSource,
    pictures: Path | None,
    *,
    masks: bool,
) -> dict[str, Any]:
    metrics = {**coco_metrics(truths, found, source.classes), **count_objects(truths, source.classes)}
    if masks:
        of_masks = coco_metrics(truths, found, source.classes, masks=True)
        metrics |= {f"mask_{name}": value for name, value in of_masks.items()}
    if pictures is not None:
        draw_detection(source, truths, found, pictures, masks=masks)
    return metrics


def _collect(batches: Batches, image_size: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what is known and what was found of each image, masks as run lengths."""
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for output, targets in batches:
        sizes = [target["size"] for target in targets]
        results = results_in_original(output, sizes, image_size, score=0.001, iou=0.7, max_detections=300)
        for target, result in zip(targets, results, strict=True):
            if "windows" in result:
                windows = result.pop("windows")
                result["rles"] = [_encode(paste_windows([window], 1, target["size"])[0]) for window in windows]
            truths.append(target)
            found.append(result)
    return truths, found


class _LetterboxedImages(Dataset[Sample]):
    """Letterboxed images with their objects as they are in the original, masks as run lengths."""

    def __init__(self, source: DetectionSource, image_size: int, *, masks: bool) -> None:
        self.source = source
        self.transform = eval_transform(image_size)
        self.masks = masks

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.source[index]
        truth = {**self._objects(target), "size": tuple(image.shape[-2:])}
        if hasattr(self.source, "areas"):
            truth["areas"] = self.source.areas(index)
        if hasattr(self.source, "crowd_regions"):
            truth["crowds"] = self._objects(self.source.crowd_regions(index))
        return self.transform(image).as_subclass(Tensor), truth

    def _objects(self, target: Target) -> dict[str, Any]:
        objects = {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}
        if self.masks:
            objects["rles"] = [_encode(mask) for mask in target["masks"].as_subclass(Tensor)]
        return objects


def _encode(mask: Tensor) -> dict[str, Any]:
    encoded: dict[str, Any] = mask_functions.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return encoded
