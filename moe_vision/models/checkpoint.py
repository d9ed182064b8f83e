# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one safetensors file with the weights and, in its header, all it takes to build the network."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from moe_vision.models.config import YOLOMasterConfig
from moe_vision.models.yolo_master import YOLOMaster

FORMAT = "moe_vision-1"


def save_checkpoint(model: YOLOMaster, path: str | Path) -> None:
    """Write the network's weights, configuration, class names and image size, whole or not at all.

    Args:
        model: The network.
        path: File to write, ending in ``.safetensors``; its folder must exist.

    Raises:
        ValueError: If ``path`` has another ending.
        OSError: If the file can't be written.

    Examples:
        >>> import tempfile
        >>> from moe_vision import create_model
        >>> from moe_vision.models import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(create_model("yolo_master_n", num_classes=2), f"{folder}/last.safetensors")
        ...     load_checkpoint(f"{folder}/last.safetensors").config.num_classes
        2
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path.name}")
    header = {
        "format": FORMAT,
        "config": model.config.to_json(),
        "class_names": json.dumps(model.class_names),
        "image_size": json.dumps(model.image_size),
    }
    # safetensors stores memory as it lies, and refuses channels_last.
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # A run that is killed here leaves the previous file whole.
    partial = path.with_suffix(".partial")
    try:
        save_file(weights, partial, metadata=header)
    except SafetensorError as error:
        raise OSError(f"checkpoint {path} can't be written: {error}") from error
    partial.replace(path)


def load_checkpoint(path: str | Path) -> YOLOMaster:
    """Build the network that a checkpoint describes, with its weights, in eval mode. No code of the file runs.

    Args:
        path: A file that `save_checkpoint` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is no checkpoint of ours, or its weights don't fit its configuration.

    Examples:
        >>> from moe_vision.models import load_checkpoint
        >>> load_checkpoint("runs/none.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: checkpoint runs/none.safetensors does not exist
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} is truncated or not a safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} must have format {FORMAT!r} in its header, got {header.get('format')!r}")
    try:
        config = YOLOMasterConfig.from_json(header["config"])
        model = YOLOMaster(config, json.loads(header["class_names"]), image_size=json.loads(header["image_size"]))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} does not describe its weights: {error}") from error
    return model.eval()
