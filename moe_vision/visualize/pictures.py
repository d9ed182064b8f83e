# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

# Paul Tol's bright scheme, told apart by colour-blind people too; a class takes the colour of its number.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE7733", "#009988")


def draw_detections(
    image: Tensor, detections: Mapping[str, Tensor], class_names: Sequence[str], *, text: bool = True
) -> Tensor:
    """Draw boxes, and masks if there are some, in a colour a class, with class and score.

    Args:
        image: RGB image, (3, H, W), uint8.
        detections: ``boxes`` (D, 4), xyxy in pixels, ``labels`` (D,) and perhaps ``scores`` (D,) and ``masks``
            (D, H, W), bool.
        class_names: Names of the classes.
        text: Write class and score beside each box.

    Shape:
        - Output: (3, H, W), uint8

    Examples:
        >>> import torch
        >>> from moe_vision.visualize import draw_detections
        >>> detections = {"boxes": torch.tensor([[2.0, 2.0, 20.0, 20.0]]), "labels": torch.tensor([0])}
        >>> draw_detections(torch.zeros(3, 32, 32, dtype=torch.uint8), detections, ["cell"]).shape
        torch.Size([3, 32, 32])
    """
    labels = detections["labels"].tolist()
    if not labels:
        return image.clone()
    captions = [class_names[label] for label in labels]
    if "scores" in detections:
        scores = detections["scores"].tolist()
        captions = [f"{caption} {score:.2f}" for caption, score in zip(captions, scores, strict=True)]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    if "masks" in detections:
        image = draw_segmentation_masks(image, detections["masks"], alpha=0.5, colors=colours)
    drawn: Tensor = draw_bounding_boxes(
        image,
        detections["boxes"],
        labels=captions if text else None,
        colors=colours,
        width=max(2, round(max(image.shape[1:]) / 300)),
        label_colors="white",
        fill_labels=True,
    )
    return drawn


def comparison_sheet(
    images: Sequence[Tensor],
    truths: Sequence[Mapping[str, Tensor]],
    found: Sequence[Mapping[str, Tensor]],
    class_names: Sequence[str],
    *,
    size: int = 256,
) -> Tensor:
    """Lay out images in pairs: on the left the boxes of the objects that are there, on the right those detected.

    Args:
        images: RGB images, (3, H, W), uint8.
        truths: For each image ``boxes`` and ``labels``.
        found: For each image ``boxes``, ``labels`` and ``scores``.
        class_names: Names of the classes.
        size: Side of an image on the sheet in pixels.

    Shape:
        - Output: (3, H', W'), uint8; two pairs a row

    Examples:
        >>> import torch
        >>> from moe_vision.visualize import comparison_sheet
        >>> image, none = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
        >>> empty = {"boxes": torch.zeros(0, 4), "labels": none}
        >>> comparison_sheet([image] * 2, [empty] * 2, [empty] * 2, ["cell"], size=64).shape
        torch.Size([3, 72, 276])
    """
    tiles = []
    for image, truth, detections in zip(images, truths, found, strict=True):
        scale = size / max(image.shape[1:])
        large = F.resize(image, [max(1, round(side * scale)) for side in image.shape[1:]], antialias=True)
        canvas = torch.full((3, size, size), 255, dtype=torch.uint8)
        for objects in (truth, detections):
            kept = {name: objects[name] for name in ("labels", "scores") if name in objects}
            drawn = draw_detections(large, {**kept, "boxes": objects["boxes"] * scale}, class_names)
            tile = canvas.clone()
            tile[:, : drawn.shape[1], : drawn.shape[2]] = drawn
            tiles.append(tile)
    sheet: Tensor = make_grid(tiles, nrow=4, padding=4, pad_value=255)
    return sheet


def save_picture(picture: Tensor, path: str | Path) -> None:
    """Write a picture as PNG or JPEG, by the ending of ``path``.

    Args:
        picture: RGB image, (3, H, W), uint8.
        path: The file.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from moe_vision.visualize import save_picture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_picture(torch.zeros(3, 8, 8, dtype=torch.uint8), f"{folder}/black.png")
    """
    F.to_pil_image(picture).save(path, quality=90)
