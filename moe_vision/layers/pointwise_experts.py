# SPDX-License-Identifier: Apache-2.0
"""Experts without a spatial kernel, as in the YOLO-Master networks v0.1.

Axes: B images, E experts, K selected experts, C channels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from moe_vision._types import LayerFactory
from moe_vision.layers.checks import check_positive
from moe_vision.layers.experts import can_freeze, gathered_pointwise
from moe_vision.layers.fusion import fold_norm, in_place


class PointwiseExpert(nn.Module):
    """Two 1 x 1 convolutions with twice the width between them: convolution, norm, SiLU, convolution, norm.

    Args:
        channels: Channels of input and output.
        norm_layer: Factory of norms, called with the number of channels.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> import torch
        >>> from moe_vision.layers import PointwiseExpert
        >>> PointwiseExpert(8)(torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 8, 12, 10])
    """

    def __init__(self, channels: int, *, norm_layer: LayerFactory = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm1 = norm_layer(2 * channels)
        self.act: nn.Module = nn.SiLU()
        self.conv2 = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm2 = norm_layer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of one expert for a feature map."""
        return cast(Tensor, self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))

    def reparameterize(self) -> None:
        """Fold the norms into the convolutions, see `moe_vision.fuse`."""
        self.conv1, self.norm1 = fold_norm(self.conv1, self.norm1)
        self.conv2, self.norm2 = fold_norm(self.conv2, self.norm2)
        self.act = in_place(self.act)


class PointwiseExperts(nn.ModuleList):
    """A list of pointwise experts; ``experts[i]`` is the i-th alone.

    Args:
        channels: Channels of input and output.
        num_experts: Number of experts E.
        norm_layer: Factory of norms, called with the number of channels.

    Attributes:
        overwritable: Whether executors may write over the features; set by `moe_vision.fuse`.

    Shape:
        - Input: (B, channels, H, W)
        - Output: every expert's features, (B, E, channels, H, W)

    Raises:
        ValueError: If a size is below 1.

    Examples:
        >>> import torch
        >>> from moe_vision.layers import PointwiseExperts
        >>> PointwiseExperts(8, num_experts=3)(torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 3, 8, 12, 10])
    """

    kind = "pointwise"
    overwritable = False

    def __init__(self, channels: int, num_experts: int, *, norm_layer: LayerFactory = nn.BatchNorm2d) -> None:
        super().__init__()
        check_positive(channels=channels, num_experts=num_experts)
        self.extend(PointwiseExpert(channels, norm_layer=norm_layer) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of every expert, stacked to (B, E, C, H, W)."""
        return torch.stack([expert(x) for expert in self], dim=1)

    def gathered(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the features of the selected experts, (B, K, C, H, W), without a host transfer.

        The weights of the selected experts are gathered. Statistics of the norms must be frozen.
        """
        height, width = x.shape[2:]
        first, second = self._layers()
        y = x.flatten(2).unsqueeze(1)  # (B, 1, C, N)
        y = gathered_pointwise(y, first, indices)
        y = gathered_pointwise(cast(PointwiseExpert, self[0]).act(y), second, indices)
        return y.view(*y.shape[:-1], height, width)

    def can_gather(self) -> bool:
        """Tell whether `gathered` applies: the norms have running statistics or are folded."""
        return all(can_freeze(*layer) for layers in self._layers() for layer in layers)

    def _layers(self) -> tuple[list[tuple[nn.Conv2d, nn.Module]], list[tuple[nn.Conv2d, nn.Module]]]:
        experts = cast(list[PointwiseExpert], list(self))
        return [(expert.conv1, expert.norm1) for expert in experts], [
            (expert.conv2, expert.norm2) for expert in experts
        ]
