# SPDX-License-Identifier: Apache-2.0
"""From coefficients and prototypes to binary masks, on any grid of pixels, and on to polygons.

Axes: D instances, H and W pixels of the target image, h and w cells of the prototypes, each of 4 x 4 pixels of the
network's input.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_vision.layers.precision import without_autocast
from moe_vision.losses.segmentation import CELL


class Window(NamedTuple):
    """The mask of one instance inside its box: the pixels from (left, top) on.

    Attributes:
        mask: True where the instance is, (height, width), bool; the sides may be 0.
        left: Column of the first pixel in the image.
        top: Row of the first pixel in the image.

    Examples:
        >>> import torch
        >>> from moe_vision.tasks.masks import Window
        >>> Window(torch.ones(2, 3, dtype=torch.bool), left=4, top=5).mask.shape
        torch.Size([2, 3])
    """

    mask: Tensor
    left: int
    top: int


def mask_windows(
    coefficients: Tensor,
    prototypes: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    offset: tuple[float, float] = (0.0, 0.0),
) -> Iterator[Window]:
    """Render instance after instance on the pixels of a target image, inside its box alone.

    The logits of an instance are the sum of the prototypes times its coefficients, interpolated bilinearly at the
    centre of each pixel; the instance is where they are above 0 and the centre lies in the box. The target image may be
    the original one: then no mask at the network's resolution is ever made, and memory is that of one box.

    Args:
        coefficients: Coefficients of the prototypes.
        prototypes: Prototype masks of the image.
        boxes: Boxes, xyxy in pixels of the target image; they may reach beyond it.
        size: Height and width of the target image in pixels.
        scale: Pixels of the network's input for a pixel of the target image, along x and y.
        offset: Where the target image's left top corner lies in the network's input, x and y in pixels of that.

    Shape:
        - coefficients: (D, 32)
        - prototypes: (32, h, w)
        - boxes: (D, 4)
        - Output: D windows

    Examples:
        >>> import torch
        >>> from moe_vision.tasks.masks import mask_windows
        >>> box = torch.tensor([[2.0, 3.0, 6.0, 9.0]])
        >>> (window,) = mask_windows(torch.ones(1, 32), torch.ones(32, 4, 4), box, (16, 16))
        >>> window.mask.shape, window.left, window.top
        (torch.Size([6, 4]), 2, 3)
    """
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    # The first pixel whose centre lies in the box, and the first beyond it.
    bounds = torch.minimum((boxes.nan_to_num() - 0.5).ceil().clamp(min=0), limits).long().tolist()
    for mixed, (left, top, right, bottom) in zip(coefficients, bounds, strict=True):
        columns = _cells(left, right, scale[0], offset[0], prototypes.shape[2], prototypes)
        rows = _cells(top, bottom, scale[1], offset[1], prototypes.shape[1], prototypes)
        yield Window(_interpolate(mixed, prototypes, rows, columns) > 0, left, top)


def render_masks(
    coefficients: Tensor,
    prototypes: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    offset: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Render instances on the pixels of a target image, as `mask_windows` does, into one tensor.

    Args:
        coefficients: Coefficients of the prototypes.
        prototypes: Prototype masks of the image.
        boxes: Boxes, xyxy in pixels of the target image; they may reach beyond it.
        size: Height and width of the target image in pixels.
        scale: Pixels of the network's input for a pixel of the target image, along x and y.
        offset: Where the target image's left top corner lies in the network's input, x and y in pixels of that.

    Shape:
        - coefficients: (D, 32)
        - prototypes: (32, h, w)
        - boxes: (D, 4)
        - Output: (D, H, W), bool

    Examples:
        >>> import torch
        >>> from moe_vision.tasks.masks import render_masks
        >>> box = torch.tensor([[2.0, 3.0, 6.0, 9.0]])
        >>> render_masks(torch.ones(1, 32), torch.ones(32, 4, 4), box, (16, 16)).sum()
        tensor(24)
    """
    windows = mask_windows(coefficients, prototypes, boxes, size, scale=scale, offset=offset)
    return paste_windows(windows, len(boxes), size).to(prototypes.device)


def paste_windows(windows: Iterable[Window], count: int, size: tuple[int, int]) -> Tensor:
    """Put ``count`` windows into masks of a whole image, (count, H, W), bool, on the CPU."""
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask, (window, left, top) in zip(masks, windows, strict=True):
        mask[top : top + window.shape[0], left : left + window.shape[1]] = window
    return masks


def mask_polygons(mask: Tensor, *, left: int = 0, top: int = 0) -> list[Tensor]:
    """Outline a mask: a closed polygon for each outer contour and for each hole.

    The outlines run half-way between the centres of pixels inside and outside, so filling all polygons of a mask by the
    even-odd rule and asking which centres lie within gives the mask back exactly. The shoelace formula gives an outer
    contour a positive area, and a hole a negative one. Contours are those of contourpy.

    Args:
        mask: True where the object is.
        left: Column of the mask's first pixel in the image, for the mask of a `Window`.
        top: Row of the mask's first pixel in the image.

    Shape:
        - mask: (H, W), bool
        - Output: polygons (n, 2), x and y in pixels, float32, the last corner joined to the first

    Raises:
        ModuleNotFoundError: If contourpy is not installed; the extra ``visualize`` has it.

    Examples:
        >>> import torch
        >>> from moe_vision.tasks.masks import mask_polygons
        >>> mask_polygons(torch.tensor([[False, True]]))[0].tolist()
        [[1.0, 0.5], [1.5, 0.0], [2.0, 0.5], [1.5, 1.0]]
    """
    import contourpy

    rows, columns = (mask.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return []
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ring = F.pad(mask.cpu().to(torch.uint8), (1, 1, 1, 1))  # so that every contour closes
    # The centre of the ring's first pixel is half a pixel above and to the left of the mask.
    corner = torch.tensor([left + columns[0] - 0.5, top + rows[0] - 0.5])
    outlines = contourpy.contour_generator(z=ring.numpy()).lines(0.5)
    return [torch.from_numpy(outline[:-1]).float() + corner for outline in outlines]


def _interpolate(coefficients: Tensor, prototypes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mix the prototypes and interpolate them, with the weights of `_cells` along both axes."""
    with without_autocast(prototypes):
        return rows @ torch.einsum("k,khw->hw", coefficients.float(), prototypes.float()) @ columns.T


def _cells(first: int, last: int, scale: float, offset: float, count: int, like: Tensor) -> Tensor:
    """Return how much each of ``count`` cells weighs at the centre of each pixel of [first, last), along one axis.

    Bilinear interpolation between the centres of cells, constant beyond the outermost ones; shape (pixels, cells).
    """
    centres = torch.arange(first, last, device=like.device, dtype=torch.float32) + 0.5
    positions = ((centres * scale + offset) / CELL - 0.5).clamp(0, count - 1)
    distances = positions[:, None] - torch.arange(count, device=like.device)
    return (1 - distances.abs()).clamp(min=0)
