# SPDX-License-Identifier: Apache-2.0
"""Readers, transforms, augmentation and loading of images with their objects, and scenes for trying things offline."""

from moe_vision.data.affine import random_affine
from moe_vision.data.classification import ClassificationPipeline
from moe_vision.data.copy_paste import copy_paste
from moe_vision.data.images import read_image
from moe_vision.data.inputs import ImageLike, to_image
from moe_vision.data.letterbox import Letterbox, undo_letterbox
from moe_vision.data.loader import build_loader, collate
from moe_vision.data.mixup import mixup
from moe_vision.data.mosaic import mosaic, scale_jitter
from moe_vision.data.opening import open_dataset
from moe_vision.data.pipeline import DetectionPipeline
from moe_vision.data.problems import Problem
from moe_vision.data.readers.class_folders import ClassFolders
from moe_vision.data.readers.class_list import ClassList
from moe_vision.data.readers.coco import COCODetection
from moe_vision.data.readers.instance_masks import InstanceMasks
from moe_vision.data.readers.voc import VOCDetection
from moe_vision.data.readers.yolo import YOLODetection
from moe_vision.data.report import describe, format_description
from moe_vision.data.samples import ClassificationSource, DetectionSource, Sample, Target
from moe_vision.data.scenes import ShapeScenes
from moe_vision.data.transforms import eval_transform, train_transform
from moe_vision.runtime.letterbox import LetterboxGeometry, letterbox_geometry

__all__ = [
    "COCODetection",
    "ClassFolders",
    "ClassList",
    "ClassificationPipeline",
    "ClassificationSource",
    "DetectionPipeline",
    "DetectionSource",
    "ImageLike",
    "InstanceMasks",
    "Letterbox",
    "LetterboxGeometry",
    "Problem",
    "Sample",
    "ShapeScenes",
    "Target",
    "VOCDetection",
    "YOLODetection",
    "build_loader",
    "collate",
    "copy_paste",
    "describe",
    "eval_transform",
    "format_description",
    "letterbox_geometry",
    "mixup",
    "mosaic",
    "open_dataset",
    "random_affine",
    "read_image",
    "scale_jitter",
    "to_image",
    "train_transform",
    "undo_letterbox",
]
