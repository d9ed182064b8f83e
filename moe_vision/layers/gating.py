# SPDX-License-Identifier: Apache-2.0
"""The gate: from the logits of the experts to the weights of the mixture.

Soft top-k (training) and hard top-k (inference) of arXiv 2512.23273, eqs 7-9, are one function: the softmax
restricted to the selected set, p_i / sum_T p_j = exp(z_i) / sum_T exp(z_j). ``masked`` is that function, in both.
Axes: B images, E experts, K selected experts.
"""

from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision._types import SoftMode
from moe_vision.layers.checks import check_choice, check_positive, check_top_k
from moe_vision.layers.routing import Routing

SOFT_MODES: tuple[str, ...] = get_args(SoftMode)


def hard_top_k(logits: Tensor, k: int) -> Tensor:
    """Weigh the k best experts by their softmax among themselves, and the others by exactly 0.

    Eq. 9 of arXiv 2512.23273. For ``k = 1 < E`` the weight is the probability over all experts, not 1, because
    the constant 1 would leave the router without a gradient. Ties go to the lowest index; computed in fp32 at
    least. Infinite logits count as the largest finite ones; NaN spoils the weights of its own image alone.

    Args:
        logits: Scores of the experts.
        k: Number of experts to select, in [1, E].

    Shape:
        - logits: (B, E)
        - Output: weights (B, E) in [0, 1]; the rows sum to 1 unless k = 1 < E

    Raises:
        ValueError: If ``logits`` is not two-dimensional or ``k`` is not in [1, E].

    Examples:
        >>> import torch
        >>> from moe_vision import hard_top_k
        >>> hard_top_k(torch.tensor([[1.0, 3.0, 1.0]]).log(), k=2)
        tensor([[0.2500, 0.7500, 0.0000]])
    """
    logits = finite(check_logits(logits, k))
    return _masked(logits, select(logits, k))


def soft_top_k(logits: Tensor, k: int, mode: SoftMode = "masked", temperature: float = 0.5) -> Tensor:
    """Weigh the experts for training, with the weights of the k best emphasised.

    - ``masked``: equal to `hard_top_k` (eqs 7-8 of arXiv 2512.23273): training and inference are one function.
    - ``relaxed``: every expert gets a positive weight, softmax(z + log sigmoid((z - theta) / temperature)) with
      theta midway between the k-th and the next logit; continuous, and equal to ``masked`` in the limit of
      temperature 0. It is our reading of the paper's "weights for all experts", which it gives no formula for.
    - ``straight_through``: the values of ``masked`` with the gradient of the full softmax.

    Args:
        logits: Scores of the experts.
        k: Number of experts to emphasise, in [1, E].
        mode: ``masked``, ``relaxed`` or ``straight_through``.
        temperature: Width of the soft cut in ``relaxed``, in logits, above 0; no part in the other modes.

    Shape:
        - logits: (B, E)
        - Output: weights (B, E) in [0, 1]; the rows sum to 1 unless k = 1 < E (see `hard_top_k`)

    Raises:
        ValueError: If ``logits`` is not two-dimensional, ``k`` is not in [1, E], ``mode`` is unknown or
            ``temperature`` is not above 0.

    Examples:
        >>> import torch
        >>> from moe_vision import soft_top_k
        >>> soft_top_k(torch.tensor([[1.0, 3.0, 1.0]]).log(), k=2, mode="relaxed").round(decimals=2)
        tensor([[0.1400, 0.7300, 0.1400]])
    """
    check_choice("mode", mode, SOFT_MODES)
    _check_temperature(temperature)
    logits = finite(check_logits(logits, k))
    return _weigh(logits, select(logits, k), mode, temperature)


