# SPDX-License-Identifier: Apache-2.0
"""Simple Copy-Paste: objects of one picture, cut out along their masks, laid over another."""

import torch
from torch import Tensor

from moe_vision.data.masks import mask_boxes
from moe_vision.data.samples import Sample, make_sample

SHARE = 0.5  # of the other picture's objects


def copy_paste(sample: Sample, other: Sample) -> Sample:
    """Paste a random half of the objects of one sample onto another of the same size (arXiv:2012.07177).

    An object that is partly covered keeps what is left of its mask, and its box becomes the box around that; an object
    that is wholly covered goes. Draws from torch's global CPU generator.

    Args:
        sample: Image uint8 and target with masks, as `mosaic` or `scale_jitter` makes them; it gives `image_id`.
        other: The sample whose objects are pasted, each with probability 0.5.

    Shape:
        - Output: image (3, H, W), uint8, with boxes (N, 4), labels (N,) and masks (N, H, W); the pasted come last

    Examples:
        >>> masks = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> masks[:, 2:6, 2:6] = True
        >>> picture, boxes = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([[2, 2, 6, 6]])
        >>> square = make_sample(picture, boxes, torch.tensor([0]), 0, masks)
        >>> copy_paste(square, square)[1]["boxes"].tolist()  # pasted or not, one square is seen
        [[2.0, 2.0, 6.0, 6.0]]
    """
    image, target = _plain(sample)
    pasted_image, pasted = _plain(other)
    chosen = torch.rand(len(pasted["labels"])) < SHARE
    pasted = {key: values[chosen] for key, values in pasted.items()}
    covered = pasted["masks"].any(dim=0)
    kept = _uncovered(target, covered)
    objects = {key: torch.cat([kept[key], pasted[key]]) for key in kept}
    return make_sample(torch.where(covered, pasted_image, image), image_id=sample[1]["image_id"], **objects)


def _plain(sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
    image, target = sample
    return image.as_subclass(Tensor), {key: target[key].as_subclass(Tensor) for key in ("boxes", "labels", "masks")}


def _uncovered(target: dict[str, Tensor], covered: Tensor) -> dict[str, Tensor]:
    """Cut what is covered (H, W) off the masks; leave out the objects of which nothing is seen any more."""
    masks = target["masks"] & ~covered
    cut = (target["masks"] & covered).flatten(1).any(dim=1)
    seen = masks.flatten(1).any(dim=1)
    boxes, labels, masks, cut = target["boxes"][seen], target["labels"][seen], masks[seen], cut[seen]
    return {"boxes": torch.where(cut[:, None], mask_boxes(masks), boxes), "labels": labels, "masks": masks}
