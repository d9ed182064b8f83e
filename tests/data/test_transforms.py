# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from moe_vision.data import eval_transform, train_transform
from moe_vision.data.transforms import classify_transform

from .painted import extent, painted


def test_eval_transform_letterboxes_to_floats() -> None:
    image, target = eval_transform(80)(*painted(60, 120, (0, 0, 60, 60), 1))
    assert (image.shape, image.dtype) == ((3, 80, 80), torch.float32)
    assert image.amin() == 0
    assert image.amax() == 1
    # scale 80 / 120; (80 - 40) / 2 = 20 rows above
    torch.testing.assert_close(target["boxes"].as_subclass(torch.Tensor), torch.tensor([[0.0, 20, 40, 60]]))


def test_eval_transform_takes_an_image_alone() -> None:
    image = eval_transform(64)(torch.full((3, 64, 64), 51, dtype=torch.uint8))
    torch.testing.assert_close(image, torch.full((3, 64, 64), 0.2))  # 51 / 255


@pytest.mark.parametrize(("height", "width"), [(32, 48), (150, 100), (64, 64)])
def test_classify_transform_resizes_the_shorter_side_and_crops_the_centre(height: int, width: int) -> None:
    image = torch.randint(64, 192, (3, height, width), dtype=torch.uint8)  # no bicubic overshoot to clip
    seen = classify_transform(64)(image)
    sides = [round(side * 64 / min(height, width)) for side in (height, width)]
    resized = torch.nn.functional.interpolate(image[None] / 255, sides, mode="bicubic", antialias=True)[0]
    top, left = ((side - 64) // 2 for side in sides)
    expected = resized[:, top : top + 64, left : left + 64]
    assert (seen.shape, seen.dtype) == ((3, 64, 64), torch.float32)
    assert (seen - expected).abs().max() < 1.5 / 255  # bytes are rounded


@pytest.mark.parametrize(
    ("hflip", "vflip", "expected"),
    [(0, 0, (10, 5, 40, 30)), (1, 0, (60, 5, 90, 30)), (0, 1, (10, 30, 40, 55)), (1, 1, (60, 30, 90, 55))],
)
def test_flips_move_boxes_with_pixels(hflip: float, vflip: float, expected: tuple[int, ...]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        image, target = train_transform(hflip=hflip, vflip=vflip)(*painted(60, 100, (10, 5, 40, 30), seed % 3))
        assert target["boxes"].tolist() == [list(expected)]
        assert extent(image, seed % 3) == list(expected)


def test_colour_jitter_changes_colours_but_stays_in_range() -> None:
    sample = painted(60, 100, (10, 5, 40, 30), 0)
    images = []
    for seed in range(8):
        torch.manual_seed(seed)
        images.append(train_transform(hflip=0)(*sample)[0])
    peaks = torch.stack([image.amax() for image in images])
    assert all(image.amin() >= 0 and image.amax() <= 1 for image in images)
    assert peaks.unique().numel() > 3
