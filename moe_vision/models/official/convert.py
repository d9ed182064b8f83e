# SPDX-License-Identifier: Apache-2.0
"""Released weights become one of our networks."""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from moe_vision.layers.without_memory import without_memory
from moe_vision.models.config import YOLOMasterConfig, variant_of
from moe_vision.models.official.fit import Match, match_tensors, read_tensor
from moe_vision.models.official.layers import ES_MOE, POINTWISE_MOE, Layer, group_by_layer
from moe_vision.models.official.recognize import recognize
from moe_vision.models.official.report import ConversionReport
from moe_vision.models.official.weights import Weights, open_weights
from moe_vision.models.yolo_master import YOLOMaster


def load_official(path: str | Path) -> tuple[YOLOMaster, ConversionReport]:
    """Build the network of a file of released weights, with its weights in 32 bits, in eval mode.

    Task, scale, variant, experts and number of classes are read off names and shapes of the tensors. How many experts
    an image selects is an attribute of a pickled network; weights alone don't show it, and `ConversionReport` says
    what was assumed: 3 of 3 with kernel sizes 3, 5 and 7, otherwise 2. No code of the file runs, and no class that it
    names is imported.

    Args:
        path: A ``.pt`` with a pickled network, or a state_dict of one in ``.pt`` or ``.safetensors``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it can't be read, refers to anything but tensors, containers and layers, or its layers and
            tensors are not those of a network that we have.

    Examples:
        >>> from moe_vision import load_official
        >>> load_official("weights/none.pt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: weights/none.pt does not exist
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"path must be a file, got {path}")
    try:
        with open_weights(path) as weights:
            return _convert(weights)
    except ValueError as error:
        raise ValueError(f"{path} can't be converted: {error}") from error


def _convert(weights: Weights) -> tuple[YOLOMaster, ConversionReport]:
    layers = group_by_layer(weights.entries)
    top_k = _stored_top_k(layers, weights)
    scale, config = recognize(layers, top_k)
    with without_memory():
        model = YOLOMaster(config)
    matches = match_tensors(layers, model)
    model.load_state_dict({match.name: read_tensor(match) for match in matches}, assign=True)
    class_names, notes = _class_names(weights.class_names, config.num_classes)
    notes += _keep_eps(model, matches, weights)
    if class_names is not None:
        model.class_names = class_names
    if top_k is None and config.placement != "none":
        notes += [f"top_k {config.top_k} is assumed; weights don't show how many experts an image selects"]
    return model.eval(), _report(scale, config, class_names, len(matches), weights.ignored, notes)


def _keep_eps(model: YOLOMaster, matches: list[Match], weights: Weights) -> list[str]:
    """Let each norm divide by what it was released with: sqrt(variance + eps), where its eps is not that of ours.

    Released classifiers have PyTorch's eps; detectors have theirs set to 1e-3.
    """
    usual = 1e-5 if model.config.task == "classify" else 1e-3
    shifts = set()
    for match in matches:
        if match.name.endswith(".running_var"):
            norm = cast(nn.BatchNorm2d, model.get_submodule(match.name.removesuffix(".running_var")))
            stored = weights.attributes.get(match.source.removesuffix("running_var"), {}).get("eps")
            eps = stored if type(stored) is float and 0 < stored < 1 else usual
            if eps != norm.eps:
                cast(Tensor, norm.running_var).add_(eps - norm.eps)
                shifts.add(f"eps {eps:g} of its norms is {norm.eps:g} in ours; the running variances make up for it")
    return sorted(shifts)


def _report(
    scale: str,
    config: YOLOMasterConfig,
    class_names: tuple[str, ...] | None,
    matched: int,
    ignored: tuple[str, ...],
    notes: list[str],
) -> ConversionReport:
    dense = config.placement == "none"
    return ConversionReport(
        name=scale,
        task=config.task,
        variant=variant_of(config),
        placement=config.placement,
        num_experts=0 if dense else config.num_experts,
        top_k=0 if dense else config.top_k,
        kernel_sizes=() if dense else config.kernel_sizes,
        num_classes=config.num_classes,
        class_names=class_names,
        matched=matched,
        ignored=ignored,
        notes=tuple(notes),
    )


def _stored_top_k(layers: list[Layer], weights: Weights) -> int | None:
    """Return what the pickled MoE blocks say of how many experts an image selects, or None if they are silent."""
    blocks = [layer for layer in layers if layer.kind in (ES_MOE, POINTWISE_MOE)]
    found = {_top_k(layer, weights.attributes.get(layer.prefix, {})) for layer in blocks}
    if len(found) > 1:
        raise ValueError(f"its MoE blocks must all select as many experts, got {sorted(found, key=str)}")
    return found.pop() if found else None


def _top_k(layer: Layer, attributes: dict[str, Any]) -> int | None:
    if attributes.get("add_residual") is True:
        raise ValueError(f"its layer {layer} adds its input to its output, which our block does not")
    top_k = attributes.get("top_k")
    if attributes.get("use_top_k") is False or ("top_k" in attributes and top_k is None):
        return layer.count(r"experts\.(\d+)\.")  # a mixture of all
    return top_k if type(top_k) is int else None


def _class_names(found: object, num_classes: int) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the names of a list, or of a dictionary from 0, if they are whole; else none and why."""
    if found is None:
        return None, []
    names = found
    if isinstance(found, dict) and set(found) == set(range(len(found))):
        names = [found[number] for number in range(len(found))]
    if isinstance(names, list | tuple) and len(names) == num_classes and all(type(name) is str for name in names):
        return tuple(names), []
    return None, [f"the class names are left out: they must be {num_classes} texts, numbered from 0"]
