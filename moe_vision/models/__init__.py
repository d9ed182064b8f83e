# SPDX-License-Identifier: Apache-2.0
"""Networks made of the layers."""

from moe_vision.models.backbone import YOLOMasterBackbone
from moe_vision.models.checkpoint import load_checkpoint, save_checkpoint
from moe_vision.models.classify_head import ClassifyHead
from moe_vision.models.config import YOLOMasterConfig, named_config
from moe_vision.models.detect_head import DetectHead, DetectMaps, DetectOutput
from moe_vision.models.exported import ExportedNetwork
from moe_vision.models.neck import PathAggregationNeck
from moe_vision.models.official import ConversionReport, load_official
from moe_vision.models.segment_head import SegmentHead, SegmentMaps, SegmentOutput
from moe_vision.models.timm_backbone import TimmBackbone
from moe_vision.models.yolo_master import YOLOMaster, create_model, list_models

__all__ = [
    "ClassifyHead",
    "ConversionReport",
    "DetectHead",
    "DetectMaps",
    "DetectOutput",
    "ExportedNetwork",
    "PathAggregationNeck",
    "SegmentHead",
    "SegmentMaps",
    "SegmentOutput",
    "TimmBackbone",
    "YOLOMaster",
    "YOLOMasterBackbone",
    "YOLOMasterConfig",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_official",
    "named_config",
    "save_checkpoint",
]
