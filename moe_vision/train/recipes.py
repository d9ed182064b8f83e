# SPDX-License-Identifier: Apache-2.0
"""What training differs in between the tasks: samples, loss, and the metric that says which weights are best."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_vision.data import ClassificationPipeline, DetectionPipeline
from moe_vision.data.seeded import SeededPipeline
from moe_vision.models import YOLOMaster
from moe_vision.tasks import classify_loss, detect_loss, segment_loss
from moe_vision.train.settings import TrainSettings


class Recipe(NamedTuple):
    """How one task is trained.

    Attributes:
        pipeline: Makes the augmented samples of a data set.
        loss: Makes the named terms of the loss of a network, its output and the targets of a batch.
        metric: What `moe_vision.train.evaluate` calls the metric to be best in.
        shown: The metrics to show after an evaluation.
    """

    pipeline: Callable[[Any, TrainSettings], SeededPipeline]
    loss: Callable[..., dict[str, Tensor]]
    metric: str
    shown: tuple[str, ...]


def _objects(source: Any, settings: TrainSettings) -> SeededPipeline:
    return DetectionPipeline(
        source,
        settings.image_size,
        augment=True,
        mosaic=settings.mosaic,
        mosaic_epochs=settings.epochs - settings.close_mosaic,
        seed=settings.seed,
    )


def _classes(source: Any, settings: TrainSettings) -> SeededPipeline:
    return ClassificationPipeline(source, settings.image_size, augment=True, seed=settings.seed)


def _loss_of_labels(
    model: YOLOMaster, logits: Tensor, targets: list[dict[str, Any]], *, balance: float
) -> dict[str, Tensor]:
    labels = torch.tensor([target["label"] for target in targets], dtype=torch.int64, device=logits.device)
    return classify_loss(model, logits, labels, balance=balance)


RECIPES = {
    "detect": Recipe(_objects, detect_loss, "map", ("map", "map50")),
    "segment": Recipe(_objects, segment_loss, "mask_map", ("map", "map50", "mask_map", "mask_map50")),
    "classify": Recipe(_classes, _loss_of_labels, "top1", ("top1", "top5")),
}
