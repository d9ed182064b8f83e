# SPDX-License-Identifier: Apache-2.0
"""Tasks: what a network is trained on, its loss, and what its output means."""

from moe_vision.tasks.classify import classify_loss
from moe_vision.tasks.detect import check_targets, detect_loss
from moe_vision.tasks.masks import mask_polygons, render_masks
from moe_vision.tasks.postprocess import class_scores, postprocess
from moe_vision.tasks.segment import segment_loss

__all__ = [
    "check_targets",
    "class_scores",
    "classify_loss",
    "detect_loss",
    "mask_polygons",
    "postprocess",
    "render_masks",
    "segment_loss",
]
