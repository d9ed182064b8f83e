# SPDX-License-Identifier: Apache-2.0
"""Readers, transforms, augmentation and loading of detection data, and generated scenes for trying things offline."""

from moe_vision.data.images import read_image
from moe_vision.data.inputs import ImageLike, to_image
from moe_vision.data.letterbox import Letterbox, LetterboxGeometry, letterbox_geometry, undo_letterbox
from moe_vision.data.loader import build_loader, collate
from moe_vision.data.mosaic import mosaic, scale_jitter
from moe_vision.data.pipeline import DetectionPipeline
from moe_vision.data.problems import Problem
from moe_vision.data.samples import DetectionSource, Sample, Target
from moe_vision.data.scenes import ShapeScenes
from moe_vision.data.transforms import eval_transform, train_transform
from moe_vision.data.voc import VOCDetection

__all__ = [
    "DetectionPipeline",
    "DetectionSource",
    "ImageLike",
    "Letterbox",
    "LetterboxGeometry",
    "Problem",
    "Sample",
    "ShapeScenes",
    "Target",
    "VOCDetection",
    "build_loader",
    "collate",
    "eval_transform",
    "letterbox_geometry",
    "mosaic",
    "read_image",
    "scale_jitter",
    "to_image",
    "train_transform",
    "undo_letterbox",
]
