# SPDX-License-Identifier: Apache-2.0
"""The convolution the YOLO networks are made of."""

from typing import cast

from torch import Tensor, nn

from moe_vision.layers.fusion import fold_norm, in_place


class YOLOBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the constants of the YOLO family, eps 1e-3 and momentum 0.03.

    Args:
        num_features: Channels of the input.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Shape:
        - Input: (B, num_features, H, W)
        - Output: as the input

    Examples:
        >>> from moe_vision.layers.convolution import YOLOBatchNorm2d
        >>> YOLOBatchNorm2d(8).eps
        0.001
    """

    def __init__(self, num_features: int, device: object = None, dtype: object = None) -> None:
        super().__init__(num_features, eps=1e-3, momentum=0.03, device=device, dtype=dtype)


class ConvNormAct(nn.Module):
    """Convolution without bias and with "same" padding, BatchNorm, SiLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        act: Apply SiLU.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, ceil(H / stride), ceil(W / stride))

    Examples:
        >>> import torch
        >>> from moe_vision.layers.convolution import ConvNormAct
        >>> ConvNormAct(3, 16, 3, stride=2)(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 16, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = YOLOBatchNorm2d(out_channels)
        self.act: nn.Module = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved, normalised and activated feature map."""
        return cast(Tensor, self.act(self.norm(self.conv(x))))

    def zero_init(self) -> None:
        """Start with zeros as output: a residual branch that ends in this layer starts as the identity.

        Without it the YOLO networks, deep chains of such branches, hardly learn to classify from scratch.
        """
        nn.init.zeros_(cast(nn.BatchNorm2d, self.norm).weight)

    def reparameterize(self) -> None:
        """Fold the norm into the convolution, see `moe_vision.fuse`."""
        self.conv, self.norm = fold_norm(self.conv, self.norm)
        self.act = in_place(self.act)
