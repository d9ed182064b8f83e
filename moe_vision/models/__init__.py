# SPDX-License-Identifier: Apache-2.0
"""Networks made of the layers."""

from moe_vision.models.backbone import YOLOMasterBackbone
from moe_vision.models.checkpoint import load_checkpoint, save_checkpoint
from moe_vision.models.config import YOLOMasterConfig, named_config
from moe_vision.models.heads import DetectHead, DetectMaps, DetectOutput
from moe_vision.models.neck import PathAggregationNeck
from moe_vision.models.yolo_master import YOLOMaster, create_model, list_models

__all__ = [
    "DetectHead",
    "DetectMaps",
    "DetectOutput",
    "PathAggregationNeck",
    "YOLOMaster",
    "YOLOMasterBackbone",
    "YOLOMasterConfig",
    "create_model",
    "list_models",
    "load_checkpoint",
    "named_config",
    "save_checkpoint",
]
