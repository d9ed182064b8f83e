# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_vision.data import Sample, random_affine
from moe_vision.data.samples import make_sample

from .painted import check_mask, extent, painted


def disc(size: int, x: float, y: float, radius: float, channel: int) -> Sample:
    """A disc, which is as wide turned as it was."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    mask = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[channel, mask] = 255
    box = torch.tensor([[x - radius, y - radius, x + radius, y + radius]])
    return make_sample(image, box, torch.tensor([channel]), 5, mask[None])


@given(seed=st.integers(0, 2**31), rotate=st.floats(0, 180), shear=st.floats(0, 45), channel=st.integers(0, 2))
def test_masks_and_their_boxes_follow_the_pixels(seed: int, rotate: float, shear: float, channel: int) -> None:
    torch.manual_seed(seed)
    image, target = random_affine(disc(128, 80, 60, 20, channel), rotate=rotate, shear=shear)
    assert (image.shape, image.dtype, target["image_id"]) == ((3, 128, 128), torch.uint8, 5)
    assert target["masks"].dtype == torch.bool
    (mask,), (box,) = target["masks"].as_subclass(Tensor), target["boxes"].as_subclass(Tensor)
    check_mask(mask, image, channel)
    torch.testing.assert_close(box, torch.tensor(extent(image, channel), dtype=torch.float32), atol=2, rtol=0)


@given(seed=st.integers(0, 2**31), rotate=st.floats(0, 180), shear=st.floats(0, 45))
def test_boxes_without_masks_enclose_the_turned_corners(seed: int, rotate: float, shear: float) -> None:
    torch.manual_seed(seed)
    image, target = random_affine(painted(120, 120, (40, 50, 90, 70), 1), rotate=rotate, shear=shear)
    assert "masks" not in target
    # A rectangle touches all four sides of the box around its turned corners.
    found = torch.tensor(extent(image, 1), dtype=torch.float32)
    torch.testing.assert_close(found, target["boxes"][0].as_subclass(Tensor), atol=2, rtol=0)


def test_rotation_literally() -> None:
    # Find a rotation near a quarter turn; the rectangle's centre is (-30, -10) off the picture's.
    sample = painted(100, 100, (10, 35, 30, 45), 0)
    seen = set()
    for seed in range(300):
        torch.manual_seed(seed)
        angle = (2 * torch.rand(1).item() - 1) * 180
        torch.manual_seed(seed)
        if abs(abs(angle) - 90) < 1:
            box = random_affine(sample, rotate=180.0)[1]["boxes"][0].as_subclass(Tensor)
            # From the centre, clockwise: (-40, -15) and (-20, -5) go to (15, -40) and (5, -20); else to the opposites.
            clockwise = angle > 0
            expected = [55, 10, 65, 30] if clockwise else [35, 70, 45, 90]
            torch.testing.assert_close(box, torch.tensor(expected).float(), atol=1.5, rtol=0)
            seen.add(clockwise)
    assert seen == {True, False}


def test_angles_span_their_range_to_both_sides() -> None:
    # The hull of a 40 x 40 square turned by a has the side 40 (cos a + sin |a|).
    sides = []
    for seed in range(200):
        torch.manual_seed(seed)
        left, _, right, _ = random_affine(painted(100, 100, (30, 30, 70, 70), 0), rotate=20.0)[1]["boxes"][0].tolist()
        sides.append(right - left)
    largest = 40 * (math.cos(math.radians(20)) + math.sin(math.radians(20)))  # 51.3
    assert 40 <= min(sides) < 40.5
    assert largest - 0.5 < max(sides) <= largest + 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_what_leaves_the_picture_is_clipped_or_goes(masked: bool) -> None:
    # In the corner: turned by 45 degrees it lies outside, for its nearest point is 42 sqrt(2) = 59 from the centre.
    sample = painted(100, 100, (0, 0, 8, 8), 0, masked=masked)
    counts = set()
    for seed in range(80):
        torch.manual_seed(seed)
        image, target = random_affine(sample, rotate=50.0)
        boxes = target["boxes"].as_subclass(Tensor)
        counts.add(len(boxes))
        assert len(boxes) == len(target["labels"]) == len(target.get("masks", boxes))
        assert boxes.numel() == 0 or (boxes.min() >= 0 and boxes.max() <= 100)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        if masked and len(boxes):
            check_mask(target["masks"][0].as_subclass(Tensor), image - (image == 114).all(dim=0) * image, 0)
    assert counts == {0, 1}


def test_uncovered_corners_are_grey_and_an_empty_target_stays_empty() -> None:
    torch.manual_seed(1)
    none = torch.zeros(0, 64, 64, dtype=torch.bool)
    picture = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    image, target = random_affine(make_sample(picture, torch.zeros(0, 4), torch.zeros(0), 0, none), rotate=45.0)
    assert (image == 114).any()
    assert image.amin() >= 101  # at the edge 255 w^2 + 114 (1 - w), least for a share w = 114 / 510 of the pixel
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 64, 64)
