# SPDX-License-Identifier: Apache-2.0
"""The YOLO-Master networks: backbone, neck and head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe_vision.models.anchors import STRIDES
from moe_vision.models.backbone import YOLOMasterBackbone
from moe_vision.models.blocks import remove_experts, set_norm_constants
from moe_vision.models.classify_head import ClassifyHead
from moe_vision.models.config import SCALES, YOLOMasterConfig, named_config
from moe_vision.models.detect_head import DetectHead, DetectMaps, DetectOutput
from moe_vision.models.neck import PathAggregationNeck
from moe_vision.models.segment_head import SegmentHead, SegmentMaps, SegmentOutput
from moe_vision.models.timm_backbone import TimmBackbone

IMAGE_SIZES = {"detect": 640, "segment": 640, "classify": 224}


class YOLOMaster(nn.Module):
    """A network with sparse ES-MoE blocks that detects, segments or classifies (arXiv 2512.23273).

    Args:
        config: The architecture.
        class_names: Names of the classes, their numbers if None.
        image_size: Side in pixels of the images the network is meant for, a default for `moe_vision.predict`; if None,
            640, and 224 to classify.
        pretrained: Load timm's weights of the timm backbone, or those of a file.

    Shape:
        - Input: images (B, 3, H, W) in [0, 1], H and W multiples of 32
        - Output, ``detect``: `DetectMaps` in ``train()``, `DetectOutput` in ``eval()``
        - Output, ``segment``: `SegmentMaps` in ``train()``, `SegmentOutput` in ``eval()``
        - Output, ``classify``: logits (B, num_classes)

    Raises:
        ValueError: If ``class_names`` does not name each class, ``image_size`` is not a multiple of 32, the backbone
            has no weights to load, or the input is not a batch of RGB images whose sides are multiples of 32.

    Examples:
        >>> import torch
        >>> from moe_vision.models import YOLOMaster, named_config
        >>> model = YOLOMaster(named_config("yolo_master_n", num_classes=3)).eval()
        >>> model(torch.rand(1, 3, 64, 64)).boxes.shape
        torch.Size([1, 84, 4])
    """

    def __init__(
        self,
        config: YOLOMasterConfig,
        class_names: Sequence[str] | None = None,
        *,
        image_size: int | None = None,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__()
        names = tuple(str(i) for i in range(config.num_classes)) if class_names is None else tuple(class_names)
        if len(names) != config.num_classes:
            raise ValueError(f"class_names must name num_classes={config.num_classes} classes, got {len(names)}")
        self.config = config
        self.class_names = names
        self.image_size = IMAGE_SIZES[config.task] if image_size is None else image_size
        check_image_size(self.image_size)
        self.backbone = _build_backbone(config, pretrained)
        if config.task != "classify":
            self.neck = PathAggregationNeck(config.backbone_channels, config)
        self.head = _build_head(config)
        set_norm_constants(self, config)
        remove_experts(self, config)

    def forward(self, images: Tensor) -> DetectMaps | DetectOutput | SegmentMaps | SegmentOutput | Tensor:
        """Return logits of the classes, or raw maps in training and what they mean otherwise."""
        _check_images(images)
        features = self.backbone(images)
        if self.config.task == "classify":
            return cast(Tensor, self.head(features[-1]))
        maps = cast(DetectMaps | SegmentMaps, self.head(self.neck(*features)))
        return maps if self.training else maps.output()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have the backbone, which holds most of the memory, trade time for it in training; results stay the same.

        Raises:
            ValueError: If it is a timm backbone with batch norms, which would count every batch twice.
        """
        self.backbone.set_grad_checkpointing(enable)


def create_model(
    name: str,
    *,
    task: str = "detect",
    num_classes: int = 80,
    variant: str = "paper",
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    pretrained: bool | str | Path = False,
    **changes: Any,
) -> YOLOMaster:
    """Build a network by its name, with random weights.

    Args:
        name: One of `list_models`.
        task: What the network predicts: ``detect``, ``segment`` or ``classify``.
        num_classes: Number of classes.
        variant: ``paper``: 4 experts of kernel sizes 3, 5, 7 and 9, of which an image selects 2; ``esmoe``: the
            released networks, 3 experts of kernel sizes 3, 5 and 7, all active, trained with the DFL loss; ``v0_1``:
            those released before, 4, 8 and 16 pointwise experts beside a shared one, 2 active.
        class_names: Names of the classes, their numbers if None.
        image_size: Side in pixels of the images it is meant for, a multiple of 32; if None, 640, and 224 to classify.
        pretrained: With a timm ``backbone``, load the weights that timm has for it, or those of a file.
        changes: Fields of `moe_vision.models.YOLOMasterConfig` to set otherwise: ``placement="none"`` has no experts,
            ``backbone="convnext_tiny"`` puts neck and head on another backbone.

    Raises:
        ValueError: If a name is unknown, which lists the known ones, or a backbone does not fit.

    Examples:
        >>> from moe_vision import create_model
        >>> model = create_model("yolo_master_n", num_classes=80)
        >>> sum(parameter.numel() for parameter in model.parameters())
        2844648
    """
    config = named_config(name, task=task, num_classes=num_classes, variant=variant, **changes)
    return YOLOMaster(config, class_names, image_size=image_size, pretrained=pretrained)


def list_models() -> list[str]:
    """Return the names that `create_model` knows.

    Examples:
        >>> from moe_vision import list_models
        >>> list_models()
        ['yolo_master_l', 'yolo_master_m', 'yolo_master_n', 'yolo_master_s', 'yolo_master_x']
    """
    return sorted(SCALES)


def check_image_size(image_size: int) -> None:
    """Raise ValueError unless the network takes square images of this side in pixels."""
    if image_size < STRIDES[-1] or image_size % STRIDES[-1]:
        raise ValueError(f"image_size must be a multiple of {STRIDES[-1]}, got {image_size}")


def _build_backbone(config: YOLOMasterConfig, pretrained: bool | str | Path) -> YOLOMasterBackbone | TimmBackbone:
    if config.backbone != "yolo_master":
        return TimmBackbone(config, pretrained)
    if pretrained:
        raise ValueError(
            f"pretrained must be False for backbone='yolo_master', got {pretrained!r}; its weights come from a "
            "checkpoint (load_checkpoint) or a released file (load_official)"
        )
    return YOLOMasterBackbone(config)


def _build_head(config: YOLOMasterConfig) -> nn.Module:
    if config.task == "classify":
        return ClassifyHead(config.backbone_channels[-1], config.num_classes)
    if config.task == "segment":
        return SegmentHead(config.neck_channels, config.num_classes, config.channels(256), config.reg_max)
    return DetectHead(config.neck_channels, config.num_classes, config.reg_max)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if torch.compiler.is_compiling():  # a test of a dynamic size would fix it in the graph
        return
    if images.shape[2] % STRIDES[-1] or images.shape[3] % STRIDES[-1]:
        raise ValueError(
            f"images must have height and width in multiples of {STRIDES[-1]}, got {tuple(images.shape[2:])}; "
            "pad them, or use moe_vision.predict, which does"
        )
