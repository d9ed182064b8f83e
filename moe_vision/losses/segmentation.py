# SPDX-License-Identifier: Apache-2.0
"""The mask loss: prototype masks, mixed for each assigned point, against the mask of its object.

Axes: B images, N anchor points, M objects of an image, P points of the batch that answer for an object, C of them at a
time, h and w cells of the prototypes, each of 4 x 4 pixels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_vision.layers.precision import without_autocast
from moe_vision.losses.assign import BatchAssignment
from moe_vision.losses.ranks import rank_divisor

MASK_GAIN = 7.5
CELL = 4  # pixels of the network's input a side
CHUNK = 64  # points whose masks exist at the same time: 6.5 MB a tensor at 640 x 640


def mask_loss(
    coefficients: Tensor, prototypes: Tensor, targets: Sequence[Mapping[str, Tensor]], assigned: BatchAssignment
) -> Tensor:
    """Compare the masks of the assigned points with those of their objects (arXiv 1904.02689, section 3.1).

    A point's logits are the prototypes times its coefficients. Its loss is the mean binary cross-entropy over the cells
    that the object's box touches; a cell's target is the share of its 4 x 4 pixels that the object covers. As in
    `moe_vision.losses.detection.detection_loss` it is weighted by the point's quality, summed over the batch, divided
    by the sum of the qualities (at least 1; of all ranks' images) and multiplied by its gain (7.5).

    The masks of a few points exist at a time, in the forward and, computed again, in the backward.

    Args:
        coefficients: Coefficients of the prototypes.
        prototypes: Prototype masks.
        targets: For each image ``boxes`` (M, 4), xyxy in pixels, and ``masks`` (M, 4 h, 4 w), bool or uint8 (0 is
            background); M may be 0.
        assigned: What `moe_vision.losses.assign.assign_batch` says of the same targets.

    Shape:
        - coefficients: (B, N, 32)
        - prototypes: (B, 32, h, w)
        - Output: a scalar, fp32, connected to the graph also without objects

    Examples:
        >>> import torch
        >>> from moe_vision.losses.assign import BatchAssignment
        >>> from moe_vision.losses.segmentation import mask_loss
        >>> target = {"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "masks": torch.ones(1, 8, 8, dtype=torch.bool)}
        >>> one = torch.tensor([0])
        >>> assigned = BatchAssignment(one, one, one, torch.tensor([1.0]))
        >>> mask_loss(torch.zeros(1, 1, 32), torch.zeros(1, 32, 2, 2), [target], assigned)  # 7.5 log 2
        tensor(5.1986)
    """
    height, width = (CELL * side for side in prototypes.shape[2:])
    nothing = {"boxes": prototypes.new_zeros(0, 4), "masks": prototypes.new_zeros(0, height, width)}
    covered = torch.cat([_covered_pixels(target["masks"]) for target in (*targets, nothing)])
    boxes = torch.cat([target["boxes"] for target in (*targets, nothing)])
    loss = prototypes[:0].float().sum() + coefficients[:0].float().sum()  # 0, connected also without images
    for image, (mixed, bases) in enumerate(zip(coefficients.unbind(), prototypes.unbind(), strict=True)):
        chosen = assigned.images == image
        parts = (mixed[assigned.points[chosen]], assigned.objects[chosen], assigned.quality[chosen])
        for part in zip(*(torch.split(values, CHUNK) for values in parts), strict=True):
            loss = loss + checkpoint(
                _weighted_loss, bases, covered, boxes, *part, use_reentrant=False, preserve_rng_state=False
            )
    return MASK_GAIN * loss / rank_divisor(assigned.quality.sum(), loss)


def _covered_pixels(masks: Tensor) -> Tensor:
    """Count the pixels of each object in each cell, (M, h, w), uint8: a sixteenth of the masks' memory."""
    counts = torch.zeros_like(masks[:, ::CELL, ::CELL], dtype=torch.uint8)
    for y in range(CELL):
        for x in range(CELL):
            counts += masks[:, y::CELL, x::CELL] > 0
    return counts


def _weighted_loss(
    prototypes: Tensor, covered: Tensor, boxes: Tensor, coefficients: Tensor, objects: Tensor, quality: Tensor
) -> Tensor:
    """Sum the weighted losses of C points of one image."""
    with without_autocast(prototypes):
        logits = torch.einsum("ck,khw->chw", coefficients.float(), prototypes.float())
        wanted = covered[objects].float() / CELL**2
        inside = _touched_cells(boxes[objects], *prototypes.shape[1:])
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * inside
        means = losses.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
        return (means * quality).sum()


def _touched_cells(boxes: Tensor, height: int, width: int) -> Tensor:
    """Tell which cells the boxes (C, 4) touch, as (C, height, width)."""
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(dim=1)
    x, y = (torch.arange(length, device=boxes.device) * CELL for length in (width, height))
    columns = (x + CELL > left) & (x < right)
    rows = (y + CELL > top) & (y < bottom)
    return rows[:, :, None] & columns[:, None, :]
