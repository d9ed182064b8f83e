# SPDX-License-Identifier: Apache-2.0
"""Mixup of detection samples: two pictures shine through each other, and the objects of both count."""

import torch
from torch import Tensor

from moe_vision.data.samples import Sample, make_sample

ALPHA = 32.0  # the ratio is Beta(32, 32): near one half, so that both pictures can be made out


def mixup(sample: Sample, other: Sample) -> Sample:
    """Blend two samples of one size; boxes, labels and masks of both are kept.

    The ratio is drawn from Beta(32, 32) with torch's global CPU generator. The idea is from arXiv:1710.09412, for
    detection from arXiv:1902.04103.

    Args:
        sample: Image uint8 and target, as `mosaic` or `scale_jitter` makes them; it gives `image_id`.
        other: Another.

    Shape:
        - Output: image (3, H, W), uint8, with boxes (N + M, 4), labels (N + M,) and, if the samples have them, masks
          (N + M, H, W); those of the first sample come first

    Examples:
        >>> boxes, labels = torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([2])
        >>> black = make_sample(torch.zeros(3, 32, 32, dtype=torch.uint8), boxes, labels, 0)
        >>> white = make_sample(torch.full((3, 32, 32), 255, dtype=torch.uint8), boxes + 4, labels + 1, 1)
        >>> image, target = mixup(black, white)
        >>> 40 < image[0, 0, 0] < 215, target["labels"]
        (tensor(True), tensor([2, 3]))
    """
    ratio = torch.distributions.Beta(ALPHA, ALPHA).sample()
    first, second = (image.as_subclass(Tensor) for image, _ in (sample, other))
    blended = (ratio * first + (1 - ratio) * second).round().to(torch.uint8)
    objects = {
        key: torch.cat([target[key].as_subclass(Tensor) for _, target in (sample, other)])
        for key in ("boxes", "labels", "masks")
        if key in sample[1]
    }
    return make_sample(blended, image_id=sample[1]["image_id"], **objects)
