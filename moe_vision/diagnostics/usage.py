# SPDX-License-Identifier: Apache-2.0
"""How often each expert is selected."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_vision.layers import ESMoE


class ExpertUsage:
    """Count, over any number of forwards, how often each expert of each `ESMoE` of a model is selected.

    It reads what the layers recorded and leaves them as they are. Memory is constant.

    Args:
        model: Any module that holds ESMoE layers.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import ExpertUsage
        >>> layer = ESMoE(8, num_experts=2, top_k=2).eval()
        >>> usage = ExpertUsage(layer)
        >>> _ = layer(torch.rand(3, 8, 6, 6))
        >>> usage.update()
        >>> usage.shares()
        {'': [0.5, 0.5]}
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, ESMoE)}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Add what the last forward selected; a layer that has seen none is passed over."""
        for name, layer in self._layers.items():
            if layer.routing is not None:
                selected = layer.routing.indices.flatten()
                counts = torch.bincount(selected, minlength=layer.routing.probs.shape[1])
                self._counts[name] = self._counts.get(name, 0) + counts

    def add_ranks(self) -> None:
        """Add what the other ranks of a distributed run have counted; all of them call this."""
        if dist.is_available() and dist.is_initialized():
            for counts in self._counts.values():
                dist.all_reduce(counts)

    def shares(self) -> dict[str, list[float]]:
        """Return for each layer, by its name, the share of all selections that each expert got; they sum to 1."""
        return {name: (counts / counts.sum()).tolist() for name, counts in self._counts.items()}
