# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation; they need the extra ``train``, the settings do not."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_vision.train.settings import TrainSettings

if TYPE_CHECKING:
    from moe_vision.train.evaluation import evaluate
    from moe_vision.train.trainer import Trainer

__all__ = ["TrainSettings", "Trainer", "evaluate"]

# The command line shows the settings, and must not wait for accelerate and timm, or need them.
_LAZY = {"Trainer": "trainer", "evaluate": "evaluation"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_vision.train' has no attribute {name!r}")
    return getattr(import_module(f"moe_vision.train.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
