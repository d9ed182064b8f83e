# SPDX-License-Identifier: Apache-2.0
"""Prediction with an exported file and without torch: numpy, Pillow and ONNX Runtime are all it needs."""

from moe_vision.runtime.runner import Runner

__all__ = ["Runner"]
