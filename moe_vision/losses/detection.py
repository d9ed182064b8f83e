# SPDX-License-Identifier: Apache-2.0
"""The detection loss: classes, boxes and, where the variant has it, the distribution over the box sides.

Axes: B images, N anchor points, P points of the batch that answer for an object, R bins a box side.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from moe_vision.losses.assign import BatchAssignment, assign_batch
from moe_vision.losses.ranks import rank_divisor

BOX_GAIN = 7.5
CLASS_GAIN = 0.5
DFL_GAIN = 1.5


def detection_loss(
    sides: Tensor,
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    strides: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    *,
    dfl: bool = False,
    assigned: BatchAssignment | None = None,
) -> dict[str, Tensor]:
    """Compare a detector's raw maps with the objects of each image.

    Each term is a sum over the batch, weighted by the quality of the assigned points, divided by the sum of the
    qualities (at least 1), times its gain: binary cross-entropy over all points and classes (0.5), 1 - CIoU (7.5)
    and, if ``dfl``, the distribution focal loss of arXiv 2006.04388, eq. 6 (1.5).

    In training under torch.distributed the qualities are those of all ranks' images, and the mean of the terms over the
    ranks is that of the whole batch. A rank may have no image.

    Args:
        sides: Logits of the distances to the box sides, in strides.
        boxes: Decoded boxes, xyxy in pixels.
        scores: Logits of the classes.
        points: Anchor points in pixels.
        strides: Stride of each anchor point in pixels.
        targets: For each image ``boxes`` (M, 4), xyxy in pixels, and ``labels`` (M,), int64 from 0; M may be 0.
        dfl: Include the distribution focal loss.
        assigned: What `assign_batch` says of these boxes and scores, for a loss that reads it too; made if None.

    Shape:
        - sides: (B, N, 4, R)
        - boxes: (B, N, 4)
        - scores: (B, N, num_classes)
        - points: (N, 2)
        - strides: (N,)
        - Output: scalars ``class``, ``box`` and, if asked for, ``dfl``, connected to the graph also without objects

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> from moe_vision.losses.detection import detection_loss
        >>> maps = create_model("yolo_master_n", num_classes=3).train()(torch.rand(2, 3, 64, 64))
        >>> target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
        >>> empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        >>> sorted(detection_loss(*maps, [target, empty]))
        ['box', 'class']
    """
    assigned = assign_batch(boxes, scores, points, targets, strides) if assigned is None else assigned
    rows, columns, quality = assigned.images, assigned.points, assigned.quality
    nothing = {"boxes": boxes.new_zeros(0, 4, dtype=torch.float32), "labels": rows.new_zeros(0)}
    goal, labels = (
        torch.cat([target[name] for target in (*targets, nothing)])[assigned.objects] for name in ("boxes", "labels")
    )
    scores, wanted = scores.float(), torch.zeros_like(scores, dtype=torch.float32)
    wanted[rows, columns, labels] = quality.float()
    # The qualities, summed in the order in which the recorded figures were: rounding alone changes a short run.
    total = rank_divisor(wanted.sum(), scores)

    class_loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
    box_loss = (complete_box_iou_loss(boxes[rows, columns], goal) * quality).sum()
    terms = {"class": CLASS_GAIN * class_loss / total, "box": BOX_GAIN * box_loss / total}
    if dfl:
        distances = _distances(points[columns], strides[columns], goal)
        focal = distribution_focal_loss(sides[rows, columns].float(), distances)
        terms["dfl"] = DFL_GAIN * (focal * quality).sum() / total
    return terms


def distribution_focal_loss(sides: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy of the two bins next to each distance, weighted by how near they are (arXiv 2006.04388, eq. 6).

    Args:
        sides: Logits of the bins, R >= 2.
        distances: Distances in strides; clamped to [0, R - 1).

    Shape:
        - sides: (P, 4, R)
        - distances: (P, 4)
        - Output: the mean over the four sides, (P,)

    Examples:
        >>> import torch
        >>> from moe_vision.losses.detection import distribution_focal_loss
        >>> distribution_focal_loss(torch.zeros(1, 4, 2), torch.full((1, 4), 0.5))  # log 2
        tensor([0.6931])
    """
    distances = distances.clamp(0, sides.shape[-1] - 1.01)
    below = distances.floor()
    share_above = distances - below
    log_probs = sides.log_softmax(dim=-1)
    near = below.long().unsqueeze(-1)
    log_below, log_above = log_probs.gather(-1, near).squeeze(-1), log_probs.gather(-1, near + 1).squeeze(-1)
    return -((1 - share_above) * log_below + share_above * log_above).mean(dim=-1)


def _distances(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances from each point to the sides of its box, in strides."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=-1) / strides[:, None]
