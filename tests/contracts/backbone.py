# SPDX-License-Identifier: Apache-2.0
"""What every backbone is tested for."""

import copy
import pickle
from abc import ABC, abstractmethod

import pytest
import torch
from torch import nn

STRIDES = (8, 16, 32)


class BackboneContract(ABC):
    """Derive a ``Test...`` class and say how to make the backbone and how many channels its maps have."""

    channels: tuple[int, int, int]

    @abstractmethod
    def make(self) -> nn.Module: ...

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("size", [(64, 64), (96, 128)])
    @pytest.mark.parametrize("batch", [1, 5])
    def test_shapes(self, batch: int, size: tuple[int, int], training: bool) -> None:
        maps = self.make().train(training)(torch.rand(batch, 3, *size))
        expected = [
            (batch, channels, size[0] // stride, size[1] // stride)
            for channels, stride in zip(self.channels, STRIDES, strict=True)
        ]
        assert [tuple(features.shape) for features in maps] == expected

    def test_out_channels_are_told(self) -> None:
        assert self.make().out_channels == self.channels

    def test_no_images_give_no_features(self) -> None:
        assert [features.shape[0] for features in self.make().eval()(torch.rand(0, 3, 64, 64))] == [0, 0, 0]

    def test_images_are_independent_in_eval(self) -> None:
        backbone, images = self.make().eval(), torch.rand(3, 3, 64, 64)
        together = backbone(images)
        for index in range(3):
            for features, alone in zip(together, backbone(images[index : index + 1]), strict=True):
                torch.testing.assert_close(features[index : index + 1], alone, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self) -> None:
        backbone = self.make().train()
        sum(features.square().mean() for features in backbone(torch.rand(2, 3, 64, 64))).backward()
        without = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
        assert without == []

    def test_copies_and_pickles_after_a_training_forward(self) -> None:
        backbone, images = self.make().train(), torch.rand(2, 3, 64, 64)
        backbone(images)
        expected = backbone.eval()(images)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert all(torch.equal(a, b) for a, b in zip(twin(images), expected, strict=True))
