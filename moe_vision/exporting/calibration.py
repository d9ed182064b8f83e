# SPDX-License-Identifier: Apache-2.0
"""Images as a network takes them, for the ranges of its features."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from moe_vision.data import ImageLike, eval_transform, to_image
from moe_vision.data.transforms import classify_transform


def evenly_spread(source: Any, count: int) -> Iterator[Any]:
    """Yield the images of a data set that are to be measured on, or all if there are fewer: neighbours may be alike.

    Args:
        source: Samples whose first item is the image.
        count: Number of images.

    Examples:
        >>> from moe_vision.exporting.calibration import evenly_spread
        >>> list(evenly_spread([(index,) for index in range(10)], 4))
        [0, 2, 5, 7]
    """
    count = min(count, len(source))
    return (source[place * len(source) // count][0] for place in range(count))


def calibration_images(images: Iterable[ImageLike], task: str, image_size: int) -> Iterator[Tensor]:
    """Yield images for the argument ``calibration`` of `moe_vision.export`, fitted as `moe_vision.predict` does.

    Args:
        images: A hundred are enough, such as the network will see: paths, arrays (H, W, 3) of uint8 or tensors
            (3, H, W) of uint8 or of floats in [0, 1]; RGB.
        task: Task of the network.
        image_size: Side in pixels of the square that they are fitted to, a multiple of 32.

    Shape:
        - Output: images (1, 3, image_size, image_size)

    Examples:
        >>> import torch
        >>> from moe_vision.exporting import calibration_images
        >>> [image.shape for image in calibration_images([torch.rand(3, 40, 60)], "detect", 64)]
        [torch.Size([1, 3, 64, 64])]
    """
    transform = classify_transform(image_size) if task == "classify" else eval_transform(image_size)
    for image in images:
        yield transform(to_image(image)).as_subclass(Tensor)[None]
