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
from moe_vision.train.settings import SETTINGS, TrainSettings

# The settings that augment samples, by what the samples are of.
OBJECTS = ("mosaic", "close_mosaic", "mixup", "copy_paste", "rotate", "shear", "hflip", "vflip")
CLASSES = ("mixup", "cutmix", "auto_augment", "erasing", "hflip", "vflip")


class Recipe(NamedTuple):
    """How one task is trained.

    Attributes:
        task: Its name.
        augmentations: The settings of augmentation that it uses.
        dataset: Makes the augmented samples of a data set, with these settings as keywords.
        loss: Makes the named terms of the loss of a network, its output and the targets of a batch.
        metric: What `moe_vision.train.evaluate` calls the metric to be best in.
        shown: The metrics to show after an evaluation.
    """

    task: str
    augmentations: tuple[str, ...]
    dataset: Callable[..., SeededPipeline]
    loss: Callable[..., dict[str, Tensor]]
    metric: str
    shown: tuple[str, ...]

    def pipeline(self, source: Any, settings: TrainSettings) -> SeededPipeline:
        """Make the augmented samples of a data set.

        Raises:
            ValueError: If a setting that the task doesn't use is not at its default.
        """
        for setting in SETTINGS:
            value = getattr(settings, setting.name)
            unused = setting.name in {*OBJECTS, *CLASSES} - {*self.augmentations}
            if unused and value != setting.default:
                raise ValueError(
                    f"{setting.name} must be left at {setting.default} to {self.task}, which has no use for it, "
                    f"got {value}"
                )
        options = {name: getattr(settings, name) for name in self.augmentations}
        if "close_mosaic" in options:
            options["mosaic_epochs"] = settings.epochs - options.pop("close_mosaic")
        return self.dataset(source, settings.image_size, augment=True, seed=settings.seed, **options)


def _loss_of_labels(
    model: YOLOMaster, logits: Tensor, targets: list[dict[str, Any]], *, balance: float
) -> dict[str, Tensor]:
    labels = [target["label"] for target in targets]
    if any(isinstance(label, Tensor) for label in labels):  # the shares of the classes, after mixup or cutmix
        return classify_loss(model, logits, torch.stack(labels).to(logits.device), balance=balance)
    indices = torch.tensor(labels, dtype=torch.int64, device=logits.device)
    return classify_loss(model, logits, indices, balance=balance)


RECIPES = {
    recipe.task: recipe
    for recipe in (
        Recipe("detect", OBJECTS, DetectionPipeline, detect_loss, "map", ("map", "map50")),
        Recipe(
            "segment", OBJECTS, DetectionPipeline, segment_loss, "mask_map", ("map", "map50", "mask_map", "mask_map50")
        ),
        Recipe("classify", CLASSES, ClassificationPipeline, _loss_of_labels, "top1", ("top1", "top5")),
    )
}
