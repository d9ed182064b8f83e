# SPDX-License-Identifier: Apache-2.0
"""The convolutional router of the YOLO-Master networks v0.1.

Axes: B images, E experts, C channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision._types import LayerFactory
from moe_vision.layers.checks import check_feature_map, check_positive
from moe_vision.layers.fusion import fold_norm
from moe_vision.layers.precision import without_autocast

POOL = 4  # pixels a side that the router averages before it convolves


class PooledRouter(nn.Module):
    """Score the experts by a small convolutional network on the map, averaged 4 x 4.

    Average pooling (left out for maps of at most 4 pixels a side), 3 x 3 convolution, norm, SiLU, 1 x 1 convolution to
    E channels, norm, and the mean over the map. The released networks add noise to the logits in training; we do not.

    Args:
        in_channels: Channels C of the feature map.
        num_experts: Experts E to score.
        reduction: Divisor of the hidden width, which is at least 8.
        norm_layer: Factory of norms, called with the number of channels.

    Shape:
        - Input: (B, C, H, W)
        - Output: logits (B, E), fp32

    Raises:
        ValueError: If a size is below 1, or the input is not (B, in_channels, H, W).

    Examples:
        >>> import torch
        >>> from moe_vision.layers import PooledRouter
        >>> PooledRouter(16, num_experts=4)(torch.rand(2, 16, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, in_channels: int, num_experts: int, *, reduction: int = 8, norm_layer: LayerFactory = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_experts=num_experts, reduction=reduction)
        self.in_channels = in_channels
        self.num_experts = num_experts
        hidden = max(in_channels // reduction, 8)
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False)
        self.norm1 = norm_layer(hidden)
        self.conv2 = nn.Conv2d(hidden, num_experts, 1, bias=False)
        self.norm2 = norm_layer(num_experts)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out")
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, E) of a feature map (B, C, H, W)."""
        check_feature_map(x, self.in_channels)
        with without_autocast(x):
            x = x.to(self.conv1.weight.dtype)
            large = (x.shape[2] > POOL) & (x.shape[3] > POOL)
            if torch.compiler.is_exporting() and isinstance(large, torch.SymBool):  # a graph for maps of any size
                return cast(Tensor, torch.cond(cast(bool, large), self._pooled, self._whole, (x,)))
            return self._pooled(x) if large else self._whole(x)

    def _pooled(self, x: Tensor) -> Tensor:
        return self._whole(F.avg_pool2d(x, POOL))

    def _whole(self, x: Tensor) -> Tensor:
        maps = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        return cast(Tensor, maps.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32)))

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions, see `moe_vision.fuse`."""
        self.conv1, self.norm1 = fold_norm(self.conv1, self.norm1)
        self.conv2, self.norm2 = fold_norm(self.conv2, self.norm2)
