# SPDX-License-Identifier: Apache-2.0
"""Task-aligned assignment: which anchor points answer for which object.

Axes: B images, N anchor points, M objects of an image, P points that answer for an object.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import complete_box_iou

NEAREST = 10
SCORE_POWER = 0.5
IOU_POWER = 6.0
LEAST_QUALITY = 0.1  # of an object between the points


class Assignment(NamedTuple):
    """The anchor points of one image that answer for an object.

    Attributes:
        points: Indices of those anchor points, (P,), int64.
        objects: Index of the object each answers for, (P,), int64.
        quality: Target of the class score, (P,), in [0, 1].

    Examples:
        >>> import torch
        >>> from moe_vision.losses.assign import Assignment
        >>> Assignment(torch.tensor([5]), torch.tensor([0]), torch.tensor([0.7])).objects
        tensor([0])
    """

    points: Tensor
    objects: Tensor
    quality: Tensor


class BatchAssignment(NamedTuple):
    """The anchor points of a batch that answer for an object, image by image.

    Attributes:
        images: Index of the image of each of those points, (P,), int64.
        points: Indices of the points, (P,), int64.
        objects: Index of the object each answers for among those of all images, one image after the other, (P,), int64.
        quality: Target of the class score, (P,), in [0, 1].

    Examples:
        >>> import torch
        >>> from moe_vision.losses.assign import BatchAssignment
        >>> one = torch.tensor([0])
        >>> BatchAssignment(one, torch.tensor([5]), one, torch.tensor([0.7])).points
        tensor([5])
    """

    images: Tensor
    points: Tensor
    objects: Tensor
    quality: Tensor


@torch.no_grad()
def assign_batch(
    boxes: Tensor,
    scores: Tensor,
    points: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    strides: Tensor | None = None,
) -> BatchAssignment:
    """Assign the anchor points of each image with `task_aligned_assign`, once for all terms of a loss.

    Args:
        boxes: Predicted boxes, (B, N, 4), xyxy in pixels.
        scores: Logits of the classes, (B, N, num_classes).
        points: Anchor points, (N, 2), in pixels.
        targets: For each image ``boxes`` (M, 4), xyxy in pixels, and ``labels`` (M,), int64 from 0; M may be 0.
        strides: Stride of each anchor point, (N,), in pixels; the same for all if None.

    Shape:
        - Output: `BatchAssignment`; P = 0 if no image has an object

    Examples:
        >>> import torch
        >>> from moe_vision.losses.assign import assign_batch
        >>> target = {"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([0])}
        >>> points = torch.tensor([[12.0, 4.0], [4.0, 4.0]])
        >>> assign_batch(target["boxes"].expand(1, 2, 4), torch.zeros(1, 2, 1), points, [target]).points
        tensor([1])
    """
    assigned = [
        task_aligned_assign(image_scores, image_boxes, points, target["boxes"], target["labels"], strides)
        for image_scores, image_boxes, target in zip(scores.float().sigmoid(), boxes, targets, strict=True)
    ]
    assigned.append(_no_points(scores[:0].float()))  # a rank of a distributed run may have no image
    counts = [0, *(len(target["labels"]) for target in targets)]
    return BatchAssignment(
        images=torch.cat([torch.full_like(one.points, image) for image, one in enumerate(assigned)]),
        points=torch.cat([one.points for one in assigned]),
        objects=torch.cat([one.objects + before for one, before in zip(assigned, accumulate(counts), strict=False)]),
        quality=torch.cat([one.quality for one in assigned]),
    )


@torch.no_grad()
def task_aligned_assign(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    object_boxes: Tensor,
    object_labels: Tensor,
    strides: Tensor | None = None,
) -> Assignment:
    """Give each object the anchor points inside it whose predictions suit it best (TOOD, arXiv 2108.07755).

    The alignment of a prediction with an object is score^0.5 CIoU^6. Each object takes the 10 best aligned points
    whose centre lies inside it; a point wanted by several objects goes to the one with the highest CIoU. The target
    of the class score is the alignment, scaled for each object so that its best point gets the object's best CIoU.

    An object without any point inside, small or thin, takes one: of the points of the smallest stride that are left by
    the other objects, the one nearest to its centre. Its target is the CIoU, and at least 0.1: boxes start far larger
    than such an object, and without any weight would stay so.

    Args:
        scores: Predicted class scores, (N, num_classes), in [0, 1].
        boxes: Predicted boxes, (N, 4), xyxy in pixels.
        points: Anchor points, (N, 2), in pixels.
        object_boxes: Boxes of the objects, (M, 4), xyxy in pixels.
        object_labels: Classes of the objects, (M,), int64.
        strides: Stride of each anchor point, (N,), in pixels; the same for all if None.

    Shape:
        - Output: `Assignment` of P <= N points; P = 0 for an image without objects

    Examples:
        >>> import torch
        >>> from moe_vision.losses.assign import task_aligned_assign
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> points = torch.tensor([[4.0, 4.0], [12.0, 4.0]])
        >>> task_aligned_assign(torch.full((2, 1), 0.5), box.expand(2, 4), points, box, torch.tensor([0]))
        Assignment(points=tensor([0]), objects=tensor([0]), quality=tensor([1.]))
    """
    if object_boxes.shape[0] == 0:
        return _no_points(scores)
    overlap = complete_box_iou(object_boxes, boxes).clamp(min=0)  # (M, N)
    alignment = scores[:, object_labels].T.pow(SCORE_POWER) * overlap.pow(IOU_POWER)
    inside = _inside(points, object_boxes)
    best = alignment.masked_fill(~inside, -1.0).topk(min(NEAREST, points.shape[0]), dim=1).indices
    wanted = torch.zeros_like(inside).scatter(1, best, True) & inside
    between = ~inside.any(dim=1)  # the objects between the points
    free = ~wanted.any(dim=0)
    if strides is not None:
        free &= strides == strides.min()
    wanted[between] = _nearest(points, object_boxes[between], free)
    owner = overlap.masked_fill(~wanted, -1.0).argmax(dim=0)  # (N,)
    chosen = wanted.any(dim=0).nonzero().squeeze(1)
    objects = owner[chosen]
    quality = _quality(alignment[objects, chosen], overlap[objects, chosen], objects)
    alone = overlap[objects, chosen].clamp(min=LEAST_QUALITY)
    return Assignment(chosen, objects, torch.where(between[objects], alone, quality))


def _no_points(scores: Tensor) -> Assignment:
    none = scores.new_zeros(0, dtype=torch.int64)
    return Assignment(none, none, scores.new_zeros(0))


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Tell which points (N, 2) lie strictly inside which boxes (M, 4), as (M, N)."""
    left_top = points[None] - boxes[:, None, :2]
    right_bottom = boxes[:, None, 2:] - points[None]
    return torch.cat([left_top, right_bottom], dim=-1).amin(dim=-1) > 0


def _nearest(points: Tensor, boxes: Tensor, free: Tensor) -> Tensor:
    """Tell which of the free points (N,) is nearest to the centre of which box (M, 4), as (M, N); none if none is."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (centres[:, None] - points).square().sum(dim=-1).masked_fill(~free, torch.inf)
    nearest = torch.zeros_like(distance, dtype=torch.bool).scatter(1, distance.argmin(dim=1, keepdim=True), True)
    return nearest & free


def _quality(alignment: Tensor, overlap: Tensor, objects: Tensor) -> Tensor:
    """Scale the alignments of each object's points so that the largest equals its largest overlap."""
    count = int(objects.max()) + 1 if objects.numel() else 0
    zeros = alignment.new_zeros(count)
    best_alignment = zeros.scatter_reduce(0, objects, alignment, "amax")
    best_overlap = zeros.scatter_reduce(0, objects, overlap, "amax")
    # Two predictions as far from the object as can be have an alignment of 0, and their ratio no meaning.
    return alignment / best_alignment[objects].clamp(min=1e-9) * best_overlap[objects]
