# SPDX-License-Identifier: Apache-2.0
"""Any timm backbone with features at strides 8, 16 and 32, under our neck and heads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moe_vision.layers.convolution import ConvNormAct
from moe_vision.layers.without_memory import without_memory
from moe_vision.models.anchors import STRIDES
from moe_vision.models.blocks import backbone_block
from moe_vision.models.config import SCALES, YOLOMasterConfig

SUITABLE = "convnext_tiny, resnet50, efficientnet_b0, mobilenetv4_conv_small, repvit_m1_0, hgnetv2_b0"


class TimmBackbone(nn.Module):
    """Features of a timm model, each brought to the width of the YOLO-Master backbone and through an MoE block.

    Args:
        config: The architecture; ``backbone`` is the name of a timm model.
        pretrained: Load the weights that timm has for it, or those of a file.

    Attributes:
        normalize: The normalisation that the timm model was trained with.
        body: The timm model.
        laterals: Convolution and MoE block of each level.

    Shape:
        - Input: images (B, 3, H, W) in [0, 1], H and W multiples of 32; they are normalised as the timm model expects
        - Output: P3 (B, C3, H / 8, W / 8), P4 (B, C4, H / 16, W / 16), P5 (B, C5, H / 32, W / 32)

    Raises:
        ValueError: If timm has no such model or no weights for it, the file holds other weights, or the model has no
            features at strides 8, 16 and 32 for images of any size.
        FileNotFoundError: If there is no such file.

    Examples:
        >>> import torch
        >>> from moe_vision.models import TimmBackbone, named_config
        >>> backbone = TimmBackbone(named_config("yolo_master_n", backbone="resnet18"))
        >>> [tuple(features.shape[1:]) for features in backbone(torch.rand(1, 3, 64, 96))]
        [(128, 8, 12), (128, 4, 6), (256, 2, 3)]
    """

    def __init__(self, config: YOLOMasterConfig, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        probe = _probe(config.backbone)
        places = [probe.feature_info.reduction().index(stride) for stride in STRIDES]
        widths = [probe.feature_info.channels()[place] for place in places]
        self.normalize = Normalize(probe.pretrained_cfg["mean"], probe.pretrained_cfg["std"])
        indices = [probe.feature_info.out_indices[place] for place in places]
        self.body = _build_body(config.backbone, indices, pretrained)
        self.channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        c3, c4, c5 = self.out_channels = config.backbone_channels
        self.laterals = nn.ModuleList(
            nn.Sequential(ConvNormAct(width, channels), backbone_block(channels, stage, config))
            for width, channels, stage in zip(widths, (c3, c4, c5), (3, 4, 5), strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features P3, P4 and P5."""
        features = self.body(self.normalize(images))
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        p3, p4, p5 = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        return p3, p4, p5

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have the timm model trade time for memory in training, in the way it has.

        Raises:
            ValueError: If it has batch norms, which would count every batch twice.
        """
        if enable and any(isinstance(module, _BatchNorm) for module in self.body.modules()):
            raise ValueError(
                "grad_checkpointing must be False for a timm backbone with batch norms, which would count every batch "
                "twice, got True; choose one without, such as convnextv2_atto"
            )
        # A hierarchical model stands in timm's wrapper as it is, others part by part.
        body: Any = getattr(self.body, "model", self.body)
        body.set_grad_checkpointing(enable)


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
    import timm  # seconds; those who use our own backbone do not wait for it

    if name in SCALES:
        raise ValueError(f"backbone must be yolo_master or a timm model of another family, got {name!r}")
    if name != name.strip() or ":" in name:  # timm would fetch from a hub, or read from a folder
        raise ValueError(f"backbone must be a timm model by its name, such as {SUITABLE}, got {name!r}")
    try:
        with without_memory():
            model: Any = timm.create_model(name, features_only=True).eval()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"backbone must be a timm model with features, such as {SUITABLE}; {name!r}: {error}"
        ) from error
    if model.pretrained_cfg.get("fixed_input_size"):
        raise ValueError(f"backbone must take images of any size, as {SUITABLE} do; {name!r} does not")
    strides = model.feature_info.reduction()
    if not set(STRIDES) <= set(strides):
        raise ValueError(
            f"backbone must have features at strides 8, 16 and 32, as {SUITABLE} have; {name!r} has {strides}"
        )
    features = model(torch.empty(1, 3, 128, 128, device="meta"))
    sides = [features[place].shape[2] for place in map(strides.index, STRIDES)]
    if sides != [16, 8, 4]:
        raise ValueError(
            f"backbone must divide sizes by 8, 16 and 32 exactly, as {SUITABLE} do; {name!r} makes {sides} of 128"
        )
    return model


def _build_body(name: str, indices: list[int], pretrained: bool | str | Path) -> nn.Module:
    """Return the timm model that gives the features of the indices."""
    import timm

    if isinstance(pretrained, bool):
        if pretrained and not timm.is_model_pretrained(name):
            raise ValueError(f"pretrained must be a file or False for {name!r}, of which timm has no weights, got True")
        return timm.create_model(name, pretrained, features_only=True, out_indices=indices)
    if not Path(pretrained).is_file():
        raise FileNotFoundError(f"pretrained must be a file of weights, but {pretrained} does not exist")
    arguments: dict[str, Any] = {"features_only": True, "out_indices": indices, "pretrained": True}
    arguments["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    try:
        body, again = (timm.create_model(name, **arguments) for _ in range(2))
    except Exception as error:  # what a foreign file raises depends on the family of the model
        raise ValueError(f"pretrained must hold weights of {name!r}, got {pretrained}: {error!r}") from error
    # timm passes over names that the file lacks. Their parameters stay random: no two loadings agree on them.
    twins = dict(again.named_parameters())
    missing = [key for key, parameter in body.named_parameters() if not torch.equal(parameter, twins[key])]
    if missing:
        raise ValueError(f"pretrained must hold weights of {name!r}, got {pretrained}, which lacks {missing[:3]}")
    return body
