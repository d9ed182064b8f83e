# SPDX-License-Identifier: Apache-2.0
"""Losses that keep every expert in use, and their sum over a model.

All of them read the softmax over *all* experts. A loss on the renormalised weights of the selected ones, as in
eqs 12-13 of arXiv 2512.23273, has no gradient with respect to an unselected expert's logit, so that a starved expert
stays starved. Axes: B images, E experts, K selected experts.
"""

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from moe_vision._types import BalanceKind
from moe_vision.layers.checks import check_choice
from moe_vision.layers.esmoe import ESMoE, esmoe_layers
from moe_vision.layers.routing import Routing
from moe_vision.layers.top_p import TopPGate
from moe_vision.losses.budget import expert_budget_loss
from moe_vision.losses.ranks import global_mean

BALANCE_KINDS: tuple[str, ...] = get_args(BalanceKind)


def load_balancing_loss(routing: Routing, kind: BalanceKind = "switch", others: Sequence[Routing] = ()) -> Tensor:
    """Measure how unevenly a batch uses the experts of one layer.

    With P_i the mean probability of expert i over the batch and f_i the share of selections it got:

    - ``switch``: E sum_i f_i P_i (eq. 4 of arXiv 2101.03961); 1 if f or P is uniform, at most E / K.
    - ``mse``: (1 / E) sum_i (P_i - 1 / E)^2, the paper's eqs 12-13 on the full softmax; in [0, (E - 1) / E^2].
    - ``cv2``: E sum_i P_i^2 - 1, the squared coefficient of variation; in [0, E - 1], E^2 times ``mse``.
    - ``information``: -(H(P) - mean H(p)), with H the entropy and p of one image; in [-log E, 0]. It is the negative
      mutual information of image and expert (arXiv 2212.08066): even usage alone, with all images alike, gives 0.

    In training under torch.distributed the means are those of all ranks' images, unequal shards included, and the
    gradients averaged over the ranks are those of the whole batch. An empty batch gives 0, connected to the graph.

    Args:
        routing: The record of a forward, ``layer.routing``.
        kind: ``switch``, ``mse``, ``cv2`` or ``information``.
        others: Records of the same layer for the other batches of a step that accumulates gradients. The loss is that
            of all images of the step, and the mean of the gradients over its batches is the gradient of that loss.

    Shape:
        - Output: a scalar, fp32

    Raises:
        ValueError: If ``kind`` is unknown.

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate, load_balancing_loss
        >>> routing = TopKGate(top_k=1)(torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
        >>> load_balancing_loss(routing)
        tensor(1.)
    """
    check_choice("kind", kind, BALANCE_KINDS)
    num_experts = routing.probs.shape[1]
    means = global_mean(_usage(routing), [_usage(other) for other in others])
    probability, share, entropy = torch.split(means, [num_experts, num_experts, 1])
    if kind == "switch":
        return num_experts * (share.detach() * probability).sum()
    if kind == "information":
        return entropy.sum() + (probability * _log(probability)).sum()
    # For an empty batch the mean is 0, which would count as imbalance.
    deviation = (probability - probability.sum() / num_experts).square()
    return deviation.mean() if kind == "mse" else num_experts * deviation.sum()


def router_z_loss(routing: Routing, others: Sequence[Routing] = ()) -> Tensor:
    """Keep the logits small: the mean squared logsumexp of the logits (eq. 5 of arXiv 2202.08906).

    Reduced over ranks and batches like `load_balancing_loss`.

    Args:
        routing: The record of a forward, ``layer.routing``.
        others: Records of the same layer for the other batches of a step that accumulates gradients.

    Shape:
        - Output: a scalar >= 0, fp32; (log E)^2 for logits of 0

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate, router_z_loss
        >>> router_z_loss(TopKGate(top_k=1)(torch.zeros(3, 4)))  # (log 4)^2
        tensor(1.9218)
    """
    return global_mean(_squared_scale(routing), [_squared_scale(other) for other in others]).sum()


