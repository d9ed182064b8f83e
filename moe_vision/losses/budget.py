# SPDX-License-Identifier: Apache-2.0
"""A loss that holds the mean number of experts an image at a target, where images decide how many they need."""

from collections.abc import Sequence

from torch import Tensor

from moe_vision.layers.routing import Routing
from moe_vision.layers.top_p import TopPGate
from moe_vision.losses.ranks import global_mean


def expert_budget_loss(routing: Routing, gate: TopPGate, target: float, others: Sequence[Routing] = ()) -> Tensor:
    """Measure how far the mean number of experts that images select is from a target: the squared difference.

    The number that runs is a step function of the logits. Its value counts, and its gradient is that of
    `TopPGate.soft_count`, in which the last expert counts by the part of its probability that is needed: where more
    experts run than the target, images become surer, and otherwise less sure. How the mean is spread over the images
    is left to the task. Reduced over ranks and batches like `load_balancing_loss`.

    Args:
        routing: The record of a forward, ``layer.routing``.
        gate: The gate that made it, ``layer.gate``.
        target: Mean number of experts an image.
        others: Records of the same layer for the other batches of a step that accumulates gradients.

    Shape:
        - Output: a scalar >= 0, fp32

    Examples:
        >>> import torch
        >>> from moe_vision import TopPGate, expert_budget_loss
        >>> gate = TopPGate(0.75, max_k=2)
        >>> routing = gate(torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log())  # one expert and two
        >>> expert_budget_loss(routing, gate, target=1.0)
        tensor(0.2500)
    """
    mean = global_mean(_counts(routing, gate), [_counts(other, gate) for other in others]).sum()
    return (mean - target).square()


def _counts(routing: Routing, gate: TopPGate) -> Tensor:
    """Return how many experts each image runs, (B, 1), with the gradient of the soft count."""
    soft = gate.soft_count(routing)[:, None]
    return routing.selected.sum(dim=1, keepdim=True) + soft - soft.detach()
