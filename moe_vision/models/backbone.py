# SPDX-License-Identifier: Apache-2.0
"""The YOLO-Master backbone: a stem and four stages, each ending in an MoE block."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_vision.layers.area_attention import A2C2f
from moe_vision.layers.convolution import ConvNormAct
from moe_vision.layers.csp import C3k2
from moe_vision.layers.frozen_statistics import frozen_statistics
from moe_vision.models.blocks import backbone_block
from moe_vision.models.config import YOLOMasterConfig


class Stage(nn.Module):
    """Halve the resolution, then refine, then let the image choose its experts.

    Args:
        downsample: Module that halves height and width.
        blocks: Module that keeps height and width.
        moe: The MoE block, or an identity.

    Attributes:
        grad_checkpointing: In training, keep only the inputs of the stage and of its MoE block, and compute the rest
            again in backward, to save memory. Norms count a batch once. `torch.compile` passes over it: a compiler
            decides by itself what to keep.

    Shape:
        - Input: (B, C_in, H, W)
        - Output: (B, C_out, H / 2, W / 2)

    Examples:
        >>> import torch
        >>> from moe_vision.layers import ESMoE
        >>> from moe_vision.layers.convolution import ConvNormAct
        >>> from moe_vision.models.backbone import Stage
        >>> stage = Stage(ConvNormAct(8, 16, 3, stride=2), ConvNormAct(16, 16), ESMoE(16))
        >>> stage(torch.rand(1, 8, 32, 32)).shape
        torch.Size([1, 16, 16, 16])
    """

    def __init__(self, downsample: nn.Module, blocks: nn.Module, moe: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks
        self.moe = moe
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the stage."""
        return self._run(self.moe, self._run(self._refined, x))

    def _refined(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.downsample(x)))

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        # Half a stage at a time: in backward, what was computed again for the one is gone before the other's turn.
        if self.grad_checkpointing and self.training and not torch.compiler.is_compiling():
            return checkpoint(part, x, use_reentrant=False, context_fn=self._contexts)
        return part(x)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(self)


class YOLOMasterBackbone(nn.Module):
    """Features at strides 8, 16 and 32 (section 3 of arXiv 2512.23273; the stages are those of YOLOv12).

    Args:
        config: The architecture.
        in_channels: Channels of the images.

    Shape:
        - Input: images (B, in_channels, H, W) in [0, 1], H and W multiples of 32
        - Output: P3 (B, C3, H / 8, W / 8), P4 (B, C4, H / 16, W / 16), P5 (B, C5, H / 32, W / 32)

    Examples:
        >>> import torch
        >>> from moe_vision.models import YOLOMasterBackbone, named_config
        >>> backbone = YOLOMasterBackbone(named_config("yolo_master_n"))
        >>> [tuple(features.shape[1:]) for features in backbone(torch.rand(1, 3, 64, 96))]
        [(128, 8, 12), (128, 4, 6), (256, 2, 3)]
    """

    def __init__(self, config: YOLOMasterConfig, in_channels: int = 3) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (config.channels(base) for base in (64, 128, 256, 512, 1024))
        self.stem = ConvNormAct(in_channels, c1, 3, stride=2)
        self.stage2 = Stage(_down(c1, c2), _stage2_blocks(c2, c3, config), backbone_block(c3, 2, config))
        self.stage3 = Stage(_down(c3, c3), _csp(c3, c4, config), backbone_block(c4, 3, config))
        self.stage4 = Stage(_down(c4, c4), _attention(c4, 4, config), backbone_block(c4, 4, config))
        self.stage5 = Stage(_down(c4, c5), _attention(c5, 1, config), backbone_block(c5, 5, config))
        self.out_channels = config.backbone_channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features P3, P4 and P5."""
        p3 = self.stage3(self.stage2(self.stem(images)))
        p4 = self.stage4(p3)
        return p3, p4, self.stage5(p4)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have every stage trade time for memory in training, see `Stage`."""
        for stage in self.children():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable


def _down(in_channels: int, out_channels: int) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, 3, stride=2)


def _stage2_blocks(in_channels: int, out_channels: int, config: YOLOMasterConfig) -> nn.Module:
    widths = [in_channels, *[out_channels] * (config.stage2_blocks - 1)]
    blocks = [_csp(width, out_channels, config) for width in widths]
    return blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks)


def _csp(in_channels: int, out_channels: int, config: YOLOMasterConfig) -> C3k2:
    return C3k2(in_channels, out_channels, config.repeats(2), expansion=0.25, c3k=config.c3k)


def _attention(channels: int, area: int, config: YOLOMasterConfig) -> A2C2f:
    depth = config.repeats(4)
    return A2C2f(channels, channels, depth, area, config.mlp_ratio, residual=config.attention_residual)
