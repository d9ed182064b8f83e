# SPDX-License-Identifier: Apache-2.0
"""What is checked and made ready before a network is trained."""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from moe_vision.data import ClassificationSource, DetectionSource
from moe_vision.models import TimmBackbone, YOLOMaster
from moe_vision.train.settings import TrainSettings

CHANGES_NOTHING = ("num_workers", "grad_checkpointing")  # in the result of a run


def create_optimizer(model: YOLOMaster, settings: TrainSettings) -> torch.optim.Optimizer:
    """Create one of timm's optimizers; norms and biases have no weight decay, a timm backbone its own learning rate."""
    if settings.optimizer not in list_optimizers():
        nearest = difflib.get_close_matches(settings.optimizer, map(str, list_optimizers()), n=3)
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ValueError(f"optimizer must be one of timm.optim.list_optimizers(), got {settings.optimizer!r}{hint}")
    return create_optimizer_v2(_parameter_groups(model, settings), opt=settings.optimizer, lr=settings.lr)


def _parameter_groups(model: YOLOMaster, settings: TrainSettings) -> list[dict[str, Any]]:
    """Split the parameters by weight decay, and those of a timm backbone from others: schedules heed ``lr_scale``."""
    pretrained = set(model.backbone.body.parameters()) if isinstance(model.backbone, TimmBackbone) else set()
    groups = []
    for group in param_groups_weight_decay(model, settings.weight_decay):
        own = [parameter for parameter in group["params"] if parameter not in pretrained]
        others = [parameter for parameter in group["params"] if parameter in pretrained]
        groups.append({**group, "params": own})
        if others:
            groups.append({**group, "params": others, "lr_scale": settings.backbone_lr_scale})
    return groups


def create_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps_per_epoch: int) -> Scheduler:
    """Create timm's schedule: the learning rate rises to its peak, then falls as a cosine, step by step."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=settings.epochs,
        warmup_epochs=min(settings.warmup_epochs, settings.epochs - 1),
        warmup_lr=settings.lr / 100,
        min_lr=settings.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return cast(Scheduler, schedule)


def check_classes(model: YOLOMaster, *sources: DetectionSource | ClassificationSource | None) -> None:
    """Raise ValueError unless the sources hold images of as many classes as the network tells apart."""
    for source in sources:
        if source is None:
            continue
        if len(source) == 0:
            raise ValueError(f"data must hold at least one image, got an empty {type(source).__name__}")
        if len(source.classes) != model.config.num_classes:
            raise ValueError(
                f"model must have as many classes as the data, {len(source.classes)} ({', '.join(source.classes)}), "
                f"got num_classes={model.config.num_classes}"
            )


def check_settings(settings: TrainSettings, written: Path) -> None:
    """Raise ValueError if a run in the folder was started with other settings."""
    if not written.is_file():
        return
    before = {**asdict(TrainSettings()), **json.loads(written.read_text())}  # it may be older than some setting
    for name, value in asdict(settings).items():
        if name not in CHANGES_NOTHING and before.get(name) != value:
            raise ValueError(f"{name} must be as in the run to resume, {before.get(name)!r}, got {value!r}")
