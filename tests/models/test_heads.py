# SPDX-License-Identifier: Apache-2.0
"""The detection head, its anchor points and the decoding of boxes."""

import pytest
import torch
from torch import nn

from moe_vision.models import DetectHead
from moe_vision.models.anchors import anchor_points, decode_boxes
from tests.contracts.head import HeadContract


class TestDetectHead(HeadContract):
    in_channels = (64, 128, 128)
    num_classes = 3

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return DetectHead(self.in_channels, self.num_classes)

    def test_bins_are_stored_and_never_trained(self) -> None:
        head = self.make()
        assert head.state_dict()["bins"].tolist() == list(range(16))
        assert not head.bins.requires_grad


def test_anchor_points_are_centres_row_by_row() -> None:
    points, strides = anchor_points([(2, 3), (1, 1), (1, 1)], torch.device("cpu"))
    first_level = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert points.tolist() == [*first_level, [8, 8], [16, 16]]
    assert strides.tolist() == [8] * 6 + [16, 32]


def test_decoding_takes_the_expectation() -> None:
    # log of 1, 2, 3 and 2 in 8 parts: expectation (0 * 1 + 1 * 2 + 2 * 3 + 3 * 2) / 8 = 1.75 strides of 16 = 28 pixels
    left = torch.tensor([1.0, 2.0, 3.0, 2.0]).log()
    # nearly all on one bin: 0, 1 and 3 strides
    top, right, bottom = (50 * torch.eye(4)[index] for index in (0, 1, 3))
    sides = torch.stack([left, top, right, bottom])[None, None]
    boxes = decode_boxes(sides, torch.arange(4.0), torch.tensor([[40.0, 24.0]]), torch.tensor([16.0]))
    assert boxes[0, 0].tolist() == pytest.approx([40 - 28, 24, 40 + 16, 24 + 48])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_are_decoded_in_fp32(dtype: torch.dtype) -> None:
    sides = torch.randn(1, 5, 4, 16).to(dtype)
    points, strides = torch.rand(5, 2) * 640, torch.full((5,), 8.0)
    with torch.autocast("cpu", dtype):
        boxes = decode_boxes(sides, torch.arange(16.0), points, strides)
    expected = decode_boxes(sides.float(), torch.arange(16.0), points, strides)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, expected)
