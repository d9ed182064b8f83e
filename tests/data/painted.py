# SPDX-License-Identifier: Apache-2.0
"""Images with one painted rectangle each, and where its pixels are: boxes and masks must follow the pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_vision.data import Sample
from moe_vision.data.samples import make_sample

Rectangle = tuple[int, int, int, int]


def painted(
    height: int, width: int, box: Rectangle, channel: int, image_id: int = 0, *, masked: bool = False
) -> Sample:
    """A black image with a red, green or blue rectangle (channel 0, 1, 2), labelled with its channel."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)  # in memory as read_image leaves it
    left, top, right, bottom = box
    image[channel, top:bottom, left:right] = 255
    masks = image[channel].bool()[None] if masked else None
    return make_sample(image, torch.tensor([box]), torch.tensor([channel]), image_id, masks)


def coloured(image: Tensor, channel: int) -> Tensor:
    """Which pixels (H, W) have more of one colour than half of the most that there is."""
    others = [other for other in range(3) if other != channel]
    excess = image[channel].float() - image[others].float().amax(dim=0)
    return excess > excess.max() / 2


def check_mask(mask: Tensor, image: Tensor, channel: int) -> None:
    """The mask covers the pixels of its colour, to one pixel at its edge."""
    expected = coloured(image, channel)
    assert not (mask & ~grown(expected)).any()
    assert not (expected & ~grown(mask)).any()


def grown(mask: Tensor) -> Tensor:
    """A mask with one pixel more on each side."""
    return F.max_pool2d(mask.float()[None], 3, stride=1, padding=1)[0] > 0


def extent(image: Tensor, channel: int) -> list[int] | None:
    """The xyxy extent of the pixels that have more of one colour than of the others; None if there are none."""
    image = image.float()
    others = [other for other in range(3) if other != channel]
    excess = image[channel] - image[others].amax(dim=0)
    if excess.max() <= 0.1 * image.max():
        return None
    rows, columns = (excess > excess.max() / 2).nonzero().T
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


class PaintedSource:
    """A source of twelve painted images of several sizes."""

    classes = ("red", "green", "blue")

    def __init__(self, masked: bool = False) -> None:
        self.masked = masked

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        height, width = 90 + 10 * index, 200 - 9 * index
        box = (20, 25 + index, 80 - index, 70)
        return painted(height, width, box, index % 3, index, masked=self.masked)
