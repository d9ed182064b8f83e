# SPDX-License-Identifier: Apache-2.0
"""Images as a network takes them, for the ranges of its features."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from moe_vision.data import ImageLike, eval_transform, to_image
from moe_vision.data.transforms import classify_transform


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
