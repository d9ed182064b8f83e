# SPDX-License-Identifier: Apache-2.0
"""The router, which scores the experts for an image, and the record of what was decided.

Axes: B images, E experts, K selected experts, C channels, H x W pixels of a feature map.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision.layers.checks import check_feature_map, check_positive
from moe_vision.layers.precision import without_autocast


class Routing(NamedTuple):
    """What one forward of a layer decided for each image of the batch.

    Attributes:
        logits: Scores of the experts, (B, E), fp32.
        probs: Softmax of the logits over all experts, (B, E); the balance losses read these.
        weights: Weights of the mixture, (B, E), 0 for an unselected expert under hard gating.
        indices: Selected experts, best first, (B, K), int64.

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate
        >>> routing = TopKGate(top_k=1)(torch.tensor([[0.0, 1.0]]))
        >>> routing.indices
        tensor([[1]])
    """

    logits: Tensor
    probs: Tensor
    weights: Tensor
    indices: Tensor

    @property
    def selected(self) -> Tensor:
        """Whether an image selects an expert and gives it a weight, (B, E), bool."""
        listed = torch.zeros_like(self.weights, dtype=torch.bool).scatter(1, self.indices, True)
        return listed & (self.weights > 0)


class DynamicRouter(nn.Module):
    """Score the experts for each image from its globally pooled features (section 3.2 of arXiv 2512.23273).

    Global average pooling, a linear layer to ``max(in_channels // reduction, 8)`` features, SiLU and a linear
    layer to one logit an expert. All of it runs in fp32 (or fp64 for fp64 input), also under autocast and for
    half-precision weights, since ties between rounded logits would select other experts.

    Args:
        in_channels: Channels C of the feature map.
        num_experts: Experts E to score.
        reduction: Divisor of the hidden width, the paper's gamma.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Shape:
        - Input: (B, C, H, W)
        - Output: logits (B, E), fp32

    Raises:
        ValueError: If a size is below 1, or the input is not (B, in_channels, H, W).

    Examples:
        >>> import torch
        >>> from moe_vision import DynamicRouter
        >>> DynamicRouter(16, num_experts=4)(torch.rand(2, 16, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        *,
        reduction: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_experts=num_experts, reduction=reduction)
        self.in_channels = in_channels
        self.num_experts = num_experts
        hidden = max(in_channels // reduction, 8)
        self.fc1 = nn.Linear(in_channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, num_experts, device=device, dtype=dtype)
        # A random bias would send every image to the same experts before the router has learnt anything.
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, E) of a feature map (B, C, H, W)."""
        check_feature_map(x, self.in_channels)
        precise = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            pooled = x.mean(dim=(2, 3), dtype=precise)
            hidden = F.silu(_linear(pooled, self.fc1))
            return _linear(hidden, self.fc2)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Apply ``layer`` in the precision of ``x``, whatever the precision its parameters are stored in."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
