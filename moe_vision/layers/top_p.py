# SPDX-License-Identifier: Apache-2.0
"""A gate that lets the image decide how many experts it needs.

Axes: B images, E experts, K the most experts that an image may select.
"""

import torch
from torch import Tensor, nn

from moe_vision.layers.checks import check_positive
from moe_vision.layers.gating import check_logits, finite, select
from moe_vision.layers.routing import Routing


class TopPGate(nn.Module):
    """Select the fewest experts whose probabilities reach p: where the router is sure one, where it doubts more.

    An image selects at least one expert and at most ``max_k``. Each counts with the part of its probability that is
    needed to reach p (all of it, but for the last), scaled to a sum of 1. So an expert comes and goes with a weight of
    0: the mixture is continuous in the logits, except where two experts tie at the border. It is the same function in
    ``train()`` and ``eval()``. In place of the gate of a layer: ``layer.gate = TopPGate(0.7, max_k=4)``.

    Without a term that rewards few experts, the router may become ever less sure; `moe_vision.expert_budget_loss` holds
    the mean number at a target.

    Args:
        p: Probability to reach, in (0, 1].
        max_k: The most experts that an image selects, in [1, E].

    Attributes:
        top_k: ``max_k``, by the name that it has in `TopKGate`.

    Shape:
        - Input: logits (B, E)
        - Output: `Routing` with logits, probs, weights (B, E) and indices (B, max_k), best first; those that an image
          does not need have the weight 0, and executors don't run them

    Raises:
        ValueError: If an argument is out of its range, or E < max_k when it is called.

    Examples:
        >>> import torch
        >>> from moe_vision import TopPGate
        >>> probabilities = torch.tensor([[0.9, 0.06, 0.04], [0.5, 0.3, 0.2]])
        >>> TopPGate(0.75, max_k=3)(probabilities.log()).weights  # 0.5 and 0.25 of 0.3 reach 0.75
        tensor([[1.0000, 0.0000, 0.0000],
                [0.6667, 0.3333, 0.0000]])
    """

    all_take_part = False

    def __init__(self, p: float, max_k: int) -> None:
        super().__init__()
        if not 0 < p <= 1:
            raise ValueError(f"p must be in (0, 1], got {p}")
        check_positive(max_k=max_k)
        self.p = p
        self.top_k = max_k

    def forward(self, logits: Tensor) -> Routing:
        """Return the `Routing` of a batch of logits (B, E)."""
        logits = finite(check_logits(logits, self.top_k, "max_k"))
        indices = select(logits, self.top_k)
        probs = logits.softmax(dim=-1)
        needed = self._needed(probs.gather(1, indices))
        weights = torch.zeros_like(logits).scatter(1, indices, needed / needed.sum(dim=1, keepdim=True))
        return Routing(logits, probs, weights, indices)

    def soft_count(self, routing: Routing) -> Tensor:
        """Return how many experts each image needs, the last counted by the part of it that is needed, (B,).

        Rounded up it is the number of experts that run. It is differentiable in the probabilities.
        """
        probs = routing.probs.gather(1, routing.indices)
        return (self._needed(probs) / probs.clamp(min=torch.finfo(probs.dtype).tiny)).sum(dim=1)

    def _needed(self, probs: Tensor) -> Tensor:
        """Return the part of each probability, (B, K) in descending order, that is needed to reach p."""
        before = probs.cumsum(dim=1) - probs
        return (self.p - before).clamp(min=0).minimum(probs)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"p={self.p}, max_k={self.top_k}"
