# SPDX-License-Identifier: Apache-2.0
"""The detection head: box sides and class scores at every anchor point.

Axes: B images, N anchor points of all levels in the order P3, P4, P5 and row by row, R bins a box side.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct
from moe_vision.models.anchors import STRIDES, anchor_points, decode_boxes


class DetectOutput(NamedTuple):
    """What a detector returns in ``eval()``, before suppression.

    Attributes:
        boxes: Boxes, (B, N, 4), xyxy in pixels of the network's input; they may reach beyond it.
        scores: Scores of the classes, (B, N, num_classes), in [0, 1].

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> output = create_model("yolo_master_n", num_classes=3).eval()(torch.rand(2, 3, 64, 64))
        >>> output.boxes.shape, output.scores.shape
        (torch.Size([2, 84, 4]), torch.Size([2, 84, 3]))
    """

    boxes: Tensor
    scores: Tensor


class DetectMaps(NamedTuple):
    """What a detector returns in ``train()``: the raw maps of the levels.

    Attributes:
        sides: Logits of the distance to each side (left, top, right, bottom) in strides, (B, N, 4, R).
        boxes: The boxes that the expected distances give, (B, N, 4), xyxy in pixels, fp32.
        scores: Logits of the classes, (B, N, num_classes).
        points: Anchor points, (N, 2), x and y in pixels.
        strides: Stride of each anchor point's level in pixels, (N,).

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> maps = create_model("yolo_master_n", num_classes=3).train()(torch.rand(2, 3, 64, 64))
        >>> maps.sides.shape, maps.scores.shape
        (torch.Size([2, 84, 4, 16]), torch.Size([2, 84, 3]))
    """

    sides: Tensor
    boxes: Tensor
    scores: Tensor
    points: Tensor
    strides: Tensor

    def output(self) -> DetectOutput:
        """Return what the maps mean: boxes, and scores in [0, 1]."""
        return DetectOutput(self.boxes, self.scores.float().sigmoid())


class DetectHead(nn.Module):
    """Decoupled head: for each level one tower for the box sides and one for the classes.

    Boxes start about 4 strides wide, as RetinaNet's anchors are (arXiv 1708.02002, section 4).

    Args:
        in_channels: Channels of the three levels.
        num_classes: Number of classes.
        reg_max: Bins R of a box side; 1 for a number in place of a distribution.

    Shape:
        - Input: three maps (B, C_l, H / stride_l, W / stride_l)
        - Output: `DetectMaps`

    Examples:
        >>> import torch
        >>> from moe_vision.models import DetectHead
        >>> head = DetectHead((64, 128, 128), num_classes=3)
        >>> maps = head([torch.rand(1, 64, 8, 8), torch.rand(1, 128, 4, 4), torch.rand(1, 128, 2, 2)])
        >>> maps.scores.shape
        torch.Size([1, 84, 3])
    """

    def __init__(self, in_channels: tuple[int, int, int], num_classes: int, reg_max: int = 16) -> None:
        super().__init__()
        box_width = max(16, in_channels[0] // 4, 4 * 16)
        class_width = max(in_channels[0], min(num_classes, 100))
        self.box_towers = nn.ModuleList(regression_tower(width, box_width, 4 * reg_max) for width in in_channels)
        self.class_towers = nn.ModuleList(_class_tower(width, class_width, num_classes) for width in in_channels)
        # A parameter that is never trained, so that it is counted and stored as in the published networks.
        self.bins = nn.Parameter(torch.arange(reg_max, dtype=torch.float32), requires_grad=False)
        self._init_biases(num_classes)

    def forward(self, features: tuple[Tensor, ...] | list[Tensor]) -> DetectMaps:
        """Return the raw maps of the levels, joined along the anchor points."""
        sides = rearrange(join_levels(self.box_towers, features), "b n (side bin) -> b n side bin", side=4)
        scores = join_levels(self.class_towers, features)
        points, strides = anchor_points([(x.shape[2], x.shape[3]) for x in features], features[0].device)
        return DetectMaps(sides, decode_boxes(sides, self.bins, points, strides), scores, points, strides)

    def _init_biases(self, num_classes: int) -> None:
        """Start with boxes of about 4 strides, and with the class scores of about 5 objects in a 640 x 640 image."""
        for box_tower, class_tower, stride in zip(self.box_towers, self.class_towers, STRIDES, strict=True):
            box_out, class_out = cast(nn.Sequential, box_tower)[-1], cast(nn.Sequential, class_tower)[-1]
            with torch.no_grad():
                cast(Tensor, box_out.bias).copy_(_starting_sides(self.bins).repeat(4))
            nn.init.constant_(cast(Tensor, class_out.bias), math.log(5 / num_classes / (640 / stride) ** 2))


def _starting_sides(bins: Tensor) -> Tensor:
    """Return the logits of a side's bins that mean a distance of 2 strides, as from the centre of RetinaNet's anchors.

    Even distributions over 16 bins would mean 7.5: boxes larger than most objects of small images, which then learn
    slowly, since an object has the weight of its best box's CIoU.
    """
    if len(bins) == 1:
        return torch.full_like(bins, math.log(math.expm1(2)))  # softplus makes it 2
    return -math.log(1.5) * bins  # a geometric distribution


def join_levels(towers: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Return what the towers give for their levels, a row for each anchor point.

    Args:
        towers: A module for each level.
        features: The maps of the levels.

    Shape:
        - Input: maps (B, C_l, H_l, W_l), of which the towers make (B, C, H_l, W_l)
        - Output: (B, N, C)

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.models.detect_head import join_levels
        >>> levels = torch.rand(1, 8, 4, 4), torch.rand(1, 8, 2, 2)
        >>> join_levels(nn.ModuleList([nn.Identity(), nn.Identity()]), levels).shape
        torch.Size([1, 20, 8])
    """
    # Transposed before they are joined: of channels_last maps these are views.
    return torch.cat([tower(x).flatten(2).transpose(1, 2) for tower, x in zip(towers, features, strict=True)], dim=1)


def regression_tower(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions and a linear one: from a level's features to numbers at its points.

    Args:
        in_channels: Channels of the level.
        width: Channels in between.
        out_channels: Numbers a point.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, H, W)

    Examples:
        >>> import torch
        >>> from moe_vision.models.detect_head import regression_tower
        >>> regression_tower(64, 32, 32)(torch.rand(1, 64, 8, 8)).shape
        torch.Size([1, 32, 8, 8])
    """
    return nn.Sequential(
        ConvNormAct(in_channels, width, 3), ConvNormAct(width, width, 3), nn.Conv2d(width, out_channels, 1)
    )


def _class_tower(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, 3, groups=in_channels),
        ConvNormAct(in_channels, width),
        ConvNormAct(width, width, 3, groups=width),
        ConvNormAct(width, width),
        nn.Conv2d(width, num_classes, 1),
    )
