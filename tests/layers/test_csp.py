# SPDX-License-Identifier: Apache-2.0
"""Cross-stage-partial blocks; their arithmetic as a whole is tested by the parity of the networks."""

from typing import ClassVar

import torch
from torch import nn

from moe_vision.layers.csp import Bottleneck, C3k, C3k2
from tests.contracts.layer import LayerContract


class TestBottleneck(LayerContract):
    factory = Bottleneck
    arguments: ClassVar = {"channels": 4}
    example_shape = (2, 4, 5, 4)
    bad_arguments = ()
    bad_inputs = ()
    cardinality = (({}, (3, 4, 7, 5), (3, 4, 7, 5)), ({"expansion": 1.0}, (1, 4, 2, 2), (1, 4, 2, 2)))

    def test_feature(self) -> None:
        layer, x = self.make().eval(), self.example()
        nn.init.zeros_(layer.conv2.conv.weight)  # silences the branch: SiLU(0) = 0
        assert torch.equal(layer(x), x)


class TestC3k(LayerContract):
    factory = C3k
    arguments: ClassVar = {"channels": 4}
    example_shape = (2, 4, 5, 4)
    bad_arguments = ()
    bad_inputs = ()
    cardinality = (({}, (3, 4, 7, 5), (3, 4, 7, 5)), ({"depth": 1}, (0, 4, 2, 2), (0, 4, 2, 2)))

    def test_feature(self) -> None:
        assert len(self.make().blocks) == 2
        assert len(self.make(depth=3).blocks) == 3


class TestC3k2(LayerContract):
    factory = C3k2
    arguments: ClassVar = {"in_channels": 4, "out_channels": 8}
    example_shape = (2, 4, 5, 4)
    bad_arguments = ()
    bad_inputs = ()
    cardinality = (
        ({}, (3, 4, 7, 5), (3, 8, 7, 5)),
        ({"depth": 3, "expansion": 0.25}, (1, 4, 2, 2), (1, 8, 2, 2)),
        ({"c3k": True}, (0, 4, 2, 2), (0, 8, 2, 2)),
    )

    def test_feature(self) -> None:
        # Two halves and the output of each of 3 inner blocks, 4 channels each, are joined.
        assert self.make(depth=3).conv2.conv.in_channels == (2 + 3) * 4
        assert isinstance(self.make(c3k=True).blocks[0], C3k)
        assert isinstance(self.make().blocks[0], Bottleneck)
