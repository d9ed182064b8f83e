# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from moe_vision.data.readers.rle import MAX_OUTLINE, decode, from_counts, from_polygons, polygon_problem

sides = st.integers(1, 70)
coordinates = st.floats(-30, 100, width=32)
polygons = st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9), min_size=1, max_size=3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@settings(deadline=None)
@given(height=sides, width=sides, corners=polygons)
def test_polygons_are_those_of_pycocotools(height: int, width: int, corners: list[list[tuple[float, float]]]) -> None:
    flat = [[value for corner in polygon for value in corner] for polygon in corners]
    assert not any(map(polygon_problem, flat))
    expected = pycoco.decode(pycoco.merge(pycoco.frPyObjects(flat, height, width)))
    assume(expected.any())
    found = decode([from_polygons(flat, height, width)], height, width)
    assert np.array_equal(found[0].numpy(), expected)


@settings(deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 999), share=st.floats(0.01, 0.99))
def test_counts_are_those_of_pycocotools(height: int, width: int, seed: int, share: float) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share, dtype=np.uint8)
    assume(mask.any())
    compressed = pycoco.encode(mask)["counts"].decode()
    column = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *changes, column.size]).tolist()
    plain = [0, *runs] if column[0] else runs
    for counts in (compressed, plain):
        found = decode([from_counts([height, width], counts, height, width)], height, width)
        assert np.array_equal(found[0].numpy(), mask)


def test_masks_come_in_order_and_may_be_none() -> None:
    masks = [from_counts([1, 3], counts, 1, 3) for counts in ([0, 1, 2], [2, 1])]
    assert decode(masks, 1, 3).tolist() == [[[True, False, False]], [[False, False, True]]]
    none = decode([], 4, 5)
    assert (none.shape, none.dtype) == ((0, 4, 5), torch.bool)


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([], "polygon of fewer than 3 points"),
        ([1, 1, 5, 5], "polygon of fewer than 3 points"),
        ([1, 1, 5, 5, 9], "polygon with an odd number of coordinates"),
        ([1, 1, 5, 5, "9", 9], "coordinate that is not a number"),
        ([[1, 1], [5, 5], [9, 1]], "coordinate that is not a number"),
        ("polygon", "coordinate that is not a number"),
        (None, "coordinate that is not a number"),
        ([1, 1, 5, 5, float("nan"), 9], "polygon far outside the image"),
        ([1, 1, 5, 5, 1e300, 9], "polygon far outside the image"),
        ([0, 0, MAX_OUTLINE / 2, 0, 0, 1], "polygon too long"),  # there and back: just above the limit
        ([0, 0, 9, 0, 9, 9], None),
    ],
)
def test_polygon_problem(points: object, problem: str | None) -> None:
    assert polygon_problem(points) == problem


def test_a_polygon_outside_the_image_is_empty() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        from_polygons([[50, 50, 60, 50, 60, 60]], 10, 10)


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([3, 5], [15], r"size of the image, \[3, 4\], got \[3, 5\]"),
        (None, [12], "size of the image"),
        ([3, 4], [5, 6], "sum to the 12 pixels of the image, got 11"),
        ([3, 4], [10**9, 10**9], "sum to the 12 pixels"),
        ([3, 4], [-1, 13], "numbers from 0"),
        ([3, 4], [2, 1.5, 8.5], "numbers from 0"),
        ([3, 4], None, "numbers from 0"),
        ([3, 4], [12], "at least one pixel"),
        ([3, 4], "", "sum to the 12 pixels"),
        ([3, 4], "58", "sum to the 12 pixels of the image, got 13"),  # 5 and 8
        ([3, 4], "5 7", "COCO's code, got the byte 32"),
        ([3, 4], "caf\u00e9", "COCO's code"),
        ([3, 4], "5P", "whole number"),
        ([3, 4], "o" * 30, "COCO's code"),
    ],
)
def test_broken_counts(size: object, counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_counts(size, counts, 3, 4)
