# SPDX-License-Identifier: Apache-2.0
"""What a detection data set yields: an image and its target, the same for every reader and for generated scenes."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision import tv_tensors

Target = dict[str, Any]
Sample = tuple[Tensor, Target]


class DetectionSource(Protocol):
    """Anything with class names, a length and samples as `make_sample` builds them."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ClassificationSource(Protocol):
    """Anything with class names, a length and samples of an image and `{"label": int, "image_id": int}`."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def make_sample(image: Tensor, boxes: Tensor, labels: Tensor, image_id: int, masks: Tensor | None = None) -> Sample:
    """Wrap an image and its objects so that `torchvision.transforms.v2` treats boxes as boxes and masks as masks.

    Args:
        image: RGB in [0, 255], uint8.
        boxes: Boxes, xyxy in absolute pixels.
        labels: Class indices from 0.
        image_id: Index of the image in its data set.
        masks: Which pixels each object covers, bool; None for a data set of boxes alone.

    Shape:
        - image: (3, H, W)
        - boxes: (N, 4)
        - labels: (N,)
        - masks: (N, H, W)

    Returns:
        The image as `tv_tensors.Image` and a dict of `boxes` (`tv_tensors.BoundingBoxes`, float32), `labels` (int64),
        `image_id` and, if there are any, `masks` (`tv_tensors.Mask`, bool).

    Examples:
        >>> image, target = make_sample(torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 7)
        >>> image.shape, target["boxes"].canvas_size, target["image_id"]
        (torch.Size([3, 4, 6]), (4, 6), 7)
    """
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width), dtype=torch.float32)
    target: Target = {"boxes": boxes, "labels": labels.to(torch.int64), "image_id": image_id}
    if masks is not None:
        target["masks"] = tv_tensors.Mask(masks, dtype=torch.bool)
    return tv_tensors.Image(image), target
