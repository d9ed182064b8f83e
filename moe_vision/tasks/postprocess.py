# SPDX-License-Identifier: Apache-2.0
"""What becomes of a network's output: detections that do not repeat each other, masks, the likeliest class."""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from moe_vision.losses.segmentation import CELL
from moe_vision.models import DetectOutput, SegmentOutput
from moe_vision.runtime.suppression import MAX_CANDIDATES, check_limits
from moe_vision.tasks.masks import render_masks


@torch.no_grad()
def postprocess(
    output: DetectOutput | SegmentOutput, *, score: float = 0.25, iou: float = 0.7, max_detections: int = 300
) -> list[dict[str, Tensor]]:
    """Keep the boxes that score well and do not repeat a better one of their class, and render their masks.

    An anchor point may give a box for each class. Suppression is `torchvision.ops.batched_nms`.

    Args:
        output: A detector's or a segmentation network's output in eval.
        score: Lowest score to keep, in [0, 1].
        iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
        max_detections: Most boxes to keep in an image, the best first.

    Shape:
        - Output: for each image ``boxes`` (D, 4), xyxy in pixels, ``scores`` (D,), descending, ``labels`` (D,), int64,
          and of a `moe_vision.models.SegmentOutput` ``masks`` (D, H, W), bool, of the size of the network's input

    Raises:
        ValueError: If ``score`` or ``iou`` is not in [0, 1] or ``max_detections`` is below 1.

    Examples:
        >>> import torch
        >>> from moe_vision.models import DetectOutput
        >>> from moe_vision.tasks import postprocess
        >>> boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 11.0]]])
        >>> postprocess(DetectOutput(boxes, torch.tensor([[[0.5], [0.75]]])))[0]["scores"]
        tensor([0.7500])
    """
    found = suppress(output, score=score, iou=iou, max_detections=max_detections)
    if isinstance(output, SegmentOutput):
        size = CELL * output.prototypes.shape[2], CELL * output.prototypes.shape[3]
        for one, prototypes in zip(found, output.prototypes, strict=True):
            one["masks"] = render_masks(one.pop("coefficients"), prototypes, one["boxes"], size)
    return found


@torch.no_grad()
def suppress(
    output: DetectOutput | SegmentOutput, *, score: float, iou: float, max_detections: int
) -> list[dict[str, Tensor]]:
    """Do what `postprocess` does, short of rendering masks.

    Args:
        output: A detector's or a segmentation network's output in eval.
        score: Lowest score to keep, in [0, 1].
        iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
        max_detections: Most boxes to keep in an image, the best first.

    Shape:
        - Output: for each image ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), and of a
          `moe_vision.models.SegmentOutput` ``coefficients`` (D, 32)

    Raises:
        ValueError: If ``score`` or ``iou`` is not in [0, 1] or ``max_detections`` is below 1.

    Examples:
        >>> import torch
        >>> from moe_vision.models import DetectOutput
        >>> from moe_vision.tasks.postprocess import suppress
        >>> output = DetectOutput(torch.rand(2, 84, 4), torch.zeros(2, 84, 3))
        >>> [len(one["boxes"]) for one in suppress(output, score=0.25, iou=0.7, max_detections=300)]
        [0, 0]
    """
    check_limits(score, iou, max_detections)
    found = []
    for image, (boxes, scores) in enumerate(zip(output.boxes, output.scores, strict=True)):
        points, values, labels = _keep(boxes, scores, score, iou, max_detections)
        one = {"boxes": boxes[points], "scores": values, "labels": labels}
        if isinstance(output, SegmentOutput):
            one["coefficients"] = output.coefficients[image, points]
        found.append(one)
    return found


def class_scores(logits: Tensor) -> list[dict[str, Any]]:
    """Turn the logits of a classifier into scores, and name the best.

    Args:
        logits: Logits of the classes.

    Shape:
        - logits: (B, num_classes)
        - Output: for each image ``label``, an int, ``score``, its score, a float, and ``scores`` (num_classes,), the
          softmax, fp32

    Examples:
        >>> import torch
        >>> from moe_vision.tasks import class_scores
        >>> class_scores(torch.tensor([[0.0, 50.0, 0.0]]))
        [{'label': 1, 'score': 1.0, 'scores': tensor([1.9287e-22, 1.0000e+00, 1.9287e-22])}]
    """
    scores = logits.float().softmax(dim=1)
    best, labels = scores.max(dim=1)
    rows = zip(labels.tolist(), best.tolist(), scores, strict=True)
    return [{"label": label, "score": score, "scores": all_scores} for label, score, all_scores in rows]


def _keep(boxes: Tensor, scores: Tensor, score: float, iou: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the anchor points, scores and labels to keep of one image, the best first."""
    above = (scores.amax(dim=1) > score).nonzero().squeeze(1)  # few rows: less to search than all scores
    rows, labels = (scores[above] > score).nonzero(as_tuple=True)
    points = above[rows]
    values = scores[points, labels]
    if values.numel() > MAX_CANDIDATES:
        values, best = values.topk(MAX_CANDIDATES)
        points, labels = points[best], labels[best]
    kept = batched_nms(boxes[points], values, labels, iou)[:most]
    return points[kept], values[kept], labels[kept]
