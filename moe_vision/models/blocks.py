# SPDX-License-Identifier: Apache-2.0
"""The ES-MoE block as the networks use it."""

from torch import nn

from moe_vision.layers import ESMoE
from moe_vision.layers.convolution import YOLOBatchNorm2d
from moe_vision.models.config import YOLOMasterConfig


def moe_block(channels: int, config: YOLOMasterConfig, *, wanted: bool) -> nn.Module:
    """Return the network's ES-MoE block for a place, or an identity where it has none.

    Args:
        channels: Channels of input and output.
        config: The architecture.
        wanted: Whether the network has a block there.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> from moe_vision.models import named_config
        >>> from moe_vision.models.blocks import moe_block
        >>> moe_block(64, named_config("yolo_master_n"), wanted=False)
        Identity()
    """
    if not wanted:
        return nn.Identity()
    return ESMoE(
        channels,
        num_experts=config.num_experts,
        top_k=config.top_k,
        kernel_sizes=config.kernel_sizes,
        norm_layer=YOLOBatchNorm2d,
    )
