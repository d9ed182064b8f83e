# SPDX-License-Identifier: Apache-2.0
"""Scale jitter and mosaic: randomly scaled images pasted into the cells of one canvas, in a single resize each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from moe_vision.data.masks import resize_crop
from moe_vision.data.samples import Sample, Target, make_sample
from moe_vision.runtime.letterbox import letterbox_geometry

FILL = 114
SCALE = (0.5, 1.5)  # relative to the letterboxed size
MIN_SIDE = 2.0  # pixels
MIN_VISIBLE = 0.1  # of a box's area

Cell = tuple[int, int, int, int]  # left, top, right, bottom


def mosaic(samples: Sequence[Sample], size: int) -> Sample:
    """Paste four samples into the quadrants around a random point of one canvas.

    Each image is resized by its letterbox scale times a random factor in [0.5, 1.5] and lies at a random place of
    its quadrant, cropped to it. A box keeps its visible part; it goes when less than a tenth of its area, or less than
    2 pixels of a side, are left. Masks are cropped likewise, and an object goes when its mask has no pixel left; boxes
    are clipped with masks as without, so a box may reach beyond what is left of its mask. Draws from torch's global
    CPU generator. The idea is from YOLOv4 (arXiv:2004.10934).

    Args:
        samples: Four pairs of image uint8 and target, as a data set yields them; the first gives `image_id`.
        size: Side of the canvas in pixels.

    Shape:
        - Output: image (3, size, size), uint8, with boxes (N, 4), labels (N,) and, if the samples have them, masks
          (N, size, size)

    Raises:
        ValueError: There are not four samples.

    Examples:
        >>> white = make_sample(torch.full((3, 48, 64), 255), torch.tensor([[0.0, 0, 64, 48]]), torch.tensor([2]), 0)
        >>> _ = torch.manual_seed(0)
        >>> image, target = mosaic([white] * 4, size=32)
        >>> image.shape, target["labels"]
        (torch.Size([3, 32, 32]), tensor([2, 2, 2, 2]))
    """
    if len(samples) != 4:
        raise ValueError(f"samples must be four, got {len(samples)}")
    x, y = (_uniform(0.25, 0.75, 2) * size).round().int().tolist()
    return _collage(samples, [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)], size)


def scale_jitter(sample: Sample, size: int) -> Sample:
    """Resize one sample by its letterbox scale times a random factor and lay it at a random place of the canvas.

    Scale, cropping, boxes, masks and random numbers are as in `mosaic`.

    Args:
        sample: Image uint8 and target, as a data set yields them.
        size: Side of the canvas in pixels.

    Shape:
        - Output: image (3, size, size), uint8, with boxes (N, 4), labels (N,) and, if the sample has them, masks
          (N, size, size)

    Examples:
        >>> from moe_vision.data import ShapeScenes, scale_jitter
        >>> scale_jitter(ShapeScenes(1, 64)[0], 128)[0].shape
        torch.Size([3, 128, 128])
    """
    return _collage([sample], [(0, 0, size, size)], size)


def _collage(samples: Sequence[Sample], cells: Sequence[Cell], size: int) -> Sample:
    canvas = torch.full((3, size, size), FILL, dtype=torch.uint8)
    visible = [_paste(canvas, *pair) for pair in zip(samples, cells, strict=True)]
    objects = {key: torch.cat([target[key] for target in visible]) for key in visible[0]}
    return make_sample(canvas, image_id=samples[0][1]["image_id"], **objects)


def _paste(canvas: Tensor, sample: Sample, cell: Cell) -> Target:
    """Paint a randomly scaled sample into a cell of the canvas; return the objects still visible there."""
    image, target = sample
    height, width = image.shape[-2:]
    factor, across, down = torch.rand(3).tolist()
    fitted = letterbox_geometry(height, width, canvas.shape[-1])
    factor = SCALE[0] + factor * (SCALE[1] - SCALE[0])
    new_height, new_width = max(1, round(fitted.height * factor)), max(1, round(fitted.width * factor))
    left, top, right, bottom = cell
    # The image's corner: the spare room is split at random; it is negative, a crop, for an image larger than its cell.
    x = left + round((right - left - new_width) * across)
    y = top + round((bottom - top - new_height) * down)
    x1, y1, x2, y2 = max(left, x), max(top, y), min(right, x + new_width), min(bottom, y + new_height)
    resized = F.resize(image.as_subclass(Tensor), [new_height, new_width], antialias=True)
    canvas[:, y1:y2, x1:x2] = resized[:, y1 - y : y2 - y, x1 - x : x2 - x]

    scale = torch.tensor([new_width / width, new_height / height] * 2)
    boxes = target["boxes"].as_subclass(Tensor) * scale + torch.tensor([x, y, x, y])
    boxes, visible = clip_boxes(boxes, cell)
    objects = {"boxes": boxes[visible], "labels": target["labels"][visible]}
    if "masks" not in target:
        return objects
    shown = target["masks"].as_subclass(Tensor)[visible]
    masks = torch.zeros(len(shown), *canvas.shape[1:], dtype=torch.bool)
    masks[:, y1:y2, x1:x2] = resize_crop(shown, new_height, new_width, (y1 - y, y2 - y), (x1 - x, x2 - x))
    left_over = masks.flatten(1).any(dim=1)
    return {key: values[left_over] for key, values in {**objects, "masks": masks}.items()}


def clip_boxes(boxes: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
    """Clip boxes to a cell; return them and which of them are still visible enough to learn from."""
    low, high = torch.tensor([*cell[:2], *cell[:2]]), torch.tensor([*cell[2:], *cell[2:]])
    clipped = torch.minimum(torch.maximum(boxes, low), high)
    sides = clipped[:, 2:] - clipped[:, :2]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return clipped, (sides.amin(dim=1) >= MIN_SIDE) & (sides.prod(dim=1) >= MIN_VISIBLE * area)


def _uniform(low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * torch.rand(count)
