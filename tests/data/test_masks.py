# SPDX-License-Identifier: Apache-2.0
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.data.masks import mask_boxes, resize_crop, resize_masks

sides = st.integers(1, 40)


@settings(deadline=None)
@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), seed=st.integers(0, 99))
def test_resize_takes_the_pixels_under_the_centres(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    masks = torch.rand(2, *old, generator=torch.Generator().manual_seed(seed)) > 0.5
    exact = torch.nn.functional.interpolate(masks[None].double(), new, mode="nearest-exact")[0] > 0
    found = resize_masks(masks, *new)
    assert found.dtype == torch.bool
    # in float32 and float64 a centre on the border of two pixels may fall to either side
    assert torch.equal(found, exact) or _near_ties(old, new)


def _near_ties(old: tuple[int, int], new: tuple[int, int]) -> bool:
    return any((2 * i + 1) * a % (2 * b) == 0 for a, b in zip(old, new, strict=True) for i in range(b))


def test_a_shrunk_mask_has_no_shift() -> None:
    # centres of 2 pixels over 6 are 1.5 and 4.5: pixels 1 and 4
    assert resize_masks(torch.arange(6).reshape(1, 1, 6), 1, 2).tolist() == [[[1, 4]]]


@settings(deadline=None)
@given(height=sides, width=sides, data=st.data())
def test_a_crop_is_a_part_of_the_whole(height: int, width: int, data: st.DataObject) -> None:
    masks = torch.rand(3, 13, 17) > 0.5
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    part = resize_crop(masks, height, width, (top, bottom), (left, right))
    assert torch.equal(part, resize_masks(masks, height, width)[:, top:bottom, left:right])


def test_boxes_of_masks_reach_to_the_far_side_of_the_last_pixel() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0] = masks[1, 2, 3] = masks[2, 1, 1] = masks[2, 3, 4] = True
    assert mask_boxes(masks).tolist() == [[0, 0, 6, 4], [3, 2, 4, 3], [1, 1, 5, 4]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
