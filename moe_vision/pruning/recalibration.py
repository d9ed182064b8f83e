# SPDX-License-Identifier: Apache-2.0
"""Batch norms that gather their statistics anew, for features that have changed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moe_vision.layers.esmoe import esmoe_layers, set_dispatch
from moe_vision.pruning.contribution import images_of


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any]) -> None:
    """Replace the statistics of all batch norms by their averages over calibration images, in place.

    Everything but the norms stays in eval. The norms of experts see every image, as in training.

    Args:
        model: Any module in eval mode.
        loader: Batches of images, with or without targets.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.pruning.recalibration import recalibrate
        >>> norm = nn.BatchNorm2d(1).eval()
        >>> recalibrate(norm, [torch.full((2, 1, 4, 4), 3.0), torch.full((2, 1, 4, 4), 5.0)])
        >>> norm.running_mean
        tensor([4.])
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    dispatches = {layer: layer.dispatch for layer in esmoe_layers(model).values()}
    set_dispatch(model, "dense")
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        device = next(model.parameters()).device
        for batch in loader:
            model(images_of(batch).to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
        for layer, dispatch in dispatches.items():
            layer.dispatch = dispatch
