# SPDX-License-Identifier: Apache-2.0
"""What a file must say of itself before it is relied upon."""

from collections.abc import Mapping
from typing import Any

MAX_SIDE = 2**14  # of images in pixels
NUMBER_OF_VALUES = {"range": 2, "mean": 3, "std": 3}


def check_metadata(about: Mapping[str, Any]) -> None:
    """Raise ValueError unless a file says all it takes to use it."""
    names, size, dynamic = (about.get(key) for key in ("class_names", "image_size", "dynamic"))
    size = size if type(size) is int else 0
    _require(about.get("task") in ("detect", "segment", "classify"), "task", about.get("task"))
    _require(isinstance(names, list) and all(isinstance(name, str) for name in names), "class_names", names)
    _require(32 <= size <= MAX_SIDE and size % 32 == 0, "image_size", about.get("image_size"))
    _require(isinstance(dynamic, bool), "dynamic", dynamic)
    given: Any = about.get("input")
    _require(isinstance(given, dict), "input", given)
    for name, count in NUMBER_OF_VALUES.items():
        values = given.get(name)
        _require(isinstance(values, list) and len(values) == count and all(map(_finite, values)), name, values)
    _require(0 not in given["std"], "std", given["std"])
    fill = given.get("letterbox")
    _require(_finite(fill) and 0 <= fill <= 1, "letterbox", fill)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e6  # refuses nan too


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise ValueError(f"its {name} must be that of a network of moe_vision.export, got {str(value)[:100]}")
