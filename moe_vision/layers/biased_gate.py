# SPDX-License-Identifier: Apache-2.0
"""A gate that is kept balanced by a bias on the selection, without a loss.

Axes: B images, E experts, K selected experts.
"""

import torch
from torch import Tensor

from moe_vision.layers.checks import check_positive, check_top_k
from moe_vision.layers.gating import TopKGate, select


class BiasedTopKGate(TopKGate):
    """Select the K experts with the largest logit plus bias, and weigh them by their logits alone.

    Loss-free balancing (arXiv 2408.15664): `moe_vision.update_selection_bias` raises the bias of experts that were
    selected too seldom after each step of training, and no loss disturbs the router. Probabilities and weights do not
    see the bias. We add it to logits, where the paper adds it to the scores of a sigmoid. It is part of the state_dict
    and stays in ``eval()``, so that training and inference are one function. In place of the gate of a layer:
    ``layer.gate = BiasedTopKGate(top_k=2, num_experts=4)``.

    Args:
        top_k: Number K of experts that an image selects, in [1, E].
        num_experts: Number of experts E.

    Attributes:
        bias: What is added to the logits for the selection, (E,), in logits; 0 at first.

    Shape:
        - Input: logits (B, E)
        - Output: `Routing` with logits, probs, weights (B, E) and indices (B, K), by descending logit plus bias

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> import torch
        >>> from moe_vision import BiasedTopKGate
        >>> gate = BiasedTopKGate(top_k=1, num_experts=2)
        >>> gate.bias[1] = 3.0
        >>> gate(torch.tensor([[2.0, 0.0], [9.0, 0.0]])).indices
        tensor([[1],
                [0]])
    """

    bias: Tensor

    def __init__(self, top_k: int, num_experts: int) -> None:
        check_positive(num_experts=num_experts)
        check_top_k(top_k, num_experts)
        super().__init__(top_k)
        self.register_buffer("bias", torch.zeros(num_experts))

    def _select(self, logits: Tensor) -> Tensor:
        return select(logits + self.bias, self.top_k)

    @torch.no_grad()
    def move_bias(self, counts: Tensor, rate: float) -> None:
        """Raise the bias of experts selected less often than the mean by ``rate`` and lower that of others.

        The sum of the bias stays as it is. Counts (E,) are of one step, of all its images.
        """
        step = torch.sign(counts.mean() - counts)
        self.bias += rate * (step - step.mean())
