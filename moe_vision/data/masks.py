# SPDX-License-Identifier: Apache-2.0
"""Masks on another grid, resized by the nearest pixel, whole or only the part that is needed; and their boxes."""

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes


def resize_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Resize masks so that each pixel takes the value at its centre.

    Unlike torch's mode "nearest" this has no shift, so masks lie on the images that were resized with them.

    Shape:
        - masks: (N, H, W)
        - Output: (N, height, width)

    Examples:
        >>> resize_masks(torch.tensor([[[0, 1, 1, 0]]]), 2, 8)[0, 0]
        tensor([0, 0, 1, 1, 1, 1, 0, 0])
    """
    return resize_crop(masks, height, width, (0, height), (0, width))


def resize_crop(masks: Tensor, height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Resize masks as `resize_masks` does, but compute only some rows and columns of the result.

    Shape:
        - masks: (N, H, W)
        - Output: (N, rows[1] - rows[0], columns[1] - columns[0])
    """
    y, x = _nearest(masks.shape[-2], height, rows), _nearest(masks.shape[-1], width, columns)
    return masks.index_select(-2, y).index_select(-1, x)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around masks, none of them empty, from the left of the first pixel to the right of the last.

    Shape:
        - masks: (N, H, W)
        - Output: (N, 4), xyxy

    Examples:
        >>> mask_boxes(torch.tensor([[[0, 1, 1, 0], [0, 0, 1, 0]]]))
        tensor([[1., 0., 3., 2.]])
    """
    return masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # type: ignore[no-any-return]


def _nearest(old: int, new: int, span: tuple[int, int]) -> Tensor:
    """Find the old pixels under the centres of the new ones."""
    return (2 * torch.arange(*span) + 1) * old // (2 * new)
