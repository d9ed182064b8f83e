# SPDX-License-Identifier: Apache-2.0
"""What every head that finds boxes is tested for."""

import math
from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_vision.models import DetectMaps

STRIDES = (8, 16, 32)


class HeadContract(ABC):
    """Derive a ``Test...`` class and say how to make the head and which channels its inputs have.

    A head that returns more than `DetectMaps` says where they are, and what else there is.
    """

    in_channels: tuple[int, int, int]
    num_classes: int

    @abstractmethod
    def make(self) -> nn.Module: ...

    def detection(self, maps: Any) -> DetectMaps:
        return maps

    def others(self, maps: Any) -> list[Tensor]:
        """Return what else the head gives for each image."""
        return []

    def features(self, batch: int, height: int = 64, width: int = 96) -> list[Tensor]:
        return [
            torch.randn(batch, channels, height // stride, width // stride)
            for channels, stride in zip(self.in_channels, STRIDES, strict=True)
        ]

    @pytest.mark.parametrize("batch", [0, 1, 5])
    def test_shapes(self, batch: int) -> None:
        maps = self.detection(self.make().eval()(self.features(batch)))
        count = 8 * 12 + 4 * 6 + 2 * 3
        assert maps.boxes.shape == (batch, count, 4)
        assert maps.scores.shape == (batch, count, self.num_classes)
        assert maps.points.shape == (count, 2)
        assert maps.strides.shape == (count,)

    def test_images_are_independent_in_eval(self) -> None:
        head, features = self.make().eval(), self.features(3)
        both = head(features), head([level[1:2] for level in features])
        together, alone = map(self.detection, both)
        torch.testing.assert_close(together.boxes[1:2], alone.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(together.scores[1:2], alone.scores, rtol=1e-4, atol=1e-4)
        for part, part_alone in zip(*map(self.others, both), strict=True):
            torch.testing.assert_close(part[1:2], part_alone, rtol=1e-4, atol=1e-4)

    def test_every_trainable_parameter_gets_a_gradient(self) -> None:
        head = self.make().train()
        maps = head(self.features(2))
        parts = [self.detection(maps).boxes, self.detection(maps).scores, *self.others(maps)]
        torch.stack([part.mean() for part in parts]).sum().backward()
        trainable = {name: parameter for name, parameter in head.named_parameters() if parameter.requires_grad}
        assert [
            name for name, parameter in trainable.items() if parameter.grad is None or not parameter.grad.any()
        ] == []

    def test_a_cell_of_a_level_is_the_row_of_its_anchor_point(self) -> None:
        head, features = self.make().eval(), self.features(1)
        before = self.detection(head(features)).scores[0]
        features[1][0, :, 2, 3] += 1e4 * torch.randn(self.in_channels[1])
        maps = self.detection(head(features))
        changed = (maps.scores[0] - before).abs().amax(dim=1)
        row = 8 * 12 + 2 * 6 + 3  # after the whole of P3, row 2, column 3 of 6
        # The cell reaches its neighbours through 3 x 3 convolutions, but no other level.
        assert changed[row] > 0
        assert not changed[: 8 * 12].any()
        assert not changed[8 * 12 + 4 * 6 :].any()
        assert maps.points[row].tolist() == [3.5 * 16, 2.5 * 16]

    def test_first_scores_are_those_of_few_objects(self) -> None:
        maps = self.make().eval()([torch.zeros_like(level) for level in self.features(1)])
        scores = self.detection(maps).scores[0].sigmoid()
        # 5 objects over all classes in the (640 / 8)^2 cells of P3
        assert scores[0, 0].item() == pytest.approx(5 / self.num_classes / 80**2, rel=0.01)
        assert math.isclose(scores[-1, 0].item(), 5 / self.num_classes / 20**2, rel_tol=0.03)
