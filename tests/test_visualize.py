# SPDX-License-Identifier: Apache-2.0
"""Pictures and plots: what is drawn where, and files that can be opened."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from moe_vision.data import ShapeScenes
from moe_vision.visualize import (
    comparison_sheet,
    draw_detections,
    plot_confusion,
    plot_expert_usage,
    plot_precision_recall,
    plot_routing,
    plot_training,
    sample_sheet,
    save_picture,
)

EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
BLUE, RED = (0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77)  # colours of the first two classes


def black(height: int = 48, width: int = 64) -> Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


def found(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.full((len(labels),), 0.5)}


def test_boxes_are_drawn_in_the_colour_of_their_class() -> None:
    image = black()
    detections = found([[10.0, 10.0, 30.0, 40.0], [40.0, 5.0, 60.0, 20.0]], [0, 1])
    drawn = draw_detections(image, detections, ["cat", "dog"], text=False)
    assert tuple(drawn[:, 25, 10].tolist()) == tuple(drawn[:, 40, 20].tolist()) == BLUE
    assert tuple(drawn[:, 5, 50].tolist()) == RED
    assert not drawn[:, 12:38, 12:28].any()
    assert not drawn[:, :, :9].any()
    assert not image.any()  # the input is left alone


def test_masks_tint_what_they_cover() -> None:
    image = torch.full((3, 48, 64), 200, dtype=torch.uint8)
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 20:30, 15:25] = masks[1, 10:15, 45:55] = True
    detections = {**found([[10.0, 10.0, 30.0, 40.0], [40.0, 5.0, 60.0, 20.0]], [0, 1]), "masks": masks}
    drawn = draw_detections(image, detections, ["cat", "dog"], text=False)
    for x, y, colour in ((20, 25, BLUE), (50, 12, RED)):
        half = [(200 + part) / 2 for part in colour]
        assert drawn[:, y, x].tolist() == pytest.approx(half, abs=1)
    assert (drawn[:, 32:38, 14:28] == 200).all()  # in the box, but not in the mask


def test_class_and_score_are_written() -> None:
    detections = found([[4.0, 4.0, 60.0, 44.0]], [0])
    plain = draw_detections(black(), detections, ["cat"], text=False)
    written = draw_detections(black(), detections, ["cat"])
    assert (written != plain).any()
    assert (written != draw_detections(black(), {**detections, "scores": torch.tensor([0.75])}, ["cat"])).any()


def test_no_detections_and_more_classes_than_colours() -> None:
    narrow = found([[8.0, 8.0, 20.0, 40.0]], [0])  # its caption would hide it and its neighbours
    assert torch.equal(draw_detections(black(), narrow, ["cat"]), draw_detections(black(), narrow, ["cat"], text=False))
    assert not draw_detections(black(), EMPTY, ["cat"]).any()
    many = found([[1.0, 1.0, 40.0, 40.0]], [17])
    assert draw_detections(black(), many, [str(label) for label in range(18)]).any()


def test_sheet_lays_truth_beside_detections() -> None:
    images = [black(40, 80), black(64, 64), black(3, 700)]
    truths = [found([[10.0, 10.0, 40.0, 30.0]], [1]), EMPTY, EMPTY]
    sheet = comparison_sheet(images, truths, [EMPTY] * 3, ["cat", "dog"], size=80)
    # Two pairs a row: two rows of four tiles of 80, each with a border of 4.
    assert sheet.shape == (3, 2 * 84 + 4, 4 * 84 + 4)
    first, second = sheet[:, 4:84, 4:84], sheet[:, 4:84, 88:168]
    assert tuple(first[:, 20, 10].tolist()) == RED
    assert not second[:, :40].any()
    assert (second[:, 41:] == 255).all()  # beside the image


def test_sheet_scales_masks_with_the_image() -> None:
    mask = torch.zeros(1, 20, 40, dtype=torch.bool)
    mask[:, 10:, 20:] = True
    masked = {**found([[20.0, 10.0, 40.0, 20.0]], [1]), "masks": mask}
    sheet = comparison_sheet([black(20, 40)], [masked], [EMPTY], ["cat", "dog"], size=80)
    tile = sheet[:, 4:84, 4:84]  # twice as large as the image
    assert tile[:, 30, 60].any()  # inside the mask, away from the box's line and its caption
    assert not tile[:, 15, 10].any()


def test_samples_of_boxes_masks_and_classes() -> None:
    scenes = ShapeScenes(8, 64)
    assert sample_sheet(scenes, 5, size=64).shape == (3, 2 * 68 + 4, 4 * 68 + 4)
    assert sample_sheet(scenes, 100, size=64).shape == (3, 2 * 68 + 4, 4 * 68 + 4)  # there are 8

    class Classified:
        classes = ("cat", "dog")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, int]]:
            return black(40, 40), {"label": 1, "image_id": 0}

    tile = sample_sheet(Classified(), size=80)[:, 4:84, 4:84]
    assert tuple(tile[:, 40, 0].tolist()) == RED


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_saved_pictures_open(tmp_path: Path, suffix: str) -> None:
    picture = torch.full((3, 8, 16), 200, dtype=torch.uint8)
    save_picture(picture, tmp_path / f"picture.{suffix}")
    with Image.open(tmp_path / f"picture.{suffix}") as image:
        assert image.size == (16, 8)
        assert abs(image.convert("RGB").getpixel((8, 4))[0] - 200) <= 2


LOG: list[dict[str, Any]] = [
    {"epoch": 1, "loss": {"box": 5.0, "class": 2.0}},
    {"epoch": 2, "loss": {"box": None, "class": None}},  # no step was taken
    {"epoch": 3, "loss": {"box": 4.0, "class": 1.0}, "metrics": {"map": 0.1, "map50": 0.2}},
]


@pytest.mark.parametrize("log", [LOG, LOG[:1]], ids=["with metrics", "without"])
def test_plot_of_training(tmp_path: Path, log: list[dict[str, Any]]) -> None:
    plot_training(log, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.width > image.height > 300


def test_plot_of_routing(tmp_path: Path) -> None:
    shares = {"few": {"a": [0.5, 0.5], "b": [1.0, 0.0]}, "many": {"a": [0.1, 0.9], "b": [0.4, 0.6]}}
    plot_routing(shares, tmp_path / "routing.svg", title="objects")
    text = (tmp_path / "routing.svg").read_text()
    assert text.startswith("<?xml")
    assert text.count("expert") >= 2


def svg_texts(path: Path) -> list[str]:
    """Return what is written in a plot; matplotlib notes it beside the outlines of the letters."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_plot_of_precision_and_recall(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    boxes = {"cat": [1.0, 0.5, 0.0], "dog": [1.0, 1.0, 0.7]}
    plot_precision_recall({"boxes": boxes, "masks": {"cat": [0.6, 0.3, 0.0]}}, path)
    texts = svg_texts(path)
    # (1 + 0.5 + 0) / 3, (1 + 1 + 0.7) / 3, the mean of both, and of the masks (0.6 + 0.3) / 3
    assert {"0.500 cat", "0.900 dog", "0.700 mean of 2 classes", "0.300 cat"} <= set(texts)
    assert {"Precision by recall, boxes", "Precision by recall, masks"} <= set(texts)
    plot_precision_recall({"boxes": {str(label): [1.0, 0.0] for label in range(30)}}, path)
    assert "0.500 mean of 30 classes" in svg_texts(path)
    assert "0.500 0" not in svg_texts(path)  # thirty colours tell nothing apart
    with pytest.raises(ValueError, match="curves must have a class for boxes, got none: there are no objects"):
        plot_precision_recall({"boxes": {}}, path)


