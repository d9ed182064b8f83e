# SPDX-License-Identifier: Apache-2.0
"""The transforms of a sample: letterbox (to classify, a crop) for evaluation, flips and colour jitter for training."""

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from moe_vision.data.letterbox import Letterbox

Transform = Callable[..., Any]


def eval_transform(size: int) -> Transform:
    """Letterbox to a size x size square, then float in [0, 1].

    Args:
        size: Side of the square in pixels.

    Shape:
        - Input: image (3, H, W), uint8, and perhaps a target, whose boxes and masks follow
        - Output: image (3, size, size), float32 in [0, 1]

    Examples:
        >>> eval_transform(320)(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape
        torch.Size([3, 320, 320])
    """
    return v2.Compose([Letterbox(size), v2.ToDtype(torch.float32, scale=True)])  # type: ignore[no-any-return]


def classify_transform(size: int) -> Transform:
    """Resize the shorter side, crop the centre to a size x size square, then float in [0, 1].

    Args:
        size: Side of the square in pixels.

    Shape:
        - Input: image (3, H, W), uint8
        - Output: image (3, size, size), float32 in [0, 1]

    Examples:
        >>> classify_transform(224)(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape
        torch.Size([3, 224, 224])
    """
    resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True)])  # type: ignore[no-any-return]


def train_transform(*, hflip: float = 0.5, vflip: float = 0.0) -> Transform:
    """Random flips, brightness, saturation and hue, then float in [0, 1]; for what `mosaic` or `scale_jitter` made.

    Args:
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip; for images without a natural upright, such as microscopy.

    Shape:
        - Input: image (3, H, W), uint8, and perhaps a target, whose boxes and masks follow
        - Output: image (3, H, W), float32 in [0, 1]

    Examples:
        >>> train_transform(vflip=0.5)(torch.zeros(3, 320, 320, dtype=torch.uint8)).dtype
        torch.float32
    """
    steps = [
        v2.RandomHorizontalFlip(hflip),
        v2.RandomVerticalFlip(vflip),
        v2.ColorJitter(brightness=0.4, saturation=0.7, hue=0.015),
        v2.ToDtype(torch.float32, scale=True),
    ]
    return v2.Compose(steps)  # type: ignore[no-any-return]
