# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from moe_vision.data import Sample, copy_paste
from moe_vision.data.samples import make_sample


def squares(*boxes: tuple[int, int, int, int], value: int, image_id: int) -> Sample:
    """A picture of 12 x 12 with squares of one grey, labelled with their order after 10 times the id."""
    masks = torch.zeros(len(boxes), 12, 12, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    image = (masks.any(dim=0) * value).to(torch.uint8).expand(3, 12, 12)
    labels = torch.arange(len(boxes)) + 10 * image_id
    return make_sample(image, torch.tensor(boxes).reshape(-1, 4), labels, image_id, masks)


def outcomes(sample: Sample, other: Sample, tries: int = 60) -> dict[tuple[int, ...], Sample]:
    """What comes of a pair, by its labels."""
    found = {}
    for seed in range(tries):
        torch.manual_seed(seed)
        result = copy_paste(sample, other)
        found[tuple(result[1]["labels"].tolist())] = result
    return found


def test_covered_masks_are_cut_and_their_boxes_follow() -> None:
    # The pasted square hides the right half of the first, a corner of the second, all of the third, not the fourth.
    below = squares((0, 4, 8, 8), (6, 0, 12, 5), (5, 5, 7, 7), (0, 9, 3, 12), value=50, image_id=1)
    above = squares((4, 4, 9, 9), value=200, image_id=2)
    found = outcomes(below, above)
    assert set(found) == {(10, 11, 12, 13), (10, 11, 13, 20)}
    image, target = found[10, 11, 13, 20]
    assert target["image_id"] == 1
    # Of the second, rows 0 to 4 and columns 6 to 11, row 4 is covered in columns 6 to 8: its box stays.
    assert target["boxes"].tolist() == [[0, 4, 4, 8], [6, 0, 12, 5], [0, 9, 3, 12], [4, 4, 9, 9]]
    assert target["masks"].flatten(1).sum(dim=1).tolist() == [16, 30 - 3, 9, 25]
    assert (image[:, 4:9, 4:9] == 200).all()
    assert (image[:, target["masks"][3]] == 200).all()
    assert (image[:, target["masks"][:3].any(dim=0)] == 50).all()
    assert (image[:, ~target["masks"].any(dim=0)] == 0).all()


def test_the_box_of_an_object_that_stays_whole_is_left_as_it_was() -> None:
    image, target = squares((2, 2, 6, 6), value=50, image_id=1)
    target["boxes"] = target["boxes"] + torch.tensor([-0.5, 0, 0.5, 0])  # annotated with room around the mask
    found = outcomes((image, target), squares((8, 8, 12, 12), value=200, image_id=2))
    assert found[10, 20][1]["boxes"].tolist() == [[1.5, 2, 6.5, 6], [8, 8, 12, 12]]


def test_about_half_of_the_objects_are_pasted() -> None:
    other = squares(*[(x, y, x + 1, y + 1) for x in range(10) for y in range(10)], value=200, image_id=0)
    empty = squares(value=0, image_id=7)
    count = sum(len(copy_paste(empty, other)[1]["labels"]) for _ in range(20))
    assert 900 < count < 1100  # of 2000, with a standard deviation of 22
    assert len(copy_paste(empty, empty)[1]["labels"]) == 0
    before = other[0].as_subclass(Tensor).clone()
    image, target = copy_paste(other, empty)
    assert torch.equal(image, before)
    assert len(target["labels"]) == 100