class TopKGate(nn.Module):
    """Select the experts of each image and weigh them: softly in ``train()``, hard in ``eval()``.

    ``top_k``, ``soft`` and ``temperature`` are plain attributes: a schedule for ``relaxed`` sets them from the
    training loop and ends with ``soft = "masked"``. The gate itself never changes them and counts nothing.

    Args:
        top_k: Number K of experts that an image selects, in [1, E].
        soft: Weights in training, see `soft_top_k`.
        temperature: Width of the soft cut in ``relaxed``, above 0.

    Shape:
        - Input: logits (B, E)
        - Output: `Routing` with logits, probs, weights (B, E) and indices (B, K)

    Raises:
        ValueError: If an argument is out of its range, or E < top_k when it is called.

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate
        >>> routing = TopKGate(top_k=2).eval()(torch.tensor([[0.0, 2.0, 1.0]]))
        >>> routing.indices
        tensor([[1, 2]])
    """

    def __init__(self, top_k: int, soft: SoftMode = "masked", temperature: float = 0.5) -> None:
        super().__init__()
        check_positive(top_k=top_k)
        check_choice("soft", soft, SOFT_MODES)
        _check_temperature(temperature)
        self.top_k = top_k
        self.soft: SoftMode = soft
        self.temperature = temperature

    def forward(self, logits: Tensor) -> Routing:
        """Return the `Routing` of a batch of logits (B, E)."""
        logits = finite(check_logits(logits, self.top_k))
        indices = self._select(logits)
        mode = self.soft if self.training else "masked"
        weights = _weigh(logits, indices, mode, self.temperature)
        return Routing(logits, logits.softmax(dim=-1), weights, indices)

    def _select(self, logits: Tensor) -> Tensor:
        return select(logits, self.top_k)

    @property
    def all_take_part(self) -> bool:
        """Whether unselected experts have a part too: a weight or a gradient, in the soft modes of training."""
        return self.training and self.soft != "masked"

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        return f"top_k={self.top_k}, soft={self.soft!r}, temperature={self.temperature}"


def check_logits(logits: Tensor, k: int, name: str = "top_k") -> Tensor:
    """Return the logits; raise ValueError unless they are (B, E), and ``k``, called ``name``, is in [1, E]."""
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (B, E), got {tuple(logits.shape)}")
    check_top_k(k, logits.shape[1], name)
    return logits


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def finite(logits: Tensor) -> Tensor:
    """Return the logits in fp32 at least, infinities replaced by the largest finite value (NaN stays)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limits = torch.finfo(logits.dtype)
    return logits.clamp(limits.min, limits.max)


def select(logits: Tensor, k: int) -> Tensor:
    """Return the indices (B, K) of the k largest logits, best first, ties to the lowest index."""
    # topk leaves the order of ties open and ONNX has no stable sort; argmax takes the first of equals everywhere.
    remaining = logits.detach()
    selected = [remaining.argmax(dim=-1, keepdim=True)]
    while len(selected) < k:
        remaining = remaining.scatter(1, selected[-1], float("-inf"))
        selected.append(remaining.argmax(dim=-1, keepdim=True))
    return torch.cat(selected, dim=1)


def _weigh(logits: Tensor, indices: Tensor, mode: SoftMode, temperature: float) -> Tensor:
    if mode == "relaxed":
        return _relaxed(logits, indices.shape[1], temperature)
    weights = _masked(logits, indices)
    if mode == "straight_through":
        return cast(Tensor, _StraightThrough.apply(weights, logits.softmax(dim=-1)))
    return weights


def _masked(logits: Tensor, indices: Tensor) -> Tensor:
    num_selected, num_experts = indices.shape[1], logits.shape[1]
    if num_selected == num_experts:
        return logits.softmax(dim=-1)
    if num_selected == 1:
        selected = logits.softmax(dim=-1).gather(1, indices)
    else:
        selected = logits.gather(1, indices).softmax(dim=-1)
    return torch.zeros_like(logits).scatter(1, indices, selected)


def _relaxed(logits: Tensor, k: int, temperature: float) -> Tensor:
    if k == logits.shape[1]:
        return logits.softmax(dim=-1)
    best = logits.topk(k + 1).values
    # Halved before they are added, so that two huge logits do not overflow.
    threshold = best[:, k - 1 : k] / 2 + best[:, k:] / 2
    log_kept = F.logsigmoid((logits - threshold) / temperature)
    if k == 1:
        return logits.softmax(dim=-1) * log_kept.exp()
    return (logits + log_kept).softmax(dim=-1)


class _StraightThrough(torch.autograd.Function):
    """Forward the hard weights exactly (h + s - s would leave dust in half precision), backward to the soft."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]
