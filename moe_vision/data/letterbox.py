# SPDX-License-Identifier: Apache-2.0
"""Letterbox: fit an image into a square without changing its aspect ratio, and take boxes back from there."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from moe_vision.data.masks import resize_masks
from moe_vision.runtime.letterbox import letterbox_geometry


class Letterbox(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize with antialias to fit a square, centre, and fill the border; boxes and masks follow.

    Masks are resized by the nearest pixel and get 0 in the border.

    Args:
        size: Side of the square in pixels.
        fill: Value of the border, in the units of the image.

    Shape:
        - Input: image (C, H, W)
        - Output: (C, size, size)

    Examples:
        >>> Letterbox(320)(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape
        torch.Size([3, 320, 320])
    """

    def __init__(self, size: int, fill: float = 114) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.size = size
        self.fill = fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Measure the image among the inputs (called by torchvision once a sample)."""
        height, width = v2.query_size(flat_inputs)
        return {"geometry": letterbox_geometry(height, width, self.size)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Letterbox one image, mask or set of boxes (called by torchvision)."""
        height, width, top, left = params["geometry"]
        border = [left, top, self.size - width - left, self.size - height - top]
        if isinstance(inpt, tv_tensors.Mask):
            resized = resize_masks(inpt.as_subclass(Tensor), height, width)
            return tv_tensors.wrap(F.pad(resized, border, fill=0), like=inpt)
        return F.pad(F.resize(inpt, [height, width], antialias=True), border, fill=self.fill)


def undo_letterbox(boxes: Tensor, height: int, width: int, size: int) -> Tensor:
    """Map boxes from the letterboxed square back to the original image and clip them to it.

    Args:
        boxes: Boxes, xyxy in pixels of the square.
        height: Height of the original image in pixels.
        width: Width of the original image in pixels.
        size: Side of the square in pixels.

    Shape:
        - boxes: (N, 4)
        - Output: (N, 4)

    Examples:
        >>> undo_letterbox(torch.tensor([[0.0, 40.0, 160.0, 280.0]]), height=480, width=640, size=320)
        tensor([[  0.,   0., 320., 480.]])
    """
    new_height, new_width, top, left = letterbox_geometry(height, width, size)
    offset = boxes.new_tensor([left, top, left, top])
    scale = boxes.new_tensor([width / new_width, height / new_height] * 2)  # per axis: the new size was rounded
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(((boxes - offset) * scale).clamp(min=0), limit)
