# SPDX-License-Identifier: Apache-2.0
"""A small model of each family that has sites, in which every parameter matters to the output."""

from typing import Any, NamedTuple

import timm
import torch
from timm.models.metaformer import MetaFormer, SepConv
from torch import Tensor, nn

NARROW: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}


class Family(NamedTuple):
    """A model of timm, how many sites it has, and the first of them."""

    model_name: str
    num_sites: int
    first: str
    arguments: dict[str, Any]

    def make(self) -> nn.Module:
        """Build the model with 5 classes, in eval."""
        torch.manual_seed(0)
        if self.model_name == "convformer_s18":  # timm's has no small one
            model = MetaFormer(token_mixers=SepConv, num_classes=5, use_mlp_head=False, **self.arguments)
        else:
            model = timm.create_model(self.model_name, num_classes=5, **self.arguments)
        return look_trained(model).eval()


FAMILIES = {
    "ConvNeXt": Family("convnext_atto", 4, "stages.0.blocks.0.conv_dw", NARROW),
    "ConvNeXt v2": Family("convnextv2_atto", 4, "stages.0.blocks.0.conv_dw", NARROW),
    "EfficientNet": Family("test_efficientnet", 2, "blocks.3.0.conv_dw", {}),
    "EfficientNet, same": Family("tf_efficientnet_lite0", 16, "blocks.0.0.conv_dw", {}),
    "MobileNetV2": Family("mobilenetv2_035", 17, "blocks.0.0.conv_dw", {}),
    "MobileNetV3": Family("mobilenetv3_small_050", 11, "blocks.0.0.conv_dw", {}),
    "MobileNetV4": Family("mobilenetv4_conv_small_035", 15, "blocks.2.0.dw_start.conv", {}),
    "RepViT": Family(
        "repvit_m0_9",
        7,
        "stages.0.blocks.0.token_mixer",
        {"embed_dim": (8, 12, 16, 24), "depth": (1, 1, 1, 1)},
    ),
    "MetaFormer": Family("convformer_s18", 4, "stages.0.blocks.0.token_mixer.dwconv", NARROW),
    "InceptionNeXt": Family(
        "inception_next_atto",
        4,
        "stages.0.blocks.0.token_mixer.dwconv_hw",
        {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
    ),
    "EdgeNeXt": Family(
        "edgenext_xx_small",
        3,
        "stages.0.blocks.0.conv_dw",
        {"depths": (1, 1, 2, 2), "dims": (8, 16, 24, 32), "heads": (4, 4, 4, 4)},
    ),
    "StarNet": Family("starnet_s050", 8, "stages.0.1.dwconv.conv", {"depths": (1, 1, 1, 1)}),
    "MambaOut": Family("mambaout_femto", 4, "stages.0.blocks.0.conv", NARROW),
    "HGNetV2": Family("hgnetv2_b0", 9, "stages.2.blocks.0.layers.0.conv2.conv", {}),
    "ResNet": Family("resnet14t", 4, "layer1.0", {"channels": (8, 16, 24, 32)}),
}


def look_trained(model: nn.Module) -> nn.Module:
    """Give norms, layer scales and statistics uneven values, so that no residual branch is nearly 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images(batch: int = 3, size: int = 64) -> Tensor:
    """Images whose colours and contrasts differ, so that their routes differ too."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.tensor([1.0, 3.0, -0.3]).repeat(batch)[:batch, None, None, None]
    return contrast * (1 + torch.randn(batch, 3, size, size, generator=generator))