def test_plot_of_confusion(tmp_path: Path) -> None:
    path = tmp_path / "confusion.svg"
    plot_confusion(torch.tensor([[31, 57, 0], [0, 0, 0], [0, 73, 0]]), ["cat", "dog", "background"], path, title="all")
    texts = svg_texts(path)
    assert {"31", "57", "73", "all", "predicted", "true"} <= set(texts)
    assert texts.count("0") == 0  # an empty cell, and a row of nothing, stay empty
    assert texts.count("dog") == 2
    plot_confusion(torch.eye(80, dtype=torch.int64) * 31, [f"class {label}" for label in range(80)], path, title="all")
    assert "31" not in svg_texts(path)  # no room
    assert svg_texts(path).count("class 79") == 2


@pytest.mark.parametrize("epochs", [1, 3])
def test_plot_of_expert_usage(tmp_path: Path, epochs: int) -> None:
    shares = {f"stage{layer}": [0.2, 0.3, 0.5] for layer in range(5)}
    plot_expert_usage([{"epoch": epoch + 1, "experts": shares} for epoch in range(epochs)], tmp_path / "experts.svg")
    texts = svg_texts(tmp_path / "experts.svg")
    assert set(shares) < set(texts)
    assert texts.count("2") >= 5  # the last expert of each layer
    with pytest.raises(ValueError, match="log must be that of a network with experts, got one without"):
        plot_expert_usage([{"epoch": 1, "experts": {}}], tmp_path / "experts.svg")


def test_pictures_do_not_load_matplotlib() -> None:
    code = "import sys, moe_vision.visualize; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
