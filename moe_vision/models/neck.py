# SPDX-License-Identifier: Apache-2.0
"""The neck: features of three strides exchange what they know, first from coarse to fine, then back."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct
from moe_vision.layers.csp import C3k2
from moe_vision.models.blocks import es_moe
from moe_vision.models.config import YOLOMasterConfig


class PathAggregationNeck(nn.Module):
    """Top-down and bottom-up paths with `C3k2` blocks (PANet, arXiv 1803.01534).

    Args:
        in_channels: Channels of P3, P4 and P5.
        config: The architecture.

    Shape:
        - Input: P3 (B, C3, H, W), P4 (B, C4, H / 2, W / 2), P5 (B, C5, H / 4, W / 4)
        - Output: three maps of the same resolutions

    Examples:
        >>> import torch
        >>> from moe_vision.models import PathAggregationNeck, named_config
        >>> neck = PathAggregationNeck((128, 128, 256), named_config("yolo_master_n"))
        >>> maps = neck(torch.rand(1, 128, 8, 8), torch.rand(1, 128, 4, 4), torch.rand(1, 256, 2, 2))
        >>> [tuple(features.shape[1:]) for features in maps]
        [(64, 8, 8), (128, 4, 4), (128, 2, 2)]
    """

    def __init__(self, in_channels: tuple[int, int, int], config: YOLOMasterConfig) -> None:
        super().__init__()
        in3, in4, in5 = in_channels
        out3, out4, out5 = self.out_channels = config.neck_channels
        self.top_down4 = _fuse(in5 + in4, out4, config)
        self.top_down3 = _fuse(out4 + in3, out3, config)
        self.downsample3 = ConvNormAct(out3, out3, 3, stride=2)
        self.bottom_up4 = _fuse(out3 + out4, out4, config)
        self.downsample4 = ConvNormAct(out4, out4, 3, stride=2)
        self.bottom_up5 = _fuse(out4 + in5, out5, config)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three fused maps."""
        middle = self.top_down4(torch.cat([_upsample(p5), p4], dim=1))
        fine = self.top_down3(torch.cat([_upsample(middle), p3], dim=1))
        middle = self.bottom_up4(torch.cat([self.downsample3(fine), middle], dim=1))
        coarse = self.bottom_up5(torch.cat([self.downsample4(middle), p5], dim=1))
        return fine, middle, cast(Tensor, coarse)


def _fuse(in_channels: int, out_channels: int, config: YOLOMasterConfig) -> nn.Module:
    block = C3k2(in_channels, out_channels, config.repeats(2), c3k=True)
    if config.placement not in ("neck", "both"):
        return block
    return nn.Sequential(block, es_moe(out_channels, config))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
