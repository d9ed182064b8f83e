# SPDX-License-Identifier: Apache-2.0
"""Anchor points, and the step from distances to boxes.

Axes: B images, N anchor points of all levels in the order P3, P4, P5 and row by row, R bins a box side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (8, 16, 32)


def anchor_points(sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the centres of all cells and their strides, in pixels.

    Args:
        sizes: Height and width of the maps of stride 8, 16 and 32.
        device: Where to make them.

    Shape:
        - Output: points (N, 2), x and y; strides (N,)

    Examples:
        >>> import torch
        >>> from moe_vision.models.anchors import anchor_points
        >>> anchor_points([(1, 2), (1, 1), (1, 1)], torch.device("cpu"))[0]
        tensor([[ 4.,  4.],
                [12.,  4.],
                [ 8.,  8.],
                [16., 16.]])
    """
    points, strides = [], []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], dim=-1).view(-1, 2))
        strides.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


def decode_boxes(sides: Tensor, bins: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Turn the distributions over the box sides into boxes, by their expectation (eq. 4 of arXiv 2006.04388).

    One bin is no distribution: with R = 1 the number itself stands for the distance, made positive by a softplus.

    Args:
        sides: Logits of the distance to each side, (B, N, 4, R).
        bins: Distance that each bin stands for, in strides, (R,).
        points: Anchor points, (N, 2), in pixels.
        strides: Stride of each point in pixels, (N,).

    Shape:
        - Output: boxes (B, N, 4), xyxy in pixels, fp32

    Examples:
        >>> import torch
        >>> from moe_vision.models.anchors import decode_boxes
        >>> even = torch.zeros(1, 1, 4, 3)  # over the bins 0, 1 and 2: a distance of 1 stride
        >>> decode_boxes(even, torch.arange(3.0), torch.tensor([[12.0, 20.0]]), torch.tensor([8.0]))
        tensor([[[ 4., 12., 20., 28.]]])
    """
    if len(bins) == 1:
        distances = F.softplus(sides[..., 0].float())
    else:  # a sum, not a matrix product, which autocast would run in half precision
        distances = (sides.float().softmax(dim=-1) * bins).sum(dim=-1)
    left_top, right_bottom = (distances * strides[:, None]).chunk(2, dim=-1)
    return torch.cat([points - left_top, points + right_bottom], dim=-1)
