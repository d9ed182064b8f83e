# SPDX-License-Identifier: Apache-2.0
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_vision.data import mixup
from moe_vision.data.samples import make_sample

from .painted import painted


@given(seed=st.integers(0, 2**31), masked=st.booleans())
def test_pictures_are_blended_and_the_objects_of_both_kept(seed: int, masked: bool) -> None:
    torch.manual_seed(seed)
    red = painted(40, 60, (5, 5, 20, 30), 0, 3, masked=masked)
    blue = painted(40, 60, (10, 10, 50, 35), 2, 8, masked=masked)
    image, target = mixup(red, blue)
    assert (image.shape, image.dtype) == ((3, 40, 60), torch.uint8)
    # Of a red pixel 255 times the ratio is left, of a blue one 255 times the rest.
    ratio = image[0, 6, 6].item() / 255
    assert 0.2 < ratio < 0.8  # Beta(32, 32): a standard deviation of 1 / sqrt(4 * 65) = 0.06
    assert abs(image[2, 34, 49].item() - 255 * (1 - ratio)) <= 1
    for channel, share in ((0, ratio), (2, 1 - ratio)):
        assert (image[channel].float() - (red if channel == 0 else blue)[0][channel] * share).abs().max() <= 1
    assert target["boxes"].tolist() == [[5, 5, 20, 30], [10, 10, 50, 35]]
    assert target["labels"].tolist() == [0, 2]
    assert target["image_id"] == 3
    if masked:
        assert torch.equal(target["masks"], torch.stack([red[0][0] > 0, blue[0][2] > 0]))
    assert ("masks" in target) == masked


def test_ratios_are_near_one_half() -> None:
    black = make_sample(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 0)
    white = make_sample(torch.full((3, 2, 2), 255, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 1)
    levels = torch.stack([mixup(black, white)[0][0, 0, 0].float() / 255 for _ in range(400)])
    assert abs(levels.mean() - 0.5) < 0.01  # 0.062 / 20 = 0.003 is the standard error
    assert 0.055 < levels.std() < 0.07
