# SPDX-License-Identifier: Apache-2.0
"""Generated scenes: shapes of many sizes on textured backgrounds, with exact boxes, drawn on the fly from a seed."""

import colorsys
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from moe_vision.data.samples import Sample, make_sample

MAX_OBJECTS = 20
RADII = (0.035, 0.22)  # of the image's side
TRIES = 30
SUPERSAMPLE = 4

Array = NDArray[np.float32]
Disc = tuple[float, float, float]  # centre x, centre y, radius


class ShapeScenes(Dataset[Sample]):
    """Scenes of circles, crosses, squares and triangles, from almost empty (1 object) to crowded (about 20).

    Shapes differ in size, rotation and colour, and colour does not tell the class. They lie inside the image and hardly
    overlap; a box encloses its whole shape. A scene depends on (seed, index) alone.

    Args:
        num_scenes: Length of the data set.
        image_size: Side of the square images in pixels, at least 64.
        seed: Seed of all scenes; other seeds give other scenes.

    Attributes:
        classes: Class names; a label is an index into it.

    Raises:
        ValueError: `num_scenes` or `image_size` is too small.

    Examples:
        >>> image, target = ShapeScenes(10, image_size=160)[0]
        >>> image.shape, target["boxes"].shape[1], target["labels"].dtype
        (torch.Size([3, 160, 160]), 4, torch.int64)
    """

    classes: tuple[str, ...] = ("circle", "cross", "square", "triangle")

    def __init__(self, num_scenes: int, image_size: int = 160, seed: int = 0) -> None:
        if num_scenes < 1:
            raise ValueError(f"num_scenes must be at least 1, got {num_scenes}")
        if image_size < 64:
            raise ValueError(f"image_size must be at least 64 pixels, got {image_size}")
        self.num_scenes = num_scenes
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"index must be in [0, num_scenes={self.num_scenes}), got {index}")
        rng = np.random.default_rng((self.seed, index))
        canvas, brightness = _background(rng, self.image_size)
        labels, boxes = [], []
        for x, y, radius in _arrange(rng, self.image_size):
            label = int(rng.integers(len(self.classes)))
            polygon = _polygon(self.classes[label], float(rng.uniform(0, 2 * math.pi))) * radius + (x, y)
            paint(canvas, polygon.astype(np.float32), _colour(rng, brightness))
            labels.append(label)
            boxes.append([*polygon.min(axis=0), *polygon.max(axis=0)])
        image = torch.from_numpy(canvas.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
        return make_sample(image, torch.tensor(np.array(boxes)), torch.tensor(labels), index)


def paint(canvas: Array, polygon: Array, colour: Array) -> None:
    """Fill a polygon in place with smooth edges, a little lighter at its top than at its bottom.

    Args:
        canvas: RGB in [0, 255].
        polygon: Corners (x, y) in pixels, inside the canvas; whole numbers lie between two pixels.
        colour: RGB in [0, 255].

    Shape:
        - canvas: (H, W, 3)
        - polygon: (N, 2)
        - colour: (3,)
    """
    left, top = np.floor(polygon.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(polygon.max(axis=0)).astype(int).tolist()
    width, height = right - left, bottom - top
    mask = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    # Pillow's whole numbers are pixel centres, ours are pixel borders: hence the half.
    corners = (polygon - (left, top)) * SUPERSAMPLE - 0.5
    ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=255)
    alpha = np.asarray(mask.reduce(SUPERSAMPLE), dtype=np.float32)[..., None] / 255
    shade = np.linspace(1.1, 0.85, height, dtype=np.float32)[:, None, None]
    patch = canvas[top:bottom, left:right]
    patch += alpha * (colour * shade - patch)


def _polygon(name: str, angle: float) -> Array:
    """Corners of a shape around the origin, on or inside the unit circle, turned by an angle in radians."""
    if name == "cross":
        arm, width = 0.95, 0.31
        corner = [(width, width), (width, arm), (-width, arm)]
        points = np.concatenate([np.array(corner) @ _rotation(quarter * math.pi / 2).T for quarter in range(4)])
    else:
        count = {"circle": 48, "square": 4, "triangle": 3}[name]
        turns = np.arange(count) * (2 * math.pi / count)
        points = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return (points @ _rotation(angle).T).astype(np.float32)


def _rotation(angle: float) -> Array:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array([[cosine, -sine], [sine, cosine]], dtype=np.float32)


def _arrange(rng: np.random.Generator, size: int) -> list[Disc]:
    """Place the discs that hold the objects, the large first; one that finds no room is left out."""
    count = round(math.exp(rng.uniform(0, math.log(MAX_OBJECTS))))
    largest = RADII[1] if count <= 8 else RADII[1] * 0.7
    radii = np.exp(rng.uniform(math.log(RADII[0]), math.log(largest), count)) * size
    discs: list[Disc] = []
    for radius in sorted(radii.tolist(), reverse=True):
        for x, y in rng.uniform(radius + 1, size - radius - 1, (TRIES, 2)).tolist():
            if all(math.hypot(x - a, y - b) > 0.9 * (radius + other) for a, b, other in discs):
                discs.append((x, y, radius))
                break
    return discs


def _colour(rng: np.random.Generator, brightness: float) -> Array:
    """A vivid colour that stands out: light on a dark background and dark on a light one."""
    value = rng.uniform(0.8, 1.0) if brightness < 0.5 else rng.uniform(0.15, 0.5)
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.45, 1.0), value), dtype=np.float32) * 255


def _background(rng: np.random.Generator, size: int) -> tuple[Array, float]:
    """A muted background (H, W, 3) in [0, 255], and its brightness in [0, 1]."""
    brightness = float(rng.choice([rng.uniform(0.12, 0.35), rng.uniform(0.65, 0.9)]))
    light, dark = (
        np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.35), brightness * factor), dtype=np.float32)
        for factor in (1.1, 0.8)
    )
    texture = (_gradient, _stripes, _clouds)[rng.integers(3)](rng, size)[..., None]
    canvas = (dark + (light - dark) * texture) * 255
    canvas += rng.uniform(2, 8) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return canvas, brightness


def _ramp(rng: np.random.Generator, size: int) -> Array:
    """Distance along a random direction, in units of the image's side."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp: Array = axis * math.cos(angle) + axis[:, None] * math.sin(angle)
    return ramp


def _gradient(rng: np.random.Generator, size: int) -> Array:
    return (_ramp(rng, size) * 0.7 + 0.5).astype(np.float32)


def _stripes(rng: np.random.Generator, size: int) -> Array:
    waves: Array = np.sin(_ramp(rng, size) * rng.uniform(12, 70)) * 0.4 + 0.5
    return waves


def _clouds(rng: np.random.Generator, size: int) -> Array:
    cells = int(rng.integers(3, 12))
    noise = Image.fromarray(rng.uniform(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
