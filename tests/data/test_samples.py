# SPDX-License-Identifier: Apache-2.0
import torch
from torchvision import tv_tensors

from moe_vision.data.samples import make_sample


def test_an_image_without_objects_has_empty_boxes_of_the_right_kind() -> None:
    image, target = make_sample(torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 7)
    assert isinstance(image, tv_tensors.Image)
    assert target["boxes"].shape == (0, 4)
    assert target["boxes"].canvas_size == (4, 6)
    assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
    assert target["image_id"] == 7
    assert "masks" not in target


def test_masks_are_bool_masks() -> None:
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    _, target = make_sample(image, torch.zeros(1, 4), torch.zeros(1), 7, torch.ones(1, 4, 6, dtype=torch.uint8))
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.bool
