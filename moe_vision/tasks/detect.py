# SPDX-License-Identifier: Apache-2.0
"""The detection task: its targets and its loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_vision.losses.balance import auxiliary_loss
from moe_vision.losses.detection import detection_loss
from moe_vision.models import DetectMaps, YOLOMaster


def detect_loss(
    model: YOLOMaster, maps: DetectMaps, targets: Sequence[Mapping[str, Tensor]], *, balance: float = 0.05
) -> dict[str, Tensor]:
    """Return the named, weighted terms of the training loss; their sum is what is minimised.

    Args:
        model: The network whose forward gave ``maps``; the balance of its experts is read from it.
        maps: Raw maps of B images.
        targets: For each image ``boxes`` (M, 4), float32, xyxy in pixels of the network's input, and ``labels`` (M,),
            int64 in [0, num_classes); M may be 0.
        balance: Weight of the load-balancing loss, see `moe_vision.auxiliary_loss`.

    Shape:
        - Output: scalars ``class``, ``box``, ``balance`` (unless the network has no ES-MoE block) and, where the
          variant has it, ``dfl``

    Raises:
        ValueError: If the targets are not one for each image, or a target breaks the contract.

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> from moe_vision.tasks import detect_loss
        >>> model = create_model("yolo_master_n", num_classes=3).train()
        >>> target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
        >>> terms = detect_loss(model, model(torch.rand(2, 3, 64, 64)), [target, target])
        >>> sum(terms.values()).backward()
    """
    check_targets(targets, batch=maps.scores.shape[0], num_classes=maps.scores.shape[2])
    terms = detection_loss(*maps, targets, dfl=model.config.dfl)
    if model.config.placement != "none":
        terms["balance"] = auxiliary_loss(model, balance=balance)
    return terms


def check_targets(targets: Sequence[Mapping[str, Tensor]], *, batch: int, num_classes: int) -> None:
    """Raise ValueError unless there is a target for each image, with boxes and labels of the right kind.

    Args:
        targets: The targets.
        batch: Number of images.
        num_classes: Number of classes.

    Shape:
        - boxes: (M, 4), float32, xyxy in pixels; M may be 0
        - labels: (M,), int64 in [0, num_classes)

    Examples:
        >>> import torch
        >>> from moe_vision.tasks import check_targets
        >>> check_targets([{"boxes": torch.zeros(1, 4), "labels": torch.tensor([3])}], batch=1, num_classes=3)
        Traceback (most recent call last):
        ...
        ValueError: targets[0]['labels'] must be in [0, num_classes=3), got 3
    """
    if len(targets) != batch:
        raise ValueError(f"targets must be one for each of the {batch} images, got {len(targets)}")
    for index, target in enumerate(targets):
        name = f"targets[{index}]"
        if missing := {"boxes", "labels"} - set(target):
            raise ValueError(f"{name} must have boxes and labels, got no {', '.join(sorted(missing))}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"{name} must have boxes (M, 4) and labels (M,), got {tuple(boxes.shape)} and {tuple(labels.shape)}"
            )
        if boxes.dtype != torch.float32:
            raise ValueError(f"{name}['boxes'] must be float32, got {boxes.dtype}")
        if labels.dtype != torch.int64:
            raise ValueError(f"{name}['labels'] must be int64, got {labels.dtype}")
        if wrong := [label for label in labels.tolist() if not 0 <= label < num_classes]:
            raise ValueError(f"{name}['labels'] must be in [0, num_classes={num_classes}), got {wrong[0]}")
        if not bool(torch.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
            raise ValueError(f"{name}['boxes'] must be finite xyxy with x1 < x2 and y1 < y2, got {boxes.tolist()}")
