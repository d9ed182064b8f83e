# SPDX-License-Identifier: Apache-2.0
"""Area attention: bands do not see each other, heads are those of the definition."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from moe_vision.layers.area_attention import A2C2f, AreaAttention, AreaBlock
from tests.contracts.layer import LayerContract


def attention_by_definition(layer: AreaAttention, x: Tensor) -> Tensor:
    """Softmax attention, image by image, band by band, head by head."""
    batch, channels, height, width = x.shape
    tokens = layer.qkv(x).flatten(2)
    attended, values = torch.zeros(batch, channels, height * width), torch.zeros(batch, channels, height * width)
    band = height * width // layer.area
    for image in range(batch):
        for start in range(0, height * width, band):
            for head in range(channels // 32):
                q, k, v = tokens[image, head * 96 : (head + 1) * 96, start : start + band].split(32)
                weights = (q.T @ k / 32**0.5).softmax(dim=1)
                place = (image, slice(head * 32, (head + 1) * 32), slice(start, start + band))
                attended[place], values[place] = v @ weights.T, v
    maps = attended.unflatten(2, (height, width)), values.unflatten(2, (height, width))
    return layer.proj(maps[0] + layer.position(maps[1]))


class TestAreaAttention(LayerContract):
    factory = AreaAttention
    arguments: ClassVar = {"channels": 64, "area": 2}
    example_shape = (2, 64, 2, 3)
    bad_arguments = (({"channels": 48}, "channels must be a multiple of 32, got 48"),)
    bad_inputs = ()
    cardinality = (({}, (3, 64, 4, 5), (3, 64, 4, 5)), ({"channels": 32, "area": 1}, (0, 32, 3, 3), (0, 32, 3, 3)))

    @pytest.mark.parametrize("area", [1, 2, 4])
    def test_feature(self, area: int) -> None:
        layer, x = self.make(area=area).eval(), torch.randn(2, 64, 4, 6)
        torch.testing.assert_close(layer(x), attention_by_definition(layer, x), rtol=1e-4, atol=1e-5)


class TestAreaBlock(LayerContract):
    factory = AreaBlock
    arguments: ClassVar = {"channels": 32}
    example_shape = (2, 32, 2, 3)
    bad_arguments = (({"channels": 16}, "channels must be a multiple of 32, got 16"),)
    bad_inputs = ()
    cardinality = (({"mlp_ratio": 1.2}, (3, 32, 4, 5), (3, 32, 4, 5)),)

    def test_feature(self) -> None:
        layer, x = self.make().eval(), self.example()
        for branch in (layer.attn.proj, layer.mlp[1]):
            nn.init.zeros_(branch.conv.weight)
        assert torch.equal(layer(x), x)


class TestA2C2f(LayerContract):
    factory = A2C2f
    arguments: ClassVar = {"in_channels": 8, "out_channels": 64}
    example_shape = (2, 8, 2, 2)
    bad_arguments = (({"out_channels": 96}, "out_channels must be a multiple of 64, got 96"),)
    bad_inputs = ()
    cardinality = (
        ({"area": 4}, (3, 8, 4, 5), (3, 64, 4, 5)),
        ({"depth": 2, "in_channels": 64, "residual": True}, (1, 64, 2, 3), (1, 64, 2, 3)),
    )

    def test_feature(self) -> None:
        layer = self.make(in_channels=64, residual=True).eval()
        assert layer.gamma.tolist() == pytest.approx([0.01] * 64)
        x = torch.randn(1, 64, 2, 2)
        nn.init.zeros_(layer.gamma)
        assert torch.equal(layer(x), x)
