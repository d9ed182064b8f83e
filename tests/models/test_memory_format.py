# SPDX-License-Identifier: Apache-2.0
"""In channels_last a network stays in it: layers see nothing else, and nothing is copied behind their backs."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from moe_vision import create_model, fuse
from moe_vision.layers.area_attention import AreaAttention
from moe_vision.models import YOLOMaster

COPIES = {"aten::clone", "aten::copy_", "aten::_to_copy"}


class MapCopies(TorchDispatchMode):
    """Count the copies of as many elements as the smallest feature map has."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in COPIES and args[0].numel() >= self.smallest:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def channels_lie_together(x: Tensor) -> bool:
    """Tell whether it is a channels_last map, or some channels of one, which a convolution takes together itself."""
    return x.stride(1) == 1 and x.stride(2) == x.shape[3] * x.stride(3) >= x.shape[1]


def strangers(model: YOLOMaster) -> list[str]:
    """Collect, as the model runs, the names of layers that see another map."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not channels_lie_together(args[0]):
                found.append(name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.SiLU):
            module.register_forward_pre_hook(look(name))
    return found


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", ["paper", "v0_1"])
@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
@pytest.mark.parametrize("batch", [1, 2])
def test_stays_in_channels_last(batch: int, task: str, variant: str, fused: bool) -> None:
    model = create_model("yolo_master_n", task=task, variant=variant, num_classes=3).eval()
    model = fuse(model) if fused else model.to(memory_format=torch.channels_last)
    found, copies = strangers(model), MapCopies(smallest=batch * 128 * 2 * 3)  # the values of the last stage
    with torch.no_grad(), copies:
        model(torch.rand(batch, 3, 64, 96))
    assert found == ["backbone.stem.conv"]  # the images are as they come
    # The values that lie beside queries and keys are gathered into a map of their own.
    attentions = sum(isinstance(module, AreaAttention) for module in model.modules())
    assert copies.count == {"aten::clone": attentions}


def test_images_in_channels_last_stay_so_too() -> None:
    model = fuse(create_model("yolo_master_n", num_classes=3))
    found = strangers(model)
    model(torch.rand(1, 3, 64, 96).to(memory_format=torch.channels_last))
    assert found == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_of_heads_are_rows_of_numbers(memory_format: torch.memory_format) -> None:
    model = create_model("yolo_master_n", task="segment", num_classes=3).to(memory_format=memory_format)
    maps = model(torch.rand(2, 3, 64, 96))
    assert all(rows.is_contiguous() for rows in (maps.detection.sides, maps.detection.scores, maps.coefficients))
