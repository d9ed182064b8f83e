# SPDX-License-Identifier: Apache-2.0
"""Masks rendered inside their boxes, against whole maps interpolated and cropped; polygons that give masks back."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path
from torch import Tensor

from moe_vision.data import letterbox_geometry
from moe_vision.tasks import mask_polygons, render_masks
from moe_vision.tasks.masks import mask_windows
from tests.memory import peak_megabytes


def centres(length: int) -> Tensor:
    return torch.arange(length) + 0.5


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Tell which pixels' centres lie in which boxes, (D, H, W)."""
    x, y = centres(width), centres(height)[:, None]
    return torch.stack([(x >= x1) & (x < x2) & (y >= y1) & (y < y2) for x1, y1, x2, y2 in boxes.tolist()])


def assert_equal_where_certain(masks: Tensor, logits: Tensor, boxes: Tensor) -> None:
    """Compare masks with whole maps of logits, but for pixels where rounding decides."""
    expected = (logits > 0) & inside(boxes, *logits.shape[1:])
    assert masks.dtype == torch.bool
    assert masks.shape == expected.shape
    assert not ((masks != expected) & (logits.abs() > 1e-4)).any()


@st.composite
def instances(draw: st.DrawFn, side: float = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, prototypes of 64 x 96 pixels, and boxes inside, across the border, outside and of no size."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    number = st.floats(-side, 2 * side, width=32) | st.integers(-5, 40).map(lambda half: half / 2)
    corners = draw(st.lists(st.tuples(number, number, number, number), min_size=1, max_size=4))
    boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 2, 2).sort(dim=1).values.flatten(1)
    coefficients = torch.randn(len(boxes), 32, generator=generator)
    return coefficients, torch.randn(32, 16, 24, generator=generator), boxes


@given(instances())
def test_masks_equal_interpolated_maps_that_are_cropped(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    coefficients, prototypes, boxes = drawn
    maps = torch.einsum("dk,khw->dhw", coefficients, prototypes)
    logits = F.interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    assert_equal_where_certain(render_masks(coefficients, prototypes, boxes, (64, 96)), logits, boxes)


@given(instances(side=200), st.integers(1, 220), st.integers(1, 220), st.sampled_from([0, -9, 23]))
def test_masks_in_pixels_of_a_letterboxed_image(
    drawn: tuple[Tensor, Tensor, Tensor], height: int, width: int, shift: int
) -> None:
    coefficients, prototypes, boxes = drawn
    prototypes = prototypes[:, :, :16]  # of 64 x 64 pixels
    place = letterbox_geometry(height, width, 64)
    scale = place.width / width, place.height / height
    left = place.left + shift  # with a shift a part lies beyond the square, where the logits go on as at its border
    # Where the centre of each pixel of the image lies in the square, from -1 to 1.
    x = (centres(width) * scale[0] + left) / 32 - 1
    y = (centres(height) * scale[1] + place.top) / 32 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    maps = torch.einsum("dk,khw->dhw", coefficients, prototypes)[None]
    logits = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    masks = render_masks(coefficients, prototypes, boxes, (height, width), scale=scale, offset=(left, place.top))
    assert_equal_where_certain(masks, logits, boxes)


def test_half_a_pixel_by_hand() -> None:
    # Two cells with logits -3 and 5 in a row, centres at 2 and 6: 0 lies 3/8 of the way, at 2 + 4 * 3/8 = 3.5, the
    # centre of pixel 3, which is not above 0; pixel 4 is. The box holds the centres of rows 1 and 2.
    prototypes = torch.tensor([[[-3.0, 5.0]]])
    masks = render_masks(torch.ones(1, 1), prototypes, torch.tensor([[0.0, 0.6, 7.0, 2.6]]), (4, 8))
    expected = torch.zeros(1, 4, 8, dtype=torch.bool)
    expected[0, 1:3, 4:7] = True
    assert torch.equal(masks, expected)


def test_no_instances_and_boxes_that_are_no_numbers() -> None:
    none = render_masks(torch.zeros(0, 32), torch.zeros(32, 4, 4), torch.zeros(0, 4), (10, 12))
    assert (none.shape, none.dtype) == ((0, 10, 12), torch.bool)
    wrong = torch.tensor([[float("nan")] * 4, [0.0, 0.0, float("inf"), float("inf")]])
    masks = render_masks(torch.ones(2, 32), torch.ones(32, 4, 4), wrong, (16, 16))
    assert masks.flatten(1).sum(dim=1).tolist() == [0, 256]


def test_masks_are_decided_in_fp32_under_autocast() -> None:
    coefficients, prototypes = torch.randn(1, 32), torch.randn(32, 16, 24)
    box = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    expected = render_masks(coefficients, prototypes, box, (64, 96))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(render_masks(coefficients, prototypes, box, (64, 96)), expected)


def test_memory_is_that_of_one_box() -> None:
    # 100 instances in an image of 36 million pixels.
    corners = torch.rand(100, 2) * 5900
    boxes = torch.cat([corners, corners + 100], dim=1)
    coefficients, prototypes = torch.randn(100, 32), torch.randn(32, 160, 160)

    def outlined() -> Iterator[list[Tensor]]:
        for mask, left, top in mask_windows(coefficients, prototypes, boxes, (6000, 6000), scale=(0.1066, 0.1066)):
            yield mask_polygons(mask, left=left, top=top)

    assert peak_megabytes(lambda: list(outlined())) < 2


masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(masks, st.integers(-3, 50), st.integers(-3, 50))
def test_polygons_give_the_mask_back(mask: np.ndarray, left: int, top: int) -> None:
    height, width = mask.shape
    x, y = np.meshgrid(np.arange(width) + left + 0.5, np.arange(height) + top + 0.5)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    filled = np.zeros(height * width, bool)
    for polygon in mask_polygons(torch.from_numpy(mask), left=left, top=top):
        assert polygon.dtype == torch.float32
        filled ^= Path(polygon.numpy()).contains_points(points)  # even-odd
    assert (filled.reshape(mask.shape) == mask).all()


def area(polygon: Tensor) -> float:
    x, y = polygon.double().unbind(dim=1)
    return ((x * y.roll(-1) - x.roll(-1) * y).sum() / 2).item()


def test_holes_run_the_other_way_round() -> None:
    ring = torch.ones(5, 6, dtype=torch.bool)
    ring[1:4, 2:4] = False
    areas = sorted(area(polygon) for polygon in mask_polygons(ring))
    # Lines run half-way between centres: the outer one around 5 x 6 pixels cuts a triangle of 1/8 off each corner, the
    # hole of 3 x 2 pixels likewise.
    assert areas == pytest.approx([-(3 * 2 - 4 / 8), 5 * 6 - 4 / 8])


def test_several_parts_are_several_polygons() -> None:
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[0, 0] = mask[5, 8] = True
    polygons = mask_polygons(mask)
    assert [polygon.mean(dim=0).tolist() for polygon in polygons] == [[0.5, 0.5], [8.5, 5.5]]
    assert mask_polygons(torch.zeros(3, 4, dtype=torch.bool)) == []
    assert mask_polygons(torch.zeros(0, 4, dtype=torch.bool)) == []
