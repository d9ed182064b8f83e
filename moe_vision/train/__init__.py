# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation."""

from moe_vision.train.evaluate import evaluate
from moe_vision.train.settings import TrainSettings
from moe_vision.train.trainer import Trainer

__all__ = ["TrainSettings", "Trainer", "evaluate"]
