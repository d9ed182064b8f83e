# SPDX-License-Identifier: Apache-2.0
"""The images that a module is traced with, and those it is checked with."""

import torch
from torch import Tensor, nn

from moe_vision.layers import ESMoE
from moe_vision.models import YOLOMaster
from moe_vision.models.yolo_master import check_image_size

IMAGE_SIZE = 640
LAYER_SIZE = 32
BATCHES = (1, 5)
# So large that no map of a network is too small for anything, and not square, so that no axis is taken for another.
TRACED = (2, 3, 320, 352)

Shape = tuple[int, int, int, int]


def example_images(module: nn.Module, example: Tensor | None, image_size: int | None, dynamic: bool) -> Tensor:
    """Return images on the CPU to trace with: those given, or such as the module takes."""
    if example is None:
        example = torch.zeros(1, *_default_size(module, image_size))
    elif image_size is not None:
        raise ValueError(f"image_size must be None where example gives the size, got {image_size}")
    if example.ndim != 4 or not example.is_floating_point() or 0 in example.shape:
        raise ValueError(
            f"example must be floats of shape (B, C, H, W), none 0, got {example.dtype} of {tuple(example.shape)}"
        )
    if isinstance(module, YOLOMaster):
        for side in example.shape[2:]:
            check_image_size(side)
    example = example.detach().to("cpu", torch.float32)
    # Of a single image the exporter would take it that there is never more than one.
    return torch.cat([example, example]) if dynamic and len(example) == 1 else example


def traced_images(module: nn.Module, example: Tensor, dynamic: bool) -> Tensor:
    """Return the images to trace with: where sizes are dynamic and a network takes all, those that trace best."""
    return torch.zeros(TRACED) if dynamic and isinstance(module, YOLOMaster) else example


def multiple_of(module: nn.Module, example: Tensor) -> int:
    """Return what the sides of all images are multiples of: 32, unless the example or a bare layer says otherwise."""
    return 1 if isinstance(module, ESMoE) or any(side % 32 for side in example.shape[2:]) else 32


def check_shapes(example: Tensor, dynamic: bool, smallest: int = 1) -> list[Shape]:
    """Return the shapes to check, the smallest first: two sizes with one and with several images, or the fixed one."""
    batch, channels, height, width = example.shape
    if not dynamic:
        return [(batch, channels, height, width)]
    halved = height % 64 == 0 and width % 32 == 0 and height // 2 >= smallest
    others = (height // 2, width + 32) if halved else (2 * height, 2 * width)
    return [(batch, channels, *sides) for sides in sorted((others, (height, width))) for batch in BATCHES]


def random_images(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return noise in [0, 1] around a colour of each image's own, so that images choose differently."""
    colours = torch.rand(*shape[:2], 1, 1, generator=generator)
    return (colours + torch.rand(shape, generator=generator)) / 2


def _default_size(module: nn.Module, image_size: int | None) -> tuple[int, int, int]:
    if isinstance(module, ESMoE):
        size = LAYER_SIZE if image_size is None else image_size
        return module.in_channels, size, size
    size = getattr(module, "image_size", IMAGE_SIZE) if image_size is None else image_size
    check_image_size(size)
    return 3, size, size