def auxiliary_loss(
    model: nn.Module,
    *,
    balance: float = 0.01,
    z: float = 0.0,
    kind: BalanceKind = "switch",
    budget: float = 0.0,
    budget_experts: float = 2.0,
    others: Sequence[Mapping[str, Routing]] = (),
) -> Tensor:
    """Sum the balance and z losses over every `ESMoE` of a model, to be added to the task's loss.

    It reads what the last forward recorded, so call it after the forward and before backward. Each layer counts once,
    also under gradient checkpointing (``use_reentrant=False``) and inside wrappers.

    Args:
        model: Any module that holds at least one `ESMoE`.
        balance: Weight of `load_balancing_loss`; 0 leaves it out.
        z: Weight of `router_z_loss`; 0 leaves it out.
        kind: Kind of balance loss.
        budget: Weight of `expert_budget_loss`, for layers with a `TopPGate`; 0 leaves it out.
        budget_experts: Mean number of experts an image that it holds.
        others: What `routing_records` gave of the other batches of a step that accumulates gradients, so that the loss
            is that of all images of the step; the loss of each batch is then to be divided by the number of batches.

    Shape:
        - Output: a scalar, fp32

    Raises:
        ValueError: If the model has no `ESMoE`, one has seen no forward, or its record has lost its gradient in a
            re-entrant checkpoint.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision import ESMoE, auxiliary_loss
        >>> model = nn.Sequential(ESMoE(8), ESMoE(8))
        >>> loss = model(torch.rand(4, 8, 6, 6)).mean() + auxiliary_loss(model)
        >>> loss.backward()
    """
    check_choice("kind", kind, BALANCE_KINDS)
    records = routing_records(model)
    total = next(iter(records.values())).probs.new_zeros(())
    for name, routing in records.items():
        rest = [other[name] for other in others]
        if balance:
            total = total + balance * load_balancing_loss(routing, kind, rest).to(total.device)
        if z:
            total = total + z * router_z_loss(routing, rest).to(total.device)
        gate = cast(ESMoE, model.get_submodule(name)).gate
        if budget and isinstance(gate, TopPGate):
            total = total + budget * expert_budget_loss(routing, gate, budget_experts, rest).to(total.device)
    return total


def routing_records(model: nn.Module) -> dict[str, Routing]:
    """Return what the last forward recorded in every `ESMoE` of a model, by the name of the layer.

    Args:
        model: Any module that holds at least one `ESMoE`.

    Raises:
        ValueError: As `auxiliary_loss`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision import ESMoE
        >>> from moe_vision.losses.balance import routing_records
        >>> model = nn.Sequential(ESMoE(8), ESMoE(8))
        >>> _ = model(torch.rand(4, 8, 6, 6))
        >>> list(routing_records(model))
        ['0', '1']
    """
    layers = esmoe_layers(model)
    if not layers:
        raise ValueError(f"model must hold at least one ESMoE, got a {type(model).__name__} without any")
    return {name: _record(name, layer) for name, layer in layers.items()}


def _record(name: str, layer: ESMoE) -> Routing:
    if layer.routing is None:
        raise ValueError(f"model must have run a forward before auxiliary_loss, but ESMoE {name!r} has not")
    trainable = any(parameter.requires_grad for parameter in layer.router.parameters())
    if layer.training and trainable and torch.is_grad_enabled() and not layer.routing.probs.requires_grad:
        raise ValueError(
            f"the routing of ESMoE {name!r} must carry a gradient in training, but its forward ran without one; "
            "checkpoint with use_reentrant=False, and call auxiliary_loss on the forward that is trained"
        )
    return layer.routing


def _usage(routing: Routing) -> Tensor:
    """Return each image's probabilities, its shares of the selections, and the entropy of the former, (B, 2 E + 1)."""
    selected = routing.selected.to(routing.probs)
    shares = selected / selected.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = -(routing.probs * _log(routing.probs)).sum(dim=1, keepdim=True)
    return torch.cat([routing.probs, shares, entropy], dim=1)


def _log(probabilities: Tensor) -> Tensor:
    """Return the logarithms, finite also of 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _squared_scale(routing: Routing) -> Tensor:
    """Return each image's squared logsumexp of the logits, (B, 1)."""
    return routing.logits.logsumexp(dim=1, keepdim=True).square()
