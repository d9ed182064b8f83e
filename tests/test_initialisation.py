# SPDX-License-Identifier: Apache-2.0
"""How networks start: a residual branch adds nothing, and lets through what it gets; boxes have a middling size."""

import pytest
import torch
from torch import nn

from moe_vision import create_model
from moe_vision.layers.area_attention import AreaBlock
from moe_vision.layers.csp import Bottleneck
from moe_vision.models import DetectHead


@pytest.mark.parametrize("kind", [Bottleneck, AreaBlock])
def test_a_residual_block_starts_as_the_identity_and_learns(kind: type[nn.Module]) -> None:
    block, x = kind(32), torch.rand(2, 32, 4, 4)
    assert torch.equal(block.train()(x), x)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.01)
    for _ in range(2):
        block(x).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(block(x), x, atol=1e-3)


def test_no_residual_block_of_a_network_adds_anything() -> None:
    model = create_model("yolo_master_n")
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck | AreaBlock)]
    assert len(blocks) > 8
    assert all(torch.equal(block(x), x) for block in blocks for x in [torch.rand(1, block_channels(block), 4, 4)])


def block_channels(block: nn.Module) -> int:
    return next(module.in_channels for module in block.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("reg_max", [1, 16])
def test_boxes_start_about_four_strides_wide(reg_max: int) -> None:
    head = DetectHead((16, 16, 16), num_classes=3, reg_max=reg_max)
    maps = head([torch.zeros(1, 16, side, side) for side in (8, 4, 2)])
    sizes = (maps.boxes[..., 2:] - maps.boxes[..., :2]) / maps.strides[:, None]
    torch.testing.assert_close(sizes, torch.full_like(sizes, 4.0), rtol=0, atol=0.1)
