# SPDX-License-Identifier: Apache-2.0
"""Networks of other packages, to compare with: for who has installed the package by hand.

They are built with random weights from the names that their package gives them, by its public interface alone.
"""

import contextlib
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

PACKAGE = "ultralytics"
TASKS = {"": "detect", "-seg": "segment", "-cls": "classify"}


def is_peer(name: str, task: str, scale: str) -> bool:
    """Say whether a network named like ``yolo12n`` or ``yolo11s-seg`` has this task and scale."""
    match = re.fullmatch(r"\w+([nsmlx])(-seg|-cls|)", name)
    if match is None:
        raise ValueError(f"peer must be a name like yolo12n, yolo12n-seg or yolo12n-cls, got {name!r}")
    return match[1] == scale and TASKS[match[2]] == task


def fused(name: str) -> nn.Module:
    """Build a network and fuse it as its package does."""
    network: Any = import_module(PACKAGE).YOLO(f"{name}.yaml", verbose=False)
    network.fuse()
    return network.model.eval()  # type: ignore[no-any-return]


def exported(name: str, folder: Path, image_size: int, batch: int) -> Path:
    """Have the package export a network to an ONNX file, with the defaults of that package."""
    network: Any = import_module(PACKAGE).YOLO(f"{name}.yaml", verbose=False)
    with contextlib.chdir(folder):  # where it writes
        return Path(network.export(format="onnx", imgsz=image_size, batch=batch)).absolute()


def package_version() -> str:
    return f"{PACKAGE} {version(PACKAGE)}"
