# SPDX-License-Identifier: Apache-2.0
"""Swapped models in a folder: the weights as safetensors, and the recipe with the name of the model as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_vision.surgery.recipe import SwapRecipe

FORMAT = "moe_vision-swap-1"
WEIGHTS, RECIPE = "model.safetensors", "swap.json"


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
        with torch.device("meta"):
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
        recipe = SwapRecipe.from_json(json.dumps(record["recipe"]))
        weights = load_file(folder / WEIGHTS)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} must hold a swapped model: {error}") from error
    if model is None:
        if not record["arguments"]:
            raise ValueError(f"model must be given, since {folder} holds one that timm does not build, got None")
        model = _build(record["arguments"], recipe)
    else:
        recipe.apply(model)
    _check(model, weights, f"weights in {folder} must be those of the model")
    model.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    model.load_state_dict(weights)
    return model.eval()


def _arguments(model: nn.Module) -> dict[str, Any]:
    """Return what builds a model of timm, as far as the model itself tells; nothing for other models."""
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return {}
    channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    return {"model_name": architecture, "num_classes": model.num_classes, "in_chans": channels}


def _build(arguments: Mapping[str, Any], recipe: SwapRecipe) -> nn.Module:
    import timm  # seconds; models that are given need none of it

    model = timm.create_model(**arguments)
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
