# SPDX-License-Identifier: Apache-2.0
"""The transforms of a sample: letterbox (to classify, a crop) for evaluation, flips and colour jitter for training."""

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from moe_vision.data.letterbox import Letterbox

Transform = Callable[..., Any]

AUTO_AUGMENT = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "none": v2.Identity}


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


def classify_train_transform(
    size: int, *, hflip: float = 0.5, vflip: float = 0.0, auto_augment: str = "trivial", erasing: float = 0.25
) -> Transform:
    """A random crop, flips, changes of colour and shape, then float in [0, 1] and perhaps a rectangle erased.

    Args:
        size: Side of the square in pixels.
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip.
        auto_augment: The changes: ``trivial``, ``rand`` or ``none``.
        erasing: Probability of erasing a rectangle.

    Shape:
        - Input: image (3, H, W), uint8
        - Output: image (3, size, size), float32 in [0, 1]

    Raises:
        ValueError: If ``auto_augment`` is none of these.

    Examples:
        >>> classify_train_transform(224, auto_augment="rand")(torch.zeros(3, 480, 640, dtype=torch.uint8)).shape
        torch.Size([3, 224, 224])
    """
    if auto_augment not in AUTO_AUGMENT:
        raise ValueError(f"auto_augment must be {' or '.join(AUTO_AUGMENT)}, got {auto_augment!r}")
    # One that never flips would draw a random number, and so change all that follow.
    upside_down = [v2.RandomVerticalFlip(vflip)] if vflip > 0 else []
    steps = [
        v2.RandomResizedCrop(size, scale=(0.25, 1.0), antialias=True),
        v2.RandomHorizontalFlip(hflip),
        *upside_down,
        AUTO_AUGMENT[auto_augment](),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(erasing),
    ]
    return v2.Compose(steps)  # type: ignore[no-any-return]
