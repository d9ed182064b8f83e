# SPDX-License-Identifier: Apache-2.0
"""What is in a data set: counts, sizes, the balance of classes, and every problem found."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from moe_vision.data.problems import Problem, summarise
from moe_vision.data.samples import ClassificationSource, DetectionSource

SMALL, MEDIUM = 32, 96  # COCO's limits: sides of a square in pixels


def describe(source: DetectionSource | ClassificationSource) -> dict[str, Any]:
    """Read every sample of a data set, which finds the broken ones too, and count.

    Args:
        source: A reader, or another source of samples.

    Returns:
        A dict that JSON can hold; spreads are dicts of `min`, `median` and `max`. `images`: number of images; `height`,
        `width`: spreads in pixels; `classes`: by name, the number of `images` that have the class and the number of its
        `objects`; `problems`: for each problem its `file`, `reason` and `detail`. For boxes also `objects`: their
        number; `objects_per_image`: a spread; `images_without_objects`; `box_side`: spread of the square roots of the
        areas, in pixels; `box_sizes`: how many are `small` (a side below 32), `medium` (below 96) and `large`, as COCO
        has it.

    Examples:
        >>> from moe_vision.data import ShapeScenes, describe
        >>> found = describe(ShapeScenes(4, image_size=64))
        >>> found["images"], found["width"], list(found["classes"])
        (4, {'min': 64, 'median': 64.0, 'max': 64}, ['circle', 'cross', 'square', 'triangle'])
    """
    sizes, labels, boxes = [], [], []
    for index in range(len(source)):
        image, target = source[index]
        sizes.append(image.shape[-2:])
        labels.append(target["labels"].tolist() if "labels" in target else [target["label"]])
        if "boxes" in target:
            boxes.append(target["boxes"].as_subclass(Tensor))
    return {
        "images": len(sizes),
        "height": _spread([height for height, _ in sizes]),
        "width": _spread([width for _, width in sizes]),
        "classes": _balance(labels, source.classes),
        **(_describe_boxes(boxes) if boxes else {}),
        "problems": [problem._asdict() for problem in getattr(source, "problems", [])],
    }


def format_description(found: dict[str, Any]) -> str:
    """Write what `describe` found as text.

    Examples:
        >>> from moe_vision.data import ShapeScenes, describe
        >>> print(format_description(describe(ShapeScenes(4, image_size=64))).splitlines()[0])
        4 images, width 64, height 64
    """
    lines = [f"{found['images']} images, width {_span(found['width'])}, height {_span(found['height'])}"]
    if "objects" in found:
        sizes = ", ".join(f"{count} {size}" for size, count in found["box_sizes"].items())
        lines += [
            f"{found['objects']} objects, {_span(found['objects_per_image'])} an image, "
            f"{found['images_without_objects']} images without",
            f"box side {_span(found['box_side'])} pixels: {sizes}",
        ]
    width = max(len(name) for name in found["classes"])
    for name, counts in found["classes"].items():
        objects = f"{counts['objects']} objects in " if "objects" in found else ""
        lines.append(f"  {name:<{width}}  {objects}{counts['images']} images")
    lines.append(summarise([Problem(**problem) for problem in found["problems"]]))
    lines += [f"  {problem['file']}: {problem['reason']} {problem['detail']}".rstrip() for problem in found["problems"]]
    return "\n".join(lines)


def _describe_boxes(boxes: Sequence[Tensor]) -> dict[str, Any]:
    counts = [len(some) for some in boxes]
    every = torch.cat(list(boxes))
    sides = (every[:, 2:] - every[:, :2]).prod(dim=1).sqrt().tolist()
    sizes = Counter("small" if side < SMALL else "medium" if side < MEDIUM else "large" for side in sides)
    return {
        "objects": sum(counts),
        "objects_per_image": _spread(counts),
        "images_without_objects": counts.count(0),
        "box_side": _spread([round(side, 1) for side in sides]),
        "box_sizes": {size: sizes[size] for size in ("small", "medium", "large")},
    }


def _balance(labels: Iterable[Sequence[int]], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for some in labels:
        objects.update(some)
        images.update(set(some))
    return {name: {"images": images[label], "objects": objects[label]} for label, name in enumerate(classes)}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _span(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "none"
    if spread["min"] == spread["max"]:
        return f"{spread['min']:g}"
    return f"{spread['min']:g} to {spread['max']:g} (median {spread['median']:g})"
