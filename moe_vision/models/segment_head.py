# SPDX-License-Identifier: Apache-2.0
"""The segmentation head: a detection head, prototype masks, and the coefficients that mix them (arXiv 1904.02689).

Axes: B images, N anchor points of all levels in the order P3, P4, P5 and row by row, R bins a box side.
"""

from typing import NamedTuple, cast

from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct
from moe_vision.models.detect_head import DetectHead, DetectMaps, join_levels, regression_tower

NUM_PROTOTYPES = 32


class SegmentOutput(NamedTuple):
    """What a segmentation network returns in ``eval()``, before suppression.

    The mask of an instance is the sum of the prototypes times its coefficients, above 0 and inside its box.

    Attributes:
        boxes: Boxes, (B, N, 4), xyxy in pixels of the network's input; they may reach beyond it.
        scores: Scores of the classes, (B, N, num_classes), in [0, 1].
        coefficients: Coefficients of the prototypes, (B, N, 32).
        prototypes: Prototype masks, (B, 32, H / 4, W / 4).

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> output = create_model("yolo_master_n", task="segment", num_classes=3).eval()(torch.rand(2, 3, 64, 64))
        >>> output.coefficients.shape, output.prototypes.shape
        (torch.Size([2, 84, 32]), torch.Size([2, 32, 16, 16]))
    """

    boxes: Tensor
    scores: Tensor
    coefficients: Tensor
    prototypes: Tensor


class SegmentMaps(NamedTuple):
    """What a segmentation network returns in ``train()``.

    Attributes:
        detection: The raw maps of the detection head.
        coefficients: Coefficients of the prototypes, (B, N, 32).
        prototypes: Prototype masks, (B, 32, H / 4, W / 4).

    Examples:
        >>> import torch
        >>> from moe_vision import create_model
        >>> maps = create_model("yolo_master_n", task="segment", num_classes=3).train()(torch.rand(2, 3, 64, 64))
        >>> maps.detection.scores.shape, maps.coefficients.shape
        (torch.Size([2, 84, 3]), torch.Size([2, 84, 32]))
    """

    detection: DetectMaps
    coefficients: Tensor
    prototypes: Tensor

    def output(self) -> SegmentOutput:
        """Return what the maps mean: boxes, scores in [0, 1], and what the masks are made of."""
        return SegmentOutput(*self.detection.output(), self.coefficients, self.prototypes)


class SegmentHead(nn.Module):
    """A `DetectHead`, prototypes from the finest level, and a tower a level for the coefficients.

    Args:
        in_channels: Channels of the three levels.
        num_classes: Number of classes.
        prototype_width: Channels of the layers before the prototypes.
        reg_max: Bins R of a box side; 1 for a number in place of a distribution.

    Shape:
        - Input: three maps (B, C_l, H / stride_l, W / stride_l)
        - Output: `SegmentMaps`

    Examples:
        >>> import torch
        >>> from moe_vision.models import SegmentHead
        >>> head = SegmentHead((64, 128, 128), num_classes=3, prototype_width=64)
        >>> maps = head([torch.rand(1, 64, 8, 8), torch.rand(1, 128, 4, 4), torch.rand(1, 128, 2, 2)])
        >>> maps.prototypes.shape
        torch.Size([1, 32, 16, 16])
    """

    def __init__(
        self, in_channels: tuple[int, int, int], num_classes: int, prototype_width: int, reg_max: int = 16
    ) -> None:
        super().__init__()
        coefficient_width = max(in_channels[0] // 4, NUM_PROTOTYPES)
        self.detection = DetectHead(in_channels, num_classes, reg_max)
        self.prototypes = nn.Sequential(
            ConvNormAct(in_channels[0], prototype_width, 3),
            nn.ConvTranspose2d(prototype_width, prototype_width, 2, stride=2),
            ConvNormAct(prototype_width, prototype_width, 3),
            ConvNormAct(prototype_width, NUM_PROTOTYPES),
        )
        self.coefficient_towers = nn.ModuleList(
            regression_tower(width, coefficient_width, NUM_PROTOTYPES) for width in in_channels
        )

    def forward(self, features: tuple[Tensor, ...] | list[Tensor]) -> SegmentMaps:
        """Return the raw maps of the levels, joined along the anchor points, and the prototypes."""
        coefficients = join_levels(self.coefficient_towers, features)
        return SegmentMaps(cast(DetectMaps, self.detection(features)), coefficients, self.prototypes(features[0]))
