# SPDX-License-Identifier: Apache-2.0
"""Losses that keep every expert in use, and their sum over a model.

All of them read the softmax over *all* experts. A loss on the renormalised weights of the selected ones, as in
eqs 12-13 of arXiv 2512.23273, has no gradient with respect to an unselected expert's logit, so that a starved expert
stays starved. Axes: B images, E experts, K selected experts.
"""

from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_vision._types import BalanceKind
from moe_vision.layers.checks import check_choice
from moe_vision.layers.esmoe import ESMoE
from moe_vision.layers.routing import Routing

BALANCE_KINDS: tuple[str, ...] = get_args(BalanceKind)


def load_balancing_loss(routing: Routing, kind: BalanceKind = "switch") -> Tensor:
    """Measure how unevenly a batch uses the experts of one layer.

    With P_i the mean probability of expert i over the batch and f_i the share of selections it got:

    - ``switch``: E sum_i f_i P_i (eq. 4 of arXiv 2101.03961); 1 if f or P is uniform, at most E / K.
    - ``mse``: (1 / E) sum_i (P_i - 1 / E)^2, the paper's eqs 12-13 on the full softmax; in [0, (E - 1) / E^2].
    - ``cv2``: E sum_i P_i^2 - 1, the squared coefficient of variation; in [0, E - 1], E^2 times ``mse``.

    In training under torch.distributed the means are those of all ranks' images, unequal shards included, and the
    gradients averaged over the ranks are those of the whole batch. An empty batch gives 0, connected to the graph.

    Args:
        routing: The record of a forward, ``layer.routing``.
        kind: ``switch``, ``mse`` or ``cv2``.

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
    num_experts, top_k = routing.probs.shape[1], routing.indices.shape[1]
    selected = torch.zeros_like(routing.probs).scatter(1, routing.indices, 1.0 / top_k)
    probability, share = _global_mean(torch.cat([routing.probs, selected], dim=1)).chunk(2)
    if kind == "switch":
        return num_experts * (share.detach() * probability).sum()
    # For an empty batch the mean is 0, which would count as imbalance.
    deviation = (probability - probability.sum() / num_experts).square()
    return deviation.mean() if kind == "mse" else num_experts * deviation.sum()


def router_z_loss(routing: Routing) -> Tensor:
    """Keep the logits small: the mean squared logsumexp of the logits (eq. 5 of arXiv 2202.08906).

    Reduced over ranks like `load_balancing_loss`.

    Args:
        routing: The record of a forward, ``layer.routing``.

    Shape:
        - Output: a scalar >= 0, fp32; (log E)^2 for logits of 0

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate, router_z_loss
        >>> router_z_loss(TopKGate(top_k=1)(torch.zeros(3, 4)))  # (log 4)^2
        tensor(1.9218)
    """
    return _global_mean(routing.logits.logsumexp(dim=1, keepdim=True).square()).sum()


def auxiliary_loss(model: nn.Module, *, balance: float = 0.01, z: float = 0.0, kind: BalanceKind = "switch") -> Tensor:
    """Sum the balance and z losses over every `ESMoE` of a model, to be added to the task's loss.

    It reads what the last forward recorded, so call it after the forward and before backward. Each layer counts once,
    also under gradient checkpointing (``use_reentrant=False``) and inside wrappers.

    Args:
        model: Any module that holds at least one `ESMoE`.
        balance: Weight of `load_balancing_loss`; 0 leaves it out.
        z: Weight of `router_z_loss`; 0 leaves it out.
        kind: Kind of balance loss.

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
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, ESMoE)]
    if not layers:
        raise ValueError(f"model must hold at least one ESMoE, got a {type(model).__name__} without any")
    records = [_record(name, layer) for name, layer in layers]
    total = records[0].probs.new_zeros(())
    for routing in records:
        if balance:
            total = total + balance * load_balancing_loss(routing, kind).to(total.device)
        if z:
            total = total + z * router_z_loss(routing).to(total.device)
    return total


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


def _global_mean(values: Tensor) -> Tensor:
    """Average (B, D) over the images of all ranks to (D,), so that the mean of the ranks' gradients is right.

    The value is the mean over all images. The gradient of a rank's part is scaled by R B_r / sum B, which the
    division by R in DistributedDataParallel turns into the whole batch's. Without a gradient (validation, where
    ranks may not all take part) the ranks are not asked.
    """
    batch = values.shape[0]
    local = values.sum(dim=0) / max(batch, 1)
    if not (values.requires_grad and dist.is_available() and dist.is_initialized()):
        return local
    packed = torch.cat([values.detach().sum(dim=0), values.new_full((1,), batch)])
    dist.all_reduce(packed)
    total = packed[-1].clamp(min=1)
    scale = dist.get_world_size() * batch / total
    return packed[:-1] / total + scale * (local - local.detach())
