# SPDX-License-Identifier: Apache-2.0
"""Upcycling: a depthwise convolution becomes linear experts that each start as its copy (arXiv 2212.05055).

A copy is the kernel surrounded by zeros up to the expert's size, with the same bias. Since the weights of the selected
experts sum to 1 and the experts are linear, their mixture is the convolution, whatever the router says.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision.layers import DepthwiseExpert, ESMoE
from moe_vision.surgery.convolution import as_depthwise, norm_of
from moe_vision.surgery.grid import Grid


class DepthwiseESMoE(ESMoE):
    """Linear experts in the place of a depthwise convolution, with its stride, dilation, padding and bias.

    There is no norm of its own: the norm after the convolution sees what it saw. In eval the kernels that an image
    selects merge into one.

    Args:
        conv: The convolution whose place it takes; the experts are on its device, in its type, and start at random.
        num_experts: Number of experts E.
        top_k: Number of experts K that an image selects.
        kernel_sizes: Odd kernel sizes, one an expert; those that are smaller than the convolution's, or None, are as
            large as that, since no kernel is cropped.
        reduction: Divisor of the router's hidden width.

    Shape:
        - Input, output: as those of the convolution

    Raises:
        ValueError: As for `ESMoE`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.surgery.upcycle import DepthwiseESMoE
        >>> conv = nn.Conv2d(8, 8, 3, stride=2, padding=0, groups=8)
        >>> layer, x = DepthwiseESMoE(conv, kernel_sizes=(3, 3, 5, 7)), torch.rand(2, 8, 9, 9)
        >>> layer(x).shape == conv(x).shape
        True
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        kernel_sizes: Sequence[int] | None = None,
        reduction: int = 8,
    ) -> None:
        sizes = [1] * num_experts if kernel_sizes is None else kernel_sizes
        super().__init__(
            conv.in_channels,
            num_experts=num_experts,
            top_k=top_k,
            kernel_sizes=[max(size, conv.kernel_size[0]) for size in sizes],
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            reduction=reduction,
            expert="depthwise",
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.grid = Grid.of(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture of the experts, on the grid of the convolution."""
        if self.grid.padding_kind == "centred":
            return super().forward(x)
        (top, bottom, rows), (left, right, columns) = (self.grid.alignment(side) for side in x.shape[2:])
        return super().forward(F.pad(x, (left, right, top, bottom)))[:, :, rows, columns]


def upcycled(
    module: nn.Module,
    *,
    num_experts: int = 4,
    top_k: int = 2,
    kernel_sizes: Sequence[int] | None = None,
    reduction: int = 8,
    copy_kernel: bool = True,
    perturb: float = 0.0,
) -> nn.Module:
    """Return linear experts that compute what a depthwise convolution, or a block that amounts to one, computes.

    Args:
        module: What `as_depthwise` knows; it stays as it is. The norm that ends a block is taken over.
        num_experts: Number of experts E.
        top_k: Number of experts K that an image selects.
        kernel_sizes: Odd kernel sizes, one an expert, at least the convolution's; all as that if None.
        reduction: Divisor of the router's hidden width.
        copy_kernel: Start the experts as copies, not at random.
        perturb: Standard deviation of the noise that tells the copies apart, relative to the kernel's.

    Raises:
        ValueError: If the module is no depthwise convolution, or as for `DepthwiseESMoE`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.surgery.upcycle import upcycled
        >>> conv, x = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.rand(2, 8, 9, 9)
        >>> torch.allclose(upcycled(conv)(x), conv(x), atol=1e-6)
        True
    """
    conv = as_depthwise(module)
    if conv is None:
        raise ValueError(f"module must be a depthwise convolution, got a {type(module).__name__}")
    layer = DepthwiseESMoE(conv, num_experts=num_experts, top_k=top_k, kernel_sizes=kernel_sizes, reduction=reduction)
    if copy_kernel:
        _copy_kernel(conv, layer, perturb)
    layer.requires_grad_(conv.weight.requires_grad).train(module.training)
    norm = norm_of(module)
    if norm is None:
        return layer
    block = nn.Sequential(layer, norm)
    block.training = module.training  # its norm may be frozen in eval
    return block


@torch.no_grad()
def _copy_kernel(conv: nn.Conv2d, layer: DepthwiseESMoE, perturb: float) -> None:
    noise = perturb * conv.weight.std()
    for expert in cast(list[DepthwiseExpert], list(layer.experts)):
        kernel = conv.weight + noise * torch.randn_like(conv.weight) if perturb else conv.weight
        margin = (expert.conv_dw.kernel_size[0] - conv.kernel_size[0]) // 2
        expert.conv_dw.weight.copy_(F.pad(kernel, [margin] * 4))
        if conv.bias is not None:
            cast(Tensor, expert.conv_dw.bias).copy_(conv.bias)
