# SPDX-License-Identifier: Apache-2.0
"""The networks' convolution: padding, norm constants, activation."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from moe_vision.layers.convolution import ConvNormAct
from tests.contracts.layer import LayerContract


class TestConvNormAct(LayerContract):
    factory = ConvNormAct
    arguments: ClassVar = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    example_shape = (2, 4, 5, 4)
    bad_arguments = ()
    bad_inputs = ()
    cardinality = (
        ({}, (2, 4, 7, 5), (2, 6, 7, 5)),
        ({"stride": 2}, (2, 4, 7, 4), (2, 6, 4, 2)),
        ({"kernel_size": 1}, (0, 4, 7, 5), (0, 6, 7, 5)),
        ({"kernel_size": 7, "groups": 2}, (1, 4, 3, 3), (1, 6, 3, 3)),
    )

    def test_feature(self) -> None:
        layer = ConvNormAct(1, 1, 3).eval()
        nn.init.ones_(layer.conv.weight)
        # A window of ones over a 2 x 2 map of ones sees all four pixels: 4, over sqrt(1 + eps) with eps = 1e-3.
        features = torch.full((1, 1, 2, 2), 4 / 1.001**0.5)
        torch.testing.assert_close(layer(torch.ones(1, 1, 2, 2)), features * features.sigmoid())


def test_without_activation_it_is_linear_in_eval() -> None:
    layer, x = ConvNormAct(4, 6, 3, act=False).eval(), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(-2 * x), -2 * layer(x))


@pytest.mark.parametrize("steps", [1, 2])
def test_norm_moves_its_statistics_by_3_percent(steps: int) -> None:
    layer = ConvNormAct(1, 1).train()
    nn.init.ones_(layer.conv.weight)
    for _ in range(steps):
        layer(torch.full((1, 1, 2, 2), 10.0))
    # 0 -> 0.03 * 10 = 0.3 -> 0.97 * 0.3 + 0.3 = 0.591
    assert layer.norm.running_mean.item() == pytest.approx([0.3, 0.591][steps - 1])
