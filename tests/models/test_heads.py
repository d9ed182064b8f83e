# SPDX-License-Identifier: Apache-2.0
"""The heads, their anchor points and the decoding of boxes."""

import pytest
import torch
from torch import Tensor, nn

from moe_vision.models import ClassifyHead, DetectHead, DetectMaps, SegmentHead, SegmentMaps
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


class TestDetectHeadWithoutDistribution(HeadContract):
    in_channels = (64, 128, 128)
    num_classes = 3

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return DetectHead(self.in_channels, self.num_classes, reg_max=1)


class TestSegmentHead(HeadContract):
    in_channels = (64, 128, 128)
    num_classes = 3

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return SegmentHead(self.in_channels, self.num_classes, prototype_width=16)

    def detection(self, maps: SegmentMaps) -> DetectMaps:
        return maps.detection

    def others(self, maps: SegmentMaps) -> list[Tensor]:
        return [maps.coefficients, maps.prototypes]

    @pytest.mark.parametrize("batch", [0, 1, 5])
    def test_shapes_of_masks(self, batch: int) -> None:
        maps = self.make().eval()(self.features(batch))
        assert maps.coefficients.shape == (batch, 8 * 12 + 4 * 6 + 2 * 3, 32)
        assert maps.prototypes.shape == (batch, 32, 64 // 4, 96 // 4)

    def test_a_cell_of_a_level_is_the_row_of_its_coefficients(self) -> None:
        head, features = self.make().eval(), self.features(1)
        before = head(features).coefficients[0]
        features[2][0, :, 1, 1] += 1e4 * torch.randn(128)
        changed = (head(features).coefficients[0] - before).abs().amax(dim=1)
        assert not changed[: 8 * 12 + 4 * 6].any()
        assert changed[8 * 12 + 4 * 6 + 3 + 1] > 0

    def test_prototypes_see_the_finest_level_alone_and_in_place(self) -> None:
        head, features = self.make().eval(), self.features(1)
        before = head(features).prototypes
        assert torch.equal(head([features[0], *(level + 1 for level in features[1:])]).prototypes, before)
        features[0][0, :, 5, 7] += 100
        changed = (head(features).prototypes - before)[0].abs().amax(dim=0)
        rows, columns = changed.nonzero(as_tuple=True)
        # Cell (5, 7) reaches one cell further: cells 8 to 13 and 12 to 17 of the finer grid, and those one further on.
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2 * 4 - 1, 2 * 7, 2 * 6 - 1, 2 * 9)


def test_classify_head_averages_over_the_image() -> None:
    head = ClassifyHead(16, num_classes=3).eval()
    x = torch.randn(2, 16, 4, 5)
    logits = head(x)
    assert logits.shape == (2, 3)
    shuffled = x.flatten(2)[:, :, torch.randperm(20)].view_as(x)
    torch.testing.assert_close(head(shuffled), logits)
    torch.testing.assert_close(head(x[1:]), logits[1:])
    assert head(x[:0]).shape == (0, 3)


def test_classify_head_drops_channels_in_training_alone() -> None:
    head, x = ClassifyHead(16, num_classes=3, drop_rate=0.5).eval(), torch.randn(2, 16, 4, 4)
    assert torch.equal(head(x), head(x))
    head.train()
    head(x).sum().backward()
    dropped = (head.linear.weight.grad == 0).all(dim=0).float().mean().item()
    # A channel is 0 for both images with probability 1/4.
    assert dropped == pytest.approx(0.25, abs=0.05)
    assert all(parameter.grad is not None for parameter in head.parameters())


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


def test_a_single_bin_is_the_distance() -> None:
    # softplus(log(e^d - 1)) = d: distances of 1, 2, 3 and 0.5 strides of 8 = 8, 16, 24 and 4 pixels
    sides = torch.tensor([1.0, 2.0, 3.0, 0.5]).expm1().log().view(1, 1, 4, 1)
    boxes = decode_boxes(sides, torch.arange(1.0), torch.tensor([[40.0, 24.0]]), torch.tensor([8.0]))
    assert boxes[0, 0].tolist() == pytest.approx([40 - 8, 24 - 16, 40 + 24, 24 + 4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_are_decoded_in_fp32(dtype: torch.dtype) -> None:
    sides = torch.randn(1, 5, 4, 16).to(dtype)
    points, strides = torch.rand(5, 2) * 640, torch.full((5,), 8.0)
    with torch.autocast("cpu", dtype):
        boxes = decode_boxes(sides, torch.arange(16.0), points, strides)
    expected = decode_boxes(sides.float(), torch.arange(16.0), points, strides)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, expected)
