# SPDX-License-Identifier: Apache-2.0
"""The explicit step that balances experts by a bias on their selection, without a loss."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_vision.layers.biased_gate import BiasedTopKGate
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.layers.routing import Routing
from moe_vision.losses.balance import routing_records


@torch.no_grad()
def update_selection_bias(
    model: nn.Module, *, rate: float = 1e-3, others: Sequence[Mapping[str, Routing]] = ()
) -> None:
    """Move the selection bias of every `BiasedTopKGate` of a model towards experts that were selected too seldom.

    b_i + u sign(mean c - c_i), with c_i the number of images that selected expert i and u the rate (algorithm 1 of
    arXiv 2408.15664); we keep the sum of the bias as it is. Call it once a step, after the forward and backward. Under
    torch.distributed all ranks must call it, and the counts are those of all of them.

    Args:
        model: Any module that holds at least one `ESMoE` with a `BiasedTopKGate`.
        rate: Step of the bias in logits, above 0. The paper's 0.001 suits thousands of steps.
        others: What `moe_vision.losses.balance.routing_records` gave of the other batches of a step that accumulates
            gradients.

    Raises:
        ValueError: If no layer has a `BiasedTopKGate`, ``rate`` is not above 0, or a layer has seen no forward.

    Examples:
        >>> import torch
        >>> from moe_vision import BiasedTopKGate, ESMoE, update_selection_bias
        >>> layer = ESMoE(8, num_experts=2, top_k=1)
        >>> layer.gate = BiasedTopKGate(top_k=1, num_experts=2)
        >>> y = layer(torch.rand(3, 8, 6, 6))  # three images: one expert gets more of them than the other
        >>> update_selection_bias(layer, rate=0.5)
        >>> layer.gate.bias.abs()
        tensor([0.5000, 0.5000])
    """
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    gates = {name: layer.gate for name, layer in esmoe_layers(model).items() if isinstance(layer.gate, BiasedTopKGate)}
    if not gates:
        raise ValueError(f"model must hold an ESMoE with a BiasedTopKGate, got a {type(model).__name__} without any")
    records = routing_records(model)
    for name, gate in gates.items():
        gate.move_bias(_counts([records[name], *(other[name] for other in others)]), rate)


def _counts(records: Sequence[Routing]) -> Tensor:
    """Return how many images selected each expert, (E,), on all ranks."""
    counts = torch.stack([routing.selected.sum(dim=0) for routing in records]).sum(dim=0).float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
