# SPDX-License-Identifier: Apache-2.0
"""Swapped models in a folder: the weights as safetensors, and the recipe with the name of the model as JSON."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_vision.layers.without_memory import without_memory
from moe_vision.surgery.recipe import SwapRecipe

FORMAT = "moe_vision-swap-1"
WEIGHTS, RECIPE = "model.safetensors", "swap.json"
# Arguments of `timm.create_model` by which it loads other files, some of which run code.
FETCHING = {"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}


def save_swapped(
    model: nn.Module, folder: str | Path, recipe: SwapRecipe, *, arguments: Mapping[str, Any] | None = None
) -> None:
    """Write the weights of a swapped model, and what it takes to build it.

    Args:
        model: The model.
        folder: Where to write; it is made if it does not exist.
        recipe: The recipe of the swap: ``report.recipe``.
        arguments: What `timm.create_model` is to be called with, of values that JSON has; the model's name, number of
            classes and channels if None. They are tried at once. Without meaning for a model that is not timm's.

    Raises:
        ValueError: If these arguments do not build the model.

    Examples:
        >>> import tempfile
        >>> import timm
        >>> from moe_vision import load_swapped, swap
        >>> from moe_vision.surgery import save_swapped
        >>> model = timm.create_model("test_convnext", num_classes=5).eval()
        >>> report = swap(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_swapped(model, folder, report.recipe)
        ...     again = load_swapped(folder)
        >>> again.num_classes
        5
    """
    arguments = _arguments(model) if arguments is None else dict(arguments)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if arguments:
        _check_arguments(arguments)
        with without_memory():
            _check(_build(arguments, recipe), weights, f"arguments {arguments} must build the model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    record = {"format": FORMAT, "arguments": arguments, "recipe": json.loads(recipe.to_json())}
    (folder / RECIPE).write_text(json.dumps(record, indent=1) + "\n")


def load_swapped(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Build a model, swap its sites and load the weights that `save_swapped` wrote. No code of the files runs.

    Args:
        folder: Where they are.
        model: A model like the one that was swapped, for those that timm does not build; it is swapped in place.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If they are damaged, or do not go with each other or with ``model``.

    Examples:
        >>> from moe_vision import load_swapped
        >>> load_swapped("runs/none")
        Traceback (most recent call last):
        ...
        FileNotFoundError: runs/none/swap.json does not exist
    """
    folder = Path(folder)
    for path in (folder / RECIPE, folder / WEIGHTS):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    try:
        record = json.loads((folder / RECIPE).read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {record['format']!r}")
        arguments, recipe = record["arguments"], SwapRecipe.from_json(json.dumps(record["recipe"]))
        weights = load_file(folder / WEIGHTS)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} must hold a swapped model: {error}") from error
    if recipe.num_experts > len(weights):
        raise ValueError(f"{folder} must hold a swapped model: {recipe.num_experts} experts in {len(weights)} tensors")
    if model is None and not arguments:
        raise ValueError(f"model must be given, since {folder} holds one that timm does not build, got None")
    try:
        model = _rebuilt(arguments, recipe, weights, model)
    except ValueError as error:
        raise ValueError(f"{folder} must hold a swapped model: {error}") from error
    model.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    model.load_state_dict(weights)
    return model.eval()


def _rebuilt(arguments: Any, recipe: SwapRecipe, weights: Mapping[str, Tensor], model: nn.Module | None) -> nn.Module:
    """Build and swap a model once without memory, for a few bytes can describe one of any size, and then for good."""
    if model is None:
        _check_arguments(arguments)
    with without_memory():
        trial = _build(arguments, recipe) if model is None else _applied(recipe, deepcopy(model).to("meta"))
        _check(trial, weights, "its weights must be those of the model")
    return _build(arguments, recipe) if model is None else _applied(recipe, model)


def _check_arguments(arguments: Any) -> None:
    """Raise ValueError if timm would read other files or the internet for them, or has no such model."""
    import timm

    name = arguments.get("model_name") if isinstance(arguments, dict) else None
    if not isinstance(name, str) or not timm.is_model(name) or FETCHING & arguments.keys():
        raise ValueError(f"arguments must have the model_name of timm and none of {sorted(FETCHING)}, got {arguments}")


def _arguments(model: nn.Module) -> dict[str, Any]:
    """Return what builds a model of timm, as far as the model itself tells; nothing for other models."""
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return {}
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    return {"model_name": architecture, "num_classes": model.num_classes, "in_chans": channels}


def _build(arguments: Mapping[str, Any], recipe: SwapRecipe) -> nn.Module:
    import timm  # seconds; models that are given need none of it

    try:
        return _applied(recipe, timm.create_model(**arguments))
    except Exception as error:  # what a wrong argument raises depends on the family of the model
        raise ValueError(f"arguments {arguments} must build a model with the sites of the recipe: {error!r}") from error


def _applied(recipe: SwapRecipe, model: nn.Module) -> nn.Module:
    recipe.apply(model)
    return model


def _check(model: nn.Module, weights: Mapping[str, Tensor], rule: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        first = different[0]
        raise ValueError(
            f"{rule}, but {len(different)} tensors differ, the first {first!r}: {expected.get(first)} built, "
            f"{found.get(first)} saved"
        )
