# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.data import Sample, mosaic, scale_jitter
from moe_vision.data.mosaic import clip_boxes
from moe_vision.data.samples import make_sample

from .painted import check_mask, extent, painted

seeds = st.integers(0, 2**31)


def sources(masked: bool = False) -> list[Sample]:
    """A red, a green, a blue and an empty image of different shapes."""
    none = torch.zeros(0, 90, 90, dtype=torch.bool) if masked else None
    empty = make_sample(torch.zeros(3, 90, 90, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 3, none)
    rectangles = [(120, 160, (30, 20, 130, 90)), (160, 120, (5, 60, 80, 150)), (100, 300, (100, 10, 220, 95))]
    coloured = (painted(*rectangle, channel, channel, masked=masked) for channel, rectangle in enumerate(rectangles))
    return [*coloured, empty]


def check_boxes(sample: Sample, size: int) -> None:
    """Boxes lie in the canvas and enclose exactly the pixels of their colour, to 2 pixels."""
    image, target = sample
    boxes = target["boxes"].as_subclass(torch.Tensor)
    assert image.shape == (3, size, size)
    assert image.dtype == torch.uint8
    assert target["boxes"].canvas_size == (size, size)
    assert len(boxes) == len(target["labels"])
    assert boxes.numel() == 0 or (boxes.min() >= 0 and boxes.max() <= size)
    for box, channel in zip(boxes, target["labels"].tolist(), strict=True):
        found = torch.tensor(extent(image, channel), dtype=torch.float32)
        torch.testing.assert_close(found, box, atol=2, rtol=0)


@settings(deadline=None)
@given(seed=seeds)
def test_mosaic_boxes_enclose_exactly_the_visible_pixels(seed: int) -> None:
    torch.manual_seed(seed)
    check_boxes(mosaic(sources(), 160), 160)


@settings(deadline=None)
@given(seed=seeds, channel=st.integers(0, 2))
def test_scale_jitter_boxes_enclose_exactly_the_visible_pixels(seed: int, channel: int) -> None:
    torch.manual_seed(seed)
    check_boxes(scale_jitter(sources()[channel], 160), 160)


def test_a_dropped_box_left_little_to_see() -> None:
    kept = 0
    for seed in range(100):
        torch.manual_seed(seed)
        image, target = mosaic(sources(), 160)
        for channel in range(3):
            if channel in target["labels"]:
                kept += 1
            elif found := extent(image, channel):
                # the largest rectangle, 75 x 90 of 160, comes at most 1.5 times larger: a tenth is 1518 square pixels
                assert (found[2] - found[0]) * (found[3] - found[1]) < 1700
    assert 200 < kept < 300


@settings(deadline=None)
@given(seed=seeds)
def test_masks_cover_exactly_the_visible_pixels_and_change_nothing_else(seed: int) -> None:
    torch.manual_seed(seed)
    image, target = mosaic(sources(masked=True), 160)
    assert target["masks"].shape == (len(target["boxes"]), 160, 160)
    assert target["masks"].dtype == torch.bool
    for mask, channel in zip(target["masks"], target["labels"].tolist(), strict=True):
        check_mask(mask.as_subclass(torch.Tensor), image, channel)
    torch.manual_seed(seed)
    plain_image, plain = mosaic(sources(), 160)
    assert "masks" not in plain
    assert torch.equal(image, plain_image)
    assert torch.equal(target["boxes"], plain["boxes"])
    assert torch.equal(target["labels"], plain["labels"])


def test_an_object_whose_mask_is_cropped_away_goes() -> None:
    # the box fills the image, the mask is its corner of 4 x 4: cropped by images that are larger than the canvas
    mask = torch.zeros(2, 80, 80, dtype=torch.bool)
    mask[0, :4, :4] = mask[1] = True
    boxes, labels = torch.tensor([[0.0, 0, 80, 80]] * 2), torch.tensor([7, 9])
    sample = make_sample(torch.zeros(3, 80, 80, dtype=torch.uint8), boxes, labels, 0, mask)
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        _, target = scale_jitter(sample, 80)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        assert target["masks"].flatten(1).any(dim=1).all()
        found.append(tuple(target["labels"].tolist()))
    assert set(found) == {(7, 9), (9,)}


def test_pixels_come_from_all_four_samples() -> None:
    torch.manual_seed(0)
    samples = [
        make_sample(torch.full((3, 80, 80), value, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), value)
        for value in (10, 50, 180, 250)
    ]
    image, target = mosaic(samples, 64)
    assert set(image.unique().tolist()) <= {10, 50, 180, 250, 114}
    assert {10, 50, 180, 250} <= set(image.unique().tolist())
    assert target["image_id"] == 10


def test_scale_spans_half_to_one_and_a_half() -> None:
    # a 10 x 10 box in a 40 x 40 image: on a canvas of 80 its side is 20 times the factor
    sample = painted(40, 40, (15, 15, 25, 25), 0)
    widths = []
    for seed in range(200):
        torch.manual_seed(seed)
        left, top, right, bottom = scale_jitter(sample, 80)[1]["boxes"][0].tolist()
        if left > 0 and top > 0 and right < 80 and bottom < 80:
            widths.append(right - left)
    assert 10 <= min(widths) < 10.5
    assert 29.5 < max(widths) <= 30


def test_clip_keeps_what_is_visible_enough() -> None:
    boxes = torch.tensor(
        [
            [10.0, 10, 20, 20],  # inside
            [-90.0, 0, 10, 100],  # 10 of 100 columns: exactly a tenth
            [-91.0, 0, 9, 100],  # 9 of 100 columns
            [98.5, 0, 102, 50],  # 1.5 pixels are left
            [200.0, 0, 210, 10],  # outside
        ]
    )
    clipped, visible = clip_boxes(boxes, (0, 0, 100, 100))
    assert visible.tolist() == [True, True, False, False, False]
    assert clipped[:2].tolist() == [[10, 10, 20, 20], [0, 0, 10, 100]]


def test_sources_are_left_untouched() -> None:
    samples, expected = sources(), sources()
    mosaic(samples, 96)
    for (image, target), (old_image, old_target) in zip(samples, expected, strict=True):
        assert torch.equal(image, old_image)
        assert torch.equal(target["boxes"], old_target["boxes"])


def test_mosaic_takes_four() -> None:
    with pytest.raises(ValueError, match="samples must be four, got 3"):
        mosaic(sources()[:3], 64)
