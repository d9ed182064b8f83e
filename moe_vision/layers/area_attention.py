# SPDX-License-Identifier: Apache-2.0
"""Area attention and its block (YOLOv12, arXiv 2502.12524).

Axes: B images, N = H W tokens, heads of 32 channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct

HEAD_CHANNELS = 32


class AreaAttention(nn.Module):
    """Self-attention within equal bands of the feature map, taken row by row, plus a convolution of the values.

    Args:
        channels: Channels of input and output, a multiple of 32.
        area: Number of bands; 1 is attention over the whole map.

    Shape:
        - Input: (B, channels, H, W), H W a multiple of ``area``
        - Output: as the input

    Raises:
        ValueError: If ``channels`` is not a multiple of 32.

    Examples:
        >>> import torch
        >>> from moe_vision.layers.area_attention import AreaAttention
        >>> AreaAttention(64, area=4)(torch.rand(1, 64, 8, 6)).shape
        torch.Size([1, 64, 8, 6])
    """

    def __init__(self, channels: int, area: int = 1) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(f"channels must be a multiple of {HEAD_CHANNELS}, got {channels}")
        self.area = area
        self.qkv = ConvNormAct(channels, 3 * channels, act=False)
        self.proj = ConvNormAct(channels, channels, act=False)
        self.position = ConvNormAct(channels, channels, 7, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended feature map."""
        height, width = x.shape[2:]
        # Tokens by channels: no copy of a channels_last map, and what the kernels of the attention are fastest with.
        tokens = self.qkv(x).flatten(2).transpose(1, 2).contiguous()
        # Each head holds its queries, keys and values side by side.
        heads = "b (area n) (head part c) -> part (b area) head n c"
        q, k, v = rearrange(tokens, heads, part=3, c=HEAD_CHANNELS, area=self.area)
        attended, values = (
            rearrange(t, "(b area) head n c -> b (area n) (head c)", area=self.area)
            .transpose(1, 2)
            .unflatten(2, (height, width))
            for t in (F.scaled_dot_product_attention(q, k, v), v)
        )
        return cast(Tensor, self.proj(attended + self.position(values)))


class AreaBlock(nn.Module):
    """Area attention and a two-layer perceptron, each with a residual connection; before training an identity.

    Args:
        channels: Channels of input and output, a multiple of 32.
        area: Number of bands of the attention.
        mlp_ratio: Hidden width of the perceptron relative to ``channels``.

    Attributes:
        drop_path: Stochastic depth of both residual branches, an identity unless replaced.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> import torch
        >>> from moe_vision.layers.area_attention import AreaBlock
        >>> AreaBlock(64)(torch.rand(1, 64, 4, 4)).shape
        torch.Size([1, 64, 4, 4])
    """

    def __init__(self, channels: int, area: int = 1, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.attn = AreaAttention(channels, area)
        last = ConvNormAct(hidden, channels, act=False)
        self.mlp = nn.Sequential(ConvNormAct(channels, hidden), last)
        self.drop_path: nn.Module = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
        self.attn.proj.zero_init()
        last.zero_init()

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map after attention and perceptron."""
        x = x + self.drop_path(self.attn(x))
        return x + cast(Tensor, self.drop_path(self.mlp(x)))


class A2C2f(nn.Module):
    """A chain of pairs of `AreaBlock`, all of whose outputs are joined.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; half of it is a multiple of 32.
        depth: Number of pairs.
        area: Number of bands of the attention.
        mlp_ratio: Hidden width of the perceptrons relative to their input.
        residual: Add the input, with the block's output scaled by a learnt factor a channel, from 0.01.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, H, W)

    Raises:
        ValueError: If ``out_channels`` is not a multiple of 64.

    Examples:
        >>> import torch
        >>> from moe_vision.layers.area_attention import A2C2f
        >>> A2C2f(64, 64, area=4)(torch.rand(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int = 1,
        area: int = 1,
        mlp_ratio: float = 2.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if out_channels % (2 * HEAD_CHANNELS):
            raise ValueError(f"out_channels must be a multiple of {2 * HEAD_CHANNELS}, got {out_channels}")
        hidden = out_channels // 2
        self.conv1 = ConvNormAct(in_channels, hidden)
        self.conv2 = ConvNormAct((1 + depth) * hidden, out_channels)
        self.gamma = nn.Parameter(torch.full((out_channels,), 0.01)) if residual else None
        self.blocks = nn.ModuleList(
            nn.Sequential(AreaBlock(hidden, area, mlp_ratio), AreaBlock(hidden, area, mlp_ratio)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined outputs of the pairs."""
        parts = [self.conv1(x)]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        y = cast(Tensor, self.conv2(torch.cat(parts, dim=1)))
        return y if self.gamma is None else torch.addcmul(x, self.gamma[:, None, None], y)
