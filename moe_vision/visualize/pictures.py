# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

# Paul Tol's bright scheme, told apart by colour-blind people too; a class takes the colour of its number.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE7733", "#009988")
CHARACTER = 6  # pixels of width in a caption


def draw_detections(
    image: Tensor, detections: Mapping[str, Tensor], class_names: Sequence[str], *, text: bool = True
) -> Tensor:
    """Draw boxes, and masks if there are some, in a colour a class, with class and score.

    Args:
        image: RGB image, (3, H, W), uint8.
        detections: ``boxes`` (D, 4), xyxy in pixels, ``labels`` (D,) and perhaps ``scores`` (D,) and ``masks``
            (D, H, W), bool.
        class_names: Names of the classes.
        text: Write class and score at each box that is as wide as they are; they would hide smaller objects.

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
    texts = [class_names[label] for label in labels]
    if "scores" in detections:
        scores = detections["scores"].tolist()
        texts = [f"{name} {score:.2f}" for name, score in zip(texts, scores, strict=True)]
    widths = (detections["boxes"][:, 2] - detections["boxes"][:, 0]).tolist()
    captions = [
        caption if text and width >= CHARACTER * len(caption) else None
        for caption, width in zip(texts, widths, strict=True)
    ]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    if "masks" in detections:
        image = draw_segmentation_masks(image, detections["masks"], alpha=0.5, colors=colours)
    drawn: Tensor = draw_bounding_boxes(
        image,
        detections["boxes"],
        labels=captions,
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
        tiles += [_tile(image, truth, class_names, size), _tile(image, detections, class_names, size)]
    return _sheet(tiles)


def sample_sheet(source: Any, count: int = 12, *, size: int = 256) -> Tensor:
    """Lay out samples of a data set, evenly spaced, with their boxes, masks or classes.

    Args:
        source: A reader of `moe_vision.data`, or another source of such samples.
        count: Samples to show; fewer if there are fewer.
        size: Side of an image on the sheet in pixels.

    Shape:
        - Output: (3, H', W'), uint8; four samples a row

    Examples:
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.visualize import sample_sheet
        >>> sample_sheet(ShapeScenes(8, 64), 4, size=64).shape
        torch.Size([3, 72, 276])
    """
    count = min(count, len(source))
    tiles = []
    for place in range(count):
        image, target = source[place * len(source) // count]
        plain = {name: value.as_subclass(Tensor) for name, value in target.items() if isinstance(value, Tensor)}
        if "label" in target:  # a class is drawn as a box around all
            height, width = image.shape[1:]
            box = torch.tensor([[0.0, 0.0, width - 1.0, height - 1.0]])
            plain = {"boxes": box, "labels": torch.tensor([target["label"]])}
        tiles.append(_tile(image.as_subclass(Tensor), plain, source.classes, size))
    return _sheet(tiles)


def _tile(image: Tensor, objects: Mapping[str, Tensor], class_names: Sequence[str], size: int) -> Tensor:
    """Draw objects into an image that fits a white square."""
    scale = size / max(image.shape[1:])
    shape = [max(1, round(side * scale)) for side in image.shape[1:]]
    scaled = {name: objects[name] for name in ("labels", "scores") if name in objects}
    scaled["boxes"] = objects["boxes"] * scale
    if "masks" in objects:
        scaled["masks"] = F.resize(objects["masks"].float(), shape, antialias=True) > 0.5
    drawn = draw_detections(F.resize(image, shape, antialias=True), scaled, class_names)
    tile = torch.full((3, size, size), 255, dtype=torch.uint8)
    tile[:, : drawn.shape[1], : drawn.shape[2]] = drawn
    return tile


def _sheet(tiles: list[Tensor]) -> Tensor:
    sheet: Tensor = make_grid(tiles, nrow=4, padding=4, pad_value=255)
    return sheet


def save_picture(picture: Tensor, path: str | Path) -> None:
    """Write a picture as PNG or JPEG, by the ending of ``path``.

    Args:
        picture: RGB image, uint8.
        path: The file.

    Shape:
        - picture: (3, H, W)

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from moe_vision.visualize import save_picture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_picture(torch.zeros(3, 8, 8, dtype=torch.uint8), f"{folder}/black.png")
    """
    F.to_pil_image(picture).save(path, quality=90)
