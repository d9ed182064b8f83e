# SPDX-License-Identifier: Apache-2.0
"""The classification head."""

from typing import cast

from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct

HIDDEN_CHANNELS = 1280


class ClassifyHead(nn.Module):
    """A 1 x 1 convolution to 1280 channels, their mean over the image, and a linear layer.

    Args:
        in_channels: Channels of the coarsest features.
        num_classes: Number of classes; 0 leaves out the linear layer.
        drop_rate: Probability of dropping a channel of the mean in training.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: logits (B, num_classes), or with ``pre_logits`` what the linear layer would see, (B, 1280)

    Examples:
        >>> import torch
        >>> from moe_vision.models import ClassifyHead
        >>> ClassifyHead(256, num_classes=10)(torch.rand(2, 256, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.conv: nn.Module = ConvNormAct(in_channels, HIDDEN_CHANNELS)
        self.global_pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drop = nn.Dropout(drop_rate)
        self.linear: nn.Module = nn.Linear(HIDDEN_CHANNELS, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of the classes, or the features they come from."""
        x = self.drop(self.global_pool(self.conv(x)))
        return x if pre_logits else cast(Tensor, self.linear(x))
