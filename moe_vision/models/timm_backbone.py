# SPDX-License-Identifier: Apache-2.0
"""Any timm backbone with features at strides 8, 16 and 32, under our neck and heads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_vision.layers.convolution import ConvNormAct
from moe_vision.models.anchors import STRIDES
from moe_vision.models.blocks import backbone_block
from moe_vision.models.config import YOLOMasterConfig

SUITABLE = "convnext_tiny, resnet50, efficientnet_b0, mobilenetv4_conv_small, repvit_m1_0, hgnetv2_b0"


class TimmBackbone(nn.Module):
    """Features of a timm model, each brought to the width of the YOLO-Master backbone and through an MoE block.

    Args:
        config: The architecture; ``backbone`` is the name of a timm model.
        pretrained: Load the weights that timm has for it, or those of a file.

    Shape:
        - Input: images (B, 3, H, W) in [0, 1], H and W multiples of 32; they are normalised as the timm model expects
        - Output: P3 (B, C3, H / 8, W / 8), P4 (B, C4, H / 16, W / 16), P5 (B, C5, H / 32, W / 32)

    Raises:
        ValueError: If timm has no such model, or its features do not include the strides 8, 16 and 32.

    Examples:
        >>> import torch
        >>> from moe_vision.models import TimmBackbone, named_config
        >>> backbone = TimmBackbone(named_config("yolo_master_n", backbone="resnet18"))
        >>> [tuple(features.shape[1:]) for features in backbone(torch.rand(1, 3, 64, 96))]
        [(128, 8, 12), (128, 4, 6), (256, 2, 3)]
    """

    def __init__(self, config: YOLOMasterConfig, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        import timm  # seconds; those who use our own backbone do not wait for it

        probe = _probe(config.backbone)
        places = [_last(probe.feature_info.reduction(), stride) for stride in STRIDES]
        widths = [probe.feature_info.channels()[place] for place in places]
        self.normalize = Normalize(probe.pretrained_cfg["mean"], probe.pretrained_cfg["std"])
        self.body = timm.create_model(
            config.backbone,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=None if isinstance(pretrained, bool) else {"file": str(pretrained)},
            features_only=True,
            out_indices=[probe.feature_info.out_indices[place] for place in places],
        )
        c3, c4, c5 = self.out_channels = config.backbone_channels
        self.laterals = nn.ModuleList(
            nn.Sequential(ConvNormAct(width, channels), backbone_block(channels, stage, config))
            for width, channels, stage in zip(widths, (c3, c4, c5), (3, 4, 5), strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features P3, P4 and P5."""
        features = self.body(self.normalize(images))
        p3, p4, p5 = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        return p3, p4, p5


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, a channel each.

    Args:
        mean: Means of the channels.
        std: Standard deviations of the channels.

    Shape:
        - Input: (B, 3, H, W) in [0, 1]
        - Output: as the input

    Examples:
        >>> import torch
        >>> from moe_vision.models.timm_backbone import Normalize
        >>> Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(torch.ones(1, 3, 1, 1)).flatten()
        tensor([1., 1., 1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images."""
        return (images - self.mean) / self.std


def _probe(name: str) -> Any:
    """Return a timm model without memory, whose features include our strides."""
    import timm

    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"backbone must be a timm model with features, such as {SUITABLE}; {name!r}: {error}"
        ) from error
    strides = model.feature_info.reduction()
    if not set(STRIDES) <= set(strides):
        raise ValueError(
            f"backbone must have features at strides 8, 16 and 32, as {SUITABLE} have; {name!r} has {strides}"
        )
    return model


def _last(strides: list[int], stride: int) -> int:
    """Return the place of the last, deepest features of a stride."""
    return len(strides) - 1 - strides[::-1].index(stride)
