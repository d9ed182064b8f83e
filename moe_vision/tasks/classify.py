# SPDX-License-Identifier: Apache-2.0
"""The classification task: its labels and its loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_vision.losses.balance import auxiliary_loss
from moe_vision.losses.ranks import rank_divisor
from moe_vision.models import YOLOMaster


def classify_loss(
    model: YOLOMaster, logits: Tensor, labels: Tensor, *, balance: float = 0.05, label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Return the named, weighted terms of the training loss; their sum is what is minimised.

    Args:
        model: The network whose forward gave ``logits``; the balance of its experts is read from it.
        logits: Logits of the classes.
        labels: The class of each image, int64 in [0, num_classes), or its share of each class, floats, as mixup makes
            them.
        balance: Weight of the load-balancing loss, see `moe_vision.auxiliary_loss`.
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1].

    Shape:
        - logits: (B, num_classes)
        - labels: (B,) or (B, num_classes)
        - Output: scalars ``class``, the mean cross-entropy (in training under torch.distributed over all ranks'
          images), and ``balance`` (unless the network has no ES-MoE block)

    Raises:
        ValueError: If the labels do not fit the logits, or ``label_smoothing`` is not in [0, 1].

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> from moe_vision.tasks import classify_loss
        >>> model = create_model("yolo_master_n", task="classify", num_classes=3).train()
        >>> terms = classify_loss(model, model(torch.rand(2, 3, 64, 64)), torch.tensor([2, 0]))
        >>> sum(terms.values()).backward()
    """
    _check_labels(labels, *logits.shape)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    total = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
    terms = {"class": total / rank_divisor(total.new_tensor(len(labels)), total)}
    if model.config.placement != "none":
        terms["balance"] = auxiliary_loss(model, balance=balance)
    return terms


def _check_labels(labels: Tensor, batch: int, num_classes: int) -> None:
    if labels.is_floating_point():
        if labels.shape != (batch, num_classes):
            raise ValueError(f"labels of floats must have shape {(batch, num_classes)}, got {tuple(labels.shape)}")
        return
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, or floats for shares of the classes, got {labels.dtype}")
    if labels.shape != (batch,):
        raise ValueError(f"labels must be one for each of the {batch} images, got {tuple(labels.shape)}")
    if wrong := [label for label in labels.tolist() if not 0 <= label < num_classes]:
        raise ValueError(f"labels must be in [0, num_classes={num_classes}), got {wrong[0]}")
