# SPDX-License-Identifier: Apache-2.0
"""What a model costs: its parameters and operations, with all experts and with those that an image selects."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moe_vision.layers.esmoe import ESMoE, esmoe_layers, set_dispatch


class Cost(NamedTuple):
    """A number of parameters or operations.

    Attributes:
        total: With every expert of every block.
        active: With K of the E experts of each block, on the mean over the experts.

    Examples:
        >>> from moe_vision.diagnostics import Cost
        >>> Cost(total=100, active=60).active
        60
    """

    total: int
    active: int


def count_parameters(model: nn.Module) -> Cost:
    """Count the parameters, and those that take part in the output for one image.

    Args:
        model: Any module.

    Examples:
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import count_parameters
        >>> # Each expert: 8 x 9 + 8 x 8 and a norm of 16; router: 8 x 8 + 8 and 8 x 2 + 2; output norm: 16
        >>> count_parameters(ESMoE(8, num_experts=2, top_k=1, kernel_sizes=(3, 3)))
        Cost(total=410, active=258)
    """
    return _cost(model, lambda name: sum(p.numel() for p in model.get_submodule(name).parameters()))


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> Cost:
    """Count the floating-point operations for one image in eval; a multiplication with its addition counts as 2.

    Convolutions and matrix products count, those of attention too, by `torch.utils.flop_counter`; norms and
    activations, about a hundredth of a network, don't. Nothing is computed: a copy of the model runs without memory.

    Args:
        model: Any module that takes a batch of images.
        input_shape: Channels, height and width of the image.

    Examples:
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import count_flops
        >>> # Each expert: 2 x 10 x 10 x (8 x 9 + 8 x 8); router: 2 x (8 x 8 + 8 x 2)
        >>> count_flops(ESMoE(8, num_experts=2, top_k=1, kernel_sizes=(3, 3)), (8, 10, 10))
        Cost(total=54560, active=27360)
    """
    return _cost(model, _flops_of_modules(model, input_shape))


@torch.no_grad()
def count_expert_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, dict[str, list[int]]]:
    """Count the operations that every image costs, and those of each expert, which an image that selects it adds.

    Args:
        model: Any module that takes a batch of images.
        input_shape: Channels, height and width of the image.

    Returns:
        The operations besides the experts, and for each layer, by its name, those of its experts.

    Examples:
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import count_expert_flops
        >>> count_expert_flops(ESMoE(8, num_experts=2, top_k=1, kernel_sizes=(3, 3)), (8, 10, 10))
        (160, {'': [27200, 27200]})
    """
    of_module = _flops_of_modules(model, input_shape)
    experts = {name: list(map(of_module, names)) for name, _, names in _experts(model)}
    return of_module("") - sum(map(sum, experts.values())), experts


def _flops_of_modules(model: nn.Module, input_shape: tuple[int, int, int]) -> Callable[[str], int]:
    """Return what tells the operations of a module by its name, with every expert running."""
    model = copy.deepcopy(model).to("meta").eval()
    set_dispatch(model, "dense")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_shape, device="meta"))
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    root = type(model).__name__
    return lambda name: counts[f"{root}.{name}" if name else root]


def _cost(model: nn.Module, of_module: Callable[[str], int]) -> Cost:
    """Leave E - K of the E experts of each block out of a module's cost, given the costs of its parts by name."""
    idle = sum(
        (1 - layer.gate.top_k / len(experts)) * sum(map(of_module, experts)) for _, layer, experts in _experts(model)
    )
    total = of_module("")
    return Cost(total, round(total - idle))


def _experts(model: nn.Module) -> Iterator[tuple[str, ESMoE, list[str]]]:
    """Yield name, layer and the names of the experts of every block."""
    for name, layer in esmoe_layers(model).items():
        prefix = f"{name}.experts" if name else "experts"
        yield name, layer, [f"{prefix}.{index}" for index in range(len(layer.experts))]
