# SPDX-License-Identifier: Apache-2.0
"""What an expert contributes: how much the output of its layer changes without it."""

import copy
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from moe_vision.layers import ESMoE, keep_experts


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch, which may come with targets.

    Examples:
        >>> import torch
        >>> from moe_vision.pruning.contribution import images_of
        >>> images_of((torch.zeros(2, 3, 8, 8), ["targets"])).shape
        torch.Size([2, 3, 8, 8])
    """
    images: Tensor = batch[0] if isinstance(batch, tuple | list) else batch
    return images


@torch.no_grad()
def contributions(model: nn.Module, loader: Iterable[Any], layers: Collection[str]) -> dict[str, list[float]]:
    """Measure how much the output of a layer changes, on average over images, without each of its experts.

    Usage does not tell: an expert that is selected often may do what another does as well. So each layer is run beside
    copies of itself that have lost one expert, on the features that it really sees; the change of an image is
    relative, ||y' - y|| / ||y||.

    Args:
        model: Any module, in eval mode.
        loader: Batches of calibration images, with or without targets.
        layers: Names of the `ESMoE` layers to measure.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.pruning.contribution import contributions
        >>> layer = ESMoE(8, num_experts=4, top_k=2).eval()
        >>> changes = contributions(layer, [torch.rand(1, 8, 6, 6)], [""])
        >>> sum(change > 1e-3 for change in changes[""])  # the two experts that the image selects
        2
    """
    sums = {name: torch.zeros(len(_layer(model, name).experts), dtype=torch.double) for name in layers}
    count = 0
    hooks = [_layer(model, name).register_forward_hook(_compare(_layer(model, name), sums[name])) for name in layers]
    try:
        device = next(model.parameters()).device
        for batch in loader:
            images = images_of(batch).to(device)
            count += len(images)
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (values / max(count, 1)).tolist() for name, values in sums.items()}


def _compare(layer: ESMoE, sums: Tensor) -> Any:
    """Return a hook that adds up what the layer's output would change by without each expert."""
    everything = range(len(layer.experts))
    smaller = [copy.deepcopy(layer) for _ in everything]
    for gone, candidate in enumerate(smaller):
        keep_experts(candidate, [index for index in everything if index != gone])

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        scale = output.flatten(1).norm(dim=1).clamp(min=1e-12)
        for gone, candidate in enumerate(smaller):
            change = (candidate(inputs[0]) - output).flatten(1).norm(dim=1) / scale
            sums[gone] += change.sum().item()

    return hook


def _layer(model: nn.Module, name: str) -> ESMoE:
    layer = model.get_submodule(name)
    if not isinstance(layer, ESMoE):
        raise ValueError(f"layers must name ESMoE layers, got {name!r}, a {type(layer).__name__}")
    return layer
