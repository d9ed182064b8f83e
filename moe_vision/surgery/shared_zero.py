# SPDX-License-Identifier: Apache-2.0
"""Experts beside a module that goes on: they start with the weight 0, so that any module can have them."""

from typing import cast

import torch
from torch import Tensor, nn

from moe_vision.layers import ESMoE


class SharedZero(nn.Module):
    """A module, and an ES-MoE that is added to it with a scale a channel that starts at 0.

    Args:
        dense: A module from feature map to feature map.
        moe: The experts.
        after: Whether the experts take what the module gives, not what it takes.

    Attributes:
        scale: What each channel of the experts' features is multiplied by, (C,), of their type. It learns first:
            until it has left 0, the experts have no gradient but that of the auxiliary loss.

    Shape:
        - Input, output: as those of ``dense``

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision import ESMoE
        >>> from moe_vision.surgery import SharedZero
        >>> conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.rand(2, 8, 9, 9)
        >>> torch.equal(SharedZero(conv, ESMoE(8))(x), conv(x))
        True
    """

    def __init__(self, dense: nn.Module, moe: ESMoE, *, after: bool = False) -> None:
        super().__init__()
        self.dense = dense
        self.moe = moe.train(dense.training)
        self.training = dense.training  # norms inside may be frozen in eval
        self.after = after
        like = next(moe.parameters())
        self.scale = nn.Parameter(torch.zeros(moe.out_channels, device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the module, and of the experts, scaled."""
        y = cast(Tensor, self.dense(x))
        experts = cast(Tensor, self.moe(y if self.after else x))
        return y + self.scale[:, None, None] * experts
