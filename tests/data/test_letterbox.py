# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from moe_vision.data import Letterbox, letterbox_geometry, undo_letterbox
from moe_vision.data.samples import make_sample

from .painted import check_mask, extent, painted

sides = st.integers(1, 500)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (240, 320, 40, 0)),  # scale 320 / 640 = 1/2; (320 - 240) / 2 = 40 rows on either side
        (640, 480, (320, 240, 0, 40)),
        (100, 100, (320, 320, 0, 0)),  # small images are enlarged
        (10, 3000, (1, 320, 159, 0)),  # 10 * 320 / 3000 = 1.07; (320 - 1) // 2 = 159
        (1, 3000, (1, 320, 159, 0)),  # at least one row
    ],
)
def test_geometry(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert letterbox_geometry(height, width, 320) == expected


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(32, 640), data=st.data())
def test_undo_takes_boxes_back_where_they_came_from(height: int, width: int, size: int, data: st.DataObject) -> None:
    fractions = data.draw(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), max_size=5))
    boxes = torch.tensor(fractions).reshape(-1, 4).sort(dim=1).values
    boxes = boxes * torch.tensor([width, height] * 2)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image, target = Letterbox(size)(*make_sample(image, boxes, torch.zeros(len(boxes)), 0))
    assert image.shape == (3, size, size)
    assert target["boxes"].canvas_size == (size, size)
    back = undo_letterbox(target["boxes"].as_subclass(torch.Tensor), height, width, size)
    torch.testing.assert_close(back, boxes, atol=1e-3, rtol=0)


@settings(deadline=None)
@given(height=st.integers(60, 400), width=st.integers(60, 400), size=st.integers(64, 320), channel=st.integers(0, 2))
def test_boxes_follow_the_pixels(height: int, width: int, size: int, channel: int) -> None:
    box = (width // 4, height // 3, width - 5, height - 10)
    image, target = Letterbox(size)(*painted(height, width, box, channel))
    found = torch.tensor(extent(image, channel), dtype=torch.float32)
    torch.testing.assert_close(found, target["boxes"][0].as_subclass(torch.Tensor), atol=1.5, rtol=0)


@settings(deadline=None)
@given(height=st.integers(60, 400), width=st.integers(60, 400), size=st.integers(64, 320), channel=st.integers(0, 2))
def test_masks_follow_the_pixels(height: int, width: int, size: int, channel: int) -> None:
    box = (width // 4, height // 3, width - 5, height - 10)
    image, target = Letterbox(size)(*painted(height, width, box, channel, masked=True))
    assert target["masks"].dtype == torch.bool
    check_mask(target["masks"][0].as_subclass(torch.Tensor), image, channel)


def test_the_border_is_filled_and_masks_get_zero() -> None:
    white = tv_tensors.Image(torch.full((3, 50, 100), 255, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(1, 50, 100, dtype=torch.uint8))
    image, mask = Letterbox(100)(white, mask)
    assert image[:, :25].unique().tolist() == image[:, 75:].unique().tolist() == [114]
    assert image[:, 25:75].unique().tolist() == [255]
    assert mask[:, :25].unique().tolist() == mask[:, 75:].unique().tolist() == [0]
    assert mask[:, 25:75].unique().tolist() == [1]


def test_undo_clips_to_the_original_image() -> None:
    boxes = torch.tensor([[-10.0, 0.0, 400.0, 320.0], [5.0, 0.0, 10.0, 20.0]])
    # 480 x 640 lies in rows 40 to 280 of 320; the second box lies in the border above it
    assert undo_letterbox(boxes, 480, 640, 320).tolist() == [[0, 0, 640, 480], [10, 0, 20, 0]]


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        Letterbox(0)
