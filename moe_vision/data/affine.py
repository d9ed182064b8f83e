# SPDX-License-Identifier: Apache-2.0
"""Rotation and shear of a sample; size and place are what mosaic and scale jitter vary already."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from moe_vision.data.masks import mask_boxes
from moe_vision.data.mosaic import FILL, clip_boxes
from moe_vision.data.samples import Sample, make_sample


def random_affine(sample: Sample, *, rotate: float = 0.0, shear: float = 0.0) -> Sample:
    """Rotate and shear a sample about its centre by random angles; what is uncovered becomes grey.

    A box becomes the one around its turned corners or, with masks, around the turned mask. What leaves the picture is
    clipped, and an object goes by the rule of `mosaic`. Draws from torch's global CPU generator.

    Args:
        sample: Image uint8 and target, as `mosaic` or `scale_jitter` makes them.
        rotate: Largest rotation to either side in degrees, in [0, 180].
        shear: Largest shear in degrees, in [0, 45], in x and y, to either side.

    Shape:
        - Output: image (3, H, W), uint8, with boxes (N, 4), labels (N,) and, if the sample has them, masks (N, H, W)

    Examples:
        >>> from moe_vision.data import ShapeScenes, random_affine
        >>> random_affine(ShapeScenes(1, 64)[0], rotate=15.0, shear=5.0)[0].shape
        torch.Size([3, 64, 64])
    """
    image, target = sample
    angle, across, down = ((2 * torch.rand(3) - 1) * torch.tensor([rotate, shear, shear])).tolist()
    turn = partial(F.affine, angle=angle, translate=[0, 0], scale=1.0, shear=[across, down])
    turned = turn(image.as_subclass(Tensor), interpolation=InterpolationMode.BILINEAR, fill=FILL)

    height, width = image.shape[-2:]
    boxes, seen = clip_boxes(_turn_boxes(target["boxes"], turn), (0, 0, width, height))
    if "masks" not in target:
        return make_sample(turned, boxes[seen], target["labels"][seen], target["image_id"])
    masks = turn(target["masks"]).as_subclass(Tensor)
    seen &= masks.flatten(1).any(dim=1)
    return make_sample(turned, mask_boxes(masks[seen]), target["labels"][seen], target["image_id"], masks[seen])


def _turn_boxes(boxes: tv_tensors.BoundingBoxes, turn: Callable[..., Any]) -> Tensor:
    """Return the boxes around the turned corners, also where those lie outside the picture.

    Torchvision clips boxes to their canvas, so they are turned on one that is five times as large, about its centre.
    """
    height, width = boxes.canvas_size
    margin = 2 * torch.tensor([width, height, width, height])
    roomy = tv_tensors.BoundingBoxes(
        boxes.as_subclass(Tensor) + margin, format="XYXY", canvas_size=(5 * height, 5 * width)
    )
    return turn(roomy).as_subclass(Tensor) - margin  # type: ignore[no-any-return]
