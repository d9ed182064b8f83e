# SPDX-License-Identifier: Apache-2.0
"""Images as users hand them over: paths, arrays, tensors."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_vision.data.images import read_image
from moe_vision.runtime.images import check_pixels

ImageLike = str | Path | Tensor | NDArray[np.uint8]


def to_image(image: ImageLike) -> Tensor:
    """Return an image as a tensor of bytes.

    Args:
        image: A path, an RGB array or an RGB tensor.

    Shape:
        - array: (H, W, 3), uint8
        - tensor: (3, H, W), uint8, or float in [0, 1]
        - Output: (3, H, W), uint8

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be read as an image, or the array or tensor is not an RGB image of such values.

    Examples:
        >>> import torch
        >>> from moe_vision.data import to_image
        >>> to_image(torch.ones(3, 1, 1)).flatten()
        tensor([255, 255, 255], dtype=torch.uint8)
    """
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    return read_image(image)


def _from_array(pixels: NDArray[np.uint8]) -> Tensor:
    check_pixels(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous()


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"image must be a tensor (3, H, W), got {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"image must be a tensor of uint8 or of floats in [0, 1], got {image.dtype}")
    if not bool(((image >= 0) & (image <= 1)).all()):
        raise ValueError(
            f"image must be finite and in [0, 1] for a float tensor, got [{image.min():.3g}, {image.max():.3g}]; "
            "scale 0 to 255 down, or convert it to uint8"
        )
    return (image * 255).round().to(torch.uint8)
