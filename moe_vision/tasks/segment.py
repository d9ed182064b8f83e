# SPDX-License-Identifier: Apache-2.0
"""The segmentation task: its targets and its loss."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_vision.losses.assign import assign_batch
from moe_vision.losses.balance import auxiliary_loss
from moe_vision.losses.detection import detection_loss
from moe_vision.losses.segmentation import CELL, mask_loss
from moe_vision.models import SegmentMaps, YOLOMaster
from moe_vision.tasks.detect import check_targets


def segment_loss(
    model: YOLOMaster, maps: SegmentMaps, targets: Sequence[Mapping[str, Tensor]], *, balance: float = 0.05
) -> dict[str, Tensor]:
    """Return the named, weighted terms of the training loss; their sum is what is minimised.

    Args:
        model: The network whose forward gave ``maps``; the balance of its experts is read from it.
        maps: Raw maps of B images of H x W pixels.
        targets: For each image ``boxes`` (M, 4), float32, xyxy in pixels of the network's input, ``labels`` (M,), int64
            in [0, num_classes), and ``masks`` (M, H, W), bool or uint8 (0 is background); M may be 0.
        balance: Weight of the load-balancing loss, see `moe_vision.auxiliary_loss`.

    Shape:
        - Output: scalars ``class``, ``box``, ``mask``, ``balance`` (unless the network has no ES-MoE block) and, where
          the variant has it, ``dfl``

    Raises:
        ValueError: If the targets are not one for each image, or a target breaks the contract.

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> from moe_vision.tasks import segment_loss
        >>> model = create_model("yolo_master_n", task="segment", num_classes=3).train()
        >>> masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        >>> masks[0, 4:50, 4:40] = True
        >>> target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2]), "masks": masks}
        >>> terms = segment_loss(model, model(torch.rand(2, 3, 64, 64)), [target, target])
        >>> sum(terms.values()).backward()
    """
    detection = maps.detection
    check_targets(targets, batch=detection.scores.shape[0], num_classes=detection.scores.shape[2])
    _check_masks(targets, CELL * maps.prototypes.shape[2], CELL * maps.prototypes.shape[3])
    assigned = assign_batch(detection.boxes, detection.scores, detection.points, targets, detection.strides)
    terms = detection_loss(*detection, targets, dfl=model.config.dfl, assigned=assigned)
    terms["mask"] = mask_loss(maps.coefficients, maps.prototypes, targets, assigned)
    if model.config.placement != "none":
        terms["balance"] = auxiliary_loss(model, balance=balance)
    return terms


def _check_masks(targets: Sequence[Mapping[str, Tensor]], height: int, width: int) -> None:
    for index, target in enumerate(targets):
        name = f"targets[{index}]"
        if "masks" not in target:
            raise ValueError(f"{name} must have masks beside boxes and labels, got no masks")
        masks, wanted = target["masks"], (len(target["labels"]), height, width)
        if masks.shape != wanted:
            raise ValueError(
                f"{name}['masks'] must be one for each object, of the size of the network's input, {wanted}, "
                f"got {tuple(masks.shape)}"
            )
        if masks.dtype not in (torch.bool, torch.uint8):
            raise ValueError(f"{name}['masks'] must be bool or uint8, got {masks.dtype}")
