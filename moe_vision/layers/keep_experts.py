# SPDX-License-Identifier: Apache-2.0
"""Making a layer smaller: experts and their rows of the router go for good."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_vision.layers.biased_gate import BiasedTopKGate
from moe_vision.layers.esmoe import ESMoE
from moe_vision.layers.experts import DepthwiseExperts
from moe_vision.layers.pooled_router import PooledRouter
from moe_vision.layers.routing import DynamicRouter


def keep_experts(layer: ESMoE, indices: Sequence[int]) -> None:
    """Remove all experts of a layer but some, in place.

    The router keeps its scores of the experts that stay, and images select K among those, or all if fewer stay. An
    optimizer that holds the layer's parameters must be made anew.

    Args:
        layer: The layer.
        indices: The experts that stay, in ascending order.

    Raises:
        ValueError: If ``indices`` is empty, not ascending or names an expert that there is not, or the router is not
            one of ours.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.layers import keep_experts
        >>> layer = ESMoE(8, num_experts=4, top_k=2)
        >>> keep_experts(layer, [0, 1, 3])
        >>> layer.experts.kernel_sizes, layer.router(torch.rand(2, 8, 6, 6)).shape
        ((3, 5, 9), torch.Size([2, 3]))
    """
    indices = list(indices)
    num_experts = len(layer.experts)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= num_experts:
        raise ValueError(
            f"indices must be ascending and in [0, num_experts={num_experts}), and at least one, got {indices}"
        )
    _shrink_router(layer.router, indices)
    for index in reversed(range(num_experts)):
        if index not in indices:
            del layer.experts[index]
    if isinstance(layer.experts, DepthwiseExperts):
        layer.experts.kernel_sizes = tuple(layer.experts.kernel_sizes[index] for index in indices)
    if isinstance(layer.gate, BiasedTopKGate):
        layer.gate.bias = layer.gate.bias[indices]
    layer.gate.top_k = min(layer.gate.top_k, len(indices))
    layer.routing = None


def _shrink_router(router: nn.Module, indices: list[int]) -> None:
    if isinstance(router, DynamicRouter):
        _shrink(router.fc2, indices)
        router.fc2.out_features = len(indices)
    elif isinstance(router, PooledRouter) and isinstance(router.norm2, nn.BatchNorm2d | nn.Identity):
        _shrink(router.conv2, indices)
        router.conv2.out_channels = len(indices)
        _shrink(router.norm2, indices)
        if isinstance(router.norm2, nn.BatchNorm2d):
            router.norm2.num_features = len(indices)
    else:
        raise ValueError(
            "router must be a DynamicRouter, or a PooledRouter with BatchNorm2d, to lose experts, "
            f"got {type(router).__name__}"
        )
    router.num_experts = len(indices)


@torch.no_grad()
def _shrink(module: nn.Module, indices: list[int]) -> None:
    """Keep some rows of every parameter and buffer that has rows."""
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(_rows(parameter, indices), parameter.requires_grad))
    for name, buffer in list(module.named_buffers()):
        if buffer.ndim:  # num_batches_tracked has none
            setattr(module, name, _rows(buffer, indices))


def _rows(tensor: Tensor, indices: list[int]) -> Tensor:
    return tensor.detach()[indices].clone()
