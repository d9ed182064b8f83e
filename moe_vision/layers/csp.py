# SPDX-License-Identifier: Apache-2.0
"""Cross-stage-partial blocks of the YOLO family: part of the channels passes the inner blocks by."""

from typing import cast

import torch
from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct


class Bottleneck(nn.Module):
    """Two 3 x 3 convolutions with a residual connection; before training an identity.

    Args:
        channels: Channels of input and output.
        expansion: Width of the first convolution's output relative to ``channels``.

    Attributes:
        drop_path: Stochastic depth of the residual branch, an identity unless replaced.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> import torch
        >>> from moe_vision.layers.csp import Bottleneck
        >>> Bottleneck(8)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, channels: int, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = ConvNormAct(channels, hidden, 3)
        self.conv2 = ConvNormAct(hidden, channels, 3)
        self.conv2.zero_init()
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus its two convolutions."""
        return x + cast(Tensor, self.drop_path(self.conv2(self.conv1(x))))


class C3k(nn.Module):
    """Three 1 x 1 convolutions around a chain of bottlenecks.

    Args:
        channels: Channels of input and output.
        depth: Number of bottlenecks.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> import torch
        >>> from moe_vision.layers.csp import C3k
        >>> C3k(8)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = ConvNormAct(channels, hidden)
        self.conv2 = ConvNormAct(channels, hidden)
        self.conv3 = ConvNormAct(2 * hidden, channels)
        self.blocks = nn.Sequential(*(Bottleneck(hidden, expansion=1.0) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined main and side path."""
        return cast(Tensor, self.conv3(torch.cat([self.blocks(self.conv1(x)), self.conv2(x)], dim=1)))


class C3k2(nn.Module):
    """Split the channels in two, chain inner blocks on one half, and join everything that came about.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        depth: Number of inner blocks.
        expansion: Width of a half relative to ``out_channels``.
        c3k: Use `C3k` as inner block instead of `Bottleneck`.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, H, W)

    Examples:
        >>> import torch
        >>> from moe_vision.layers.csp import C3k2
        >>> C3k2(8, 16)(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 16, 6, 6])
    """

    def __init__(
        self, in_channels: int, out_channels: int, depth: int = 1, expansion: float = 0.5, c3k: bool = False
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.conv1 = ConvNormAct(in_channels, 2 * hidden)
        self.conv2 = ConvNormAct((2 + depth) * hidden, out_channels)
        self.blocks = nn.ModuleList(C3k(hidden) if c3k else Bottleneck(hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined halves and inner outputs."""
        parts = list(self.conv1(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return cast(Tensor, self.conv2(torch.cat(parts, dim=1)))
