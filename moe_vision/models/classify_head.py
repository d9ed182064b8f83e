# SPDX-License-Identifier: Apache-2.0
"""The classification head."""

from typing import cast

from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct


class ClassifyHead(nn.Module):
    """A 1 x 1 convolution to 1280 channels, their mean over the image, and a linear layer.

    Args:
        in_channels: Channels of the coarsest features.
        num_classes: Number of classes.
        drop_rate: Probability of dropping a channel of the mean in training.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: logits (B, num_classes)

    Examples:
        >>> import torch
        >>> from moe_vision.models import ClassifyHead
        >>> ClassifyHead(256, num_classes=10)(torch.rand(2, 256, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_features = 1280
        self.conv = ConvNormAct(in_channels, self.num_features)
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(self.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        return cast(Tensor, self.linear(self.drop(self.conv(x).mean(dim=(2, 3)))))
