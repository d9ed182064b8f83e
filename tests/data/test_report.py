# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from moe_vision.data import ClassFolders, VOCDetection, describe, format_description
from moe_vision.data.samples import Sample, make_sample

from .checks import save_image
from .conftest import VOCFolder


class Scenes:
    """Three images: without objects, with two of one class, and with three of two classes."""

    classes = ("ant", "bee", "fly")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        image = torch.zeros(3, 100 + 10 * index, 200, dtype=torch.uint8)
        boxes = torch.tensor([[0.0, 0, 31, 31], [0, 0, 32, 32], [0, 0, 96, 96]])
        count = (0, 2, 3)[index]
        labels = torch.tensor([2, 2, 0])
        return make_sample(image, boxes[:count], labels[:count], index)


def test_objects_are_counted() -> None:
    found = describe(Scenes())
    assert found == {
        "images": 3,
        "height": {"min": 100, "median": 110, "max": 120},
        "width": {"min": 200, "median": 200, "max": 200},
        "classes": {
            "ant": {"images": 1, "objects": 1},
            "bee": {"images": 0, "objects": 0},
            "fly": {"images": 2, "objects": 4},
        },
        "objects": 5,
        "objects_per_image": {"min": 0, "median": 2, "max": 3},
        "images_without_objects": 1,
        "box_side": {"min": 31, "median": 32, "max": 96},  # 31, 31, 32, 32, 96
        "box_sizes": {"small": 2, "medium": 2, "large": 1},  # below 32, below 96
        "problems": [],
    }
    assert json.loads(json.dumps(found)) == found
    text = format_description(found)
    assert "3 images, width 200, height 100 to 120 (median 110)" in text
    assert "5 objects, 0 to 3 (median 2) an image, 1 images without" in text
    assert "2 small, 2 medium, 1 large" in text
    assert "ant  1 objects in 1 images" in text


def test_broken_pixels_are_found_too(voc: VOCFolder) -> None:
    voc.add("bad", [("cell", (1, 1, 1, 9))])
    path = voc.root / "JPEGImages" / "bad.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    data = VOCDetection(voc.root, cache=False)
    found = describe(data)
    assert [problem["reason"] for problem in found["problems"]] == [
        "degenerate box",
        "undecodable image, used as grey without boxes",
    ]
    lines = format_description(found).splitlines()
    assert "2 problems (1 degenerate box, 1 undecodable image, used as grey without boxes)" in lines
    assert any(line.startswith(f"  {path}: undecodable") for line in lines)


def test_classified_images_are_counted(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        save_image(tmp_path / name)
    found = describe(ClassFolders(tmp_path))
    assert found["classes"] == {"cat": {"images": 1, "objects": 1}, "dog": {"images": 2, "objects": 2}}
    assert "objects" not in found
    assert format_description(found).splitlines() == [
        "3 images, width 64, height 48",
        "  cat  1 images",
        "  dog  2 images",
        "0 problems",
    ]


def test_a_data_set_without_objects(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    found = describe(VOCDetection(voc.root, classes=["dog"]))
    assert found["objects"] == 0
    assert found["box_side"] is None
    assert "box side none pixels" in format_description(found)
