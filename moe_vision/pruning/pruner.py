# SPDX-License-Identifier: Apache-2.0
"""Removing experts, one after the other, as long as it does little harm."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moe_vision.diagnostics import compare_latency, count_flops, count_parameters
from moe_vision.layers import ESMoE, TopKGate, keep_experts
from moe_vision.layers.checks import check_positive
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.models import YOLOMaster
from moe_vision.pruning.contribution import contributions, images_of
from moe_vision.pruning.recalibration import recalibrate
from moe_vision.pruning.report import PruneReport, Removal

M = TypeVar("M", bound=nn.Module)


def prune(
    model: M,
    loader: Iterable[Any],
    *,
    keep: int | None = None,
    max_drop: float | None = None,
    evaluate: Callable[[M], float] | None = None,
) -> tuple[M, PruneReport]:
    """Remove experts from a copy of a model: those that contribute least, one at a time, over all its layers.

    Each time it is measured how the output of a layer would change without each expert (by calibration images, not by
    usage); the expert that changes least goes with its row of the router, and the batch norms gather their statistics
    anew. A layer never goes below the K experts that its images use: what it computes would be another network.

    Args:
        model: Any module with `ESMoE` layers; it is left as it is.
        loader: Batches of calibration images, with or without targets, such as a list or a DataLoader; it is gone
            through several times.
        keep: Experts that a layer keeps at least; if None, it is up to ``max_drop`` alone.
        max_drop: Most that the accuracy may fall by; the removal that would cost more is taken back, and it ends.
        evaluate: Returns the accuracy of a model, where more is better; needed for ``max_drop``, and reported.

    Returns:
        The smaller copy, in eval mode, whose checkpoint records which experts stayed; and what was done.

    Raises:
        ValueError: If neither ``keep`` nor ``max_drop`` is given, ``max_drop`` has no ``evaluate``, a value is out of
            its range, the model has no `ESMoE`, or ``loader`` can be gone through just once.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE, prune
        >>> layer = ESMoE(8, num_experts=4, top_k=2)
        >>> smaller, report = prune(layer, [torch.rand(4, 8, 12, 12)], keep=3)
        >>> len(smaller.experts), len(report.removed), report.reason
        (3, 1, 'every layer has keep=3 experts left, or the K that its images use')
    """
    _check(model, loader, keep, max_drop, evaluate)
    original = copy.deepcopy(model).eval()
    pruned = original
    kept = _kept(original)
    first = accuracy = None if evaluate is None else evaluate(original)
    removed: list[Removal] = []
    while True:
        prunable = [name for name, layer in esmoe_layers(pruned).items() if len(layer.experts) > _least(layer, keep)]
        if not prunable:
            reason = _nothing_left(removed, keep)
            break
        layer, place, change = _least_harmful(pruned, loader, prunable)
        smaller = _without(pruned, layer, place, loader)
        new = None if evaluate is None else evaluate(smaller)
        if max_drop is not None and first is not None and new is not None and first - new > max_drop:
            reason = (
                f"without expert {kept[layer][place]} of {layer!r} the accuracy would be {new:.4f}, more than "
                f"max_drop={max_drop} below {first:.4f}"
            )
            break
        pruned, accuracy = smaller, new
        removed.append(Removal(layer, kept[layer].pop(place), change))
    if removed and isinstance(pruned, YOLOMaster):  # a checkpoint carries its configuration
        pruned.config = replace(pruned.config, kept_experts={name: tuple(stays) for name, stays in kept.items()})
    accuracies = None if first is None or accuracy is None else (first, accuracy)
    return pruned, _report(original, pruned, removed, reason, accuracies, images_of(next(iter(loader))))


def _check(model: nn.Module, loader: Iterable[Any], keep: int | None, max_drop: float | None, evaluate: object) -> None:
    if not esmoe_layers(model):
        raise ValueError(f"model must hold at least one ESMoE, got a {type(model).__name__} without any")
    if keep is None and max_drop is None:
        raise ValueError("keep or max_drop must be given, or there is nothing to stop at, got neither")
    if keep is not None:
        check_positive(keep=keep)
    if max_drop is not None and not max_drop >= 0:
        raise ValueError(f"max_drop must be at least 0, got {max_drop}")
    if max_drop is not None and evaluate is None:
        raise ValueError("evaluate must be given with max_drop, to measure what pruning costs, got None")
    if iter(loader) is loader:
        raise ValueError("loader must be a DataLoader or a list of batches, to be gone through several times")


def _least(layer: ESMoE, keep: int | None) -> int:
    """Return how many experts a layer keeps at least."""
    return max(keep or 1, layer.gate.top_k if isinstance(layer.gate, TopKGate) else 1)


def _nothing_left(removed: list[Removal], keep: int | None) -> str:
    if not removed and keep is None:
        return "in every layer all experts are active for every image (K = E)"
    wanted = "the" if keep is None else f"keep={keep} experts left, or the"
    return f"every layer has {wanted} K that its images use"


def _kept(model: nn.Module) -> dict[str, list[int]]:
    """Return the experts that each layer has, by the numbers that they had before anything was removed."""
    earlier = model.config.kept_experts if isinstance(model, YOLOMaster) else {}
    return {name: list(earlier.get(name, range(len(layer.experts)))) for name, layer in esmoe_layers(model).items()}


def _least_harmful(model: nn.Module, loader: Iterable[Any], layers: list[str]) -> tuple[str, int, float]:
    """Return layer and place of the expert without which the output of its layer changes least, and that change."""
    changes = contributions(model, loader, layers)
    candidates = [(name, place, change) for name, of_layer in changes.items() for place, change in enumerate(of_layer)]
    return min(candidates, key=lambda candidate: candidate[2])


def _without(model: M, layer: str, place: int, loader: Iterable[Any]) -> M:
    smaller = copy.deepcopy(model)
    block = esmoe_layers(smaller)[layer]
    keep_experts(block, [index for index in range(len(block.experts)) if index != place])
    recalibrate(smaller, loader)
    return smaller


@torch.inference_mode()
def _report(
    original: nn.Module,
    pruned: nn.Module,
    removed: list[Removal],
    reason: str,
    accuracy: tuple[float, float] | None,
    images: Tensor,
) -> PruneReport:
    _, channels, height, width = images.shape
    image = images[:1].to(next(pruned.parameters()).device)
    times = compare_latency({"before": lambda: original(image), "after": lambda: pruned(image)})
    models = (original, pruned)
    parameters = tuple(count_parameters(model) for model in models)
    flops = tuple(count_flops(model, (channels, height, width)) for model in models)
    return PruneReport(
        removed=tuple(removed),
        reason=reason,
        parameters=(parameters[0], parameters[1]),
        flops=(flops[0], flops[1]),
        milliseconds=(times["before"].median, times["after"].median),
        accuracy=accuracy,
    )
