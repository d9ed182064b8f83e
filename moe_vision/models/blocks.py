# SPDX-License-Identifier: Apache-2.0
"""The MoE blocks as the networks use them."""

from torch import nn

from moe_vision.layers import BiasedTopKGate, ESMoE, PointwiseMoE, TopPGate, keep_experts
from moe_vision.layers.convolution import YOLOBatchNorm2d
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.models.config import YOLOMasterConfig


def backbone_block(channels: int, stage: int, config: YOLOMasterConfig) -> nn.Module:
    """Return the block at the end of a stage of the backbone, or an identity where the network has none.

    Args:
        channels: Channels of input and output.
        stage: Number of the stage, 2 to 5.
        config: The architecture.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> from moe_vision.models import named_config
        >>> from moe_vision.models.blocks import backbone_block
        >>> backbone_block(64, 2, named_config("yolo_master_n", placement="neck"))
        Identity()
    """
    if config.placement not in ("backbone", "both"):
        return nn.Identity()
    if config.block == "esmoe":
        return es_moe(channels, config)
    if stage == 2:
        return nn.Identity()
    num_experts = config.num_experts * 2 ** (stage - 3)
    block = PointwiseMoE(channels, num_experts=num_experts, top_k=config.top_k, norm_layer=YOLOBatchNorm2d)
    return _with_gate(block, config)


def es_moe(channels: int, config: YOLOMasterConfig) -> ESMoE:
    """Return the network's ES-MoE block.

    Args:
        channels: Channels of input and output.
        config: The architecture.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Examples:
        >>> from moe_vision.models import named_config
        >>> from moe_vision.models.blocks import es_moe
        >>> len(es_moe(64, named_config("yolo_master_n")).experts)
        4
    """
    block = ESMoE(
        channels,
        num_experts=config.num_experts,
        top_k=config.top_k,
        kernel_sizes=config.kernel_sizes,
        init=config.expert_init,  # type: ignore[arg-type]
        shared_expert=config.shared_expert,
        residual=config.residual,
        norm_layer=YOLOBatchNorm2d,
    )
    return _with_gate(block, config)


def _with_gate(block: ESMoE, config: YOLOMasterConfig) -> ESMoE:
    if config.top_p < 1:
        block.gate = TopPGate(config.top_p, config.top_k)
    elif config.selection_bias:
        block.gate = BiasedTopKGate(config.top_k, len(block.experts))
    return block


def set_norm_constants(module: nn.Module, config: YOLOMasterConfig) -> None:
    """Give the norms of a network, but not those of a timm backbone, the epsilon and momentum of its task.

    Args:
        module: The network.
        config: The architecture.

    Examples:
        >>> from moe_vision.layers.convolution import ConvNormAct
        >>> from moe_vision.models import named_config
        >>> from moe_vision.models.blocks import set_norm_constants
        >>> layer = ConvNormAct(3, 8)
        >>> set_norm_constants(layer, named_config("yolo_master_n", task="classify"))
        >>> layer.norm.eps
        1e-05
    """
    for norm in module.modules():
        if isinstance(norm, YOLOBatchNorm2d):
            norm.eps, norm.momentum = config.norm_constants


def remove_experts(network: nn.Module, config: YOLOMasterConfig) -> None:
    """Leave blocks with the experts that stayed when the network was pruned.

    Args:
        network: The network with all its experts.
        config: The architecture.

    Raises:
        ValueError: If ``config.kept_experts`` names what is no block with experts, or experts that it has not.

    Examples:
        >>> from moe_vision import create_model
        >>> model = create_model("yolo_master_n", kept_experts={"backbone.stage2.moe": (0, 2)})
        >>> model.backbone.stage2.moe.experts.kernel_sizes
        (3, 7)
    """
    blocks = esmoe_layers(network)
    for name, indices in config.kept_experts.items():
        if name not in blocks:
            raise ValueError(f"kept_experts must name blocks with experts, {', '.join(blocks)}, got {name!r}")
        keep_experts(blocks[name], indices)
