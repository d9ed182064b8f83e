# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_vision.data import YOLODetection

from .checks import BROKEN_IMAGES, check_problem, huge_png, save_image

SQUARE = "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"  # of 64 x 48: x 16 to 32, y 12 to 36


class YOLOFolder:
    """A YOLO folder that a test fills; it starts with one good image of 64 x 48 and one box."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "data.yaml").write_text("names: [cat, dog]")
        self.add("good", SQUARE)

    def add(self, name: str, label: str, part: str = "train") -> Path:
        """Add an image and its label file; return the latter."""
        save_image(self.root / "images" / part / f"{name}.png")
        path = self.root / "labels" / part / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(label)
        return path

    def open(self, split: str = "train", **options: Any) -> YOLODetection:
        return YOLODetection(self.root, split, **options)


@pytest.fixture
def yolo(tmp_path: Path) -> YOLOFolder:
    return YOLOFolder(tmp_path / "yolo")


# What is good


def test_boxes(yolo: YOLOFolder) -> None:
    # centre 32, 12 and size 16, 24; then one that sticks out to the left by half: 16 wide around 0; class as "0.0"
    yolo.add("boxes", "0 0.5 0.25 0.25 0.5\n\n0.0 0 0.5 0.25 0.5\n")
    data = yolo.open()
    image, target = data[0]
    assert data.images[0].name == "boxes.png"
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
    assert target["boxes"].tolist() == [[24, 0, 40, 24], [0, 12, 8, 36]]
    assert target["labels"].tolist() == [0, 0]
    assert data[1][1]["boxes"].tolist() == [[16, 12, 32, 36]]  # around the polygon
    assert data[1][1]["labels"].tolist() == [1]
    assert data.classes == ("cat", "dog")
    assert data.summary() == "2 images, 3 boxes, 0 problems"


def test_masks(yolo: YOLOFolder) -> None:
    yolo.add("triangle", "0 0 0 1 0 0 1")
    data = yolo.open(masks=True)
    square, triangle = (data[index][1]["masks"] for index in range(2))
    assert square.shape == (1, 48, 64)
    assert square[0, 12:36, 16:32].all()
    assert square.sum() == 16 * 24
    # below the diagonal from the upper right to the lower left corner: half of the image, but for the diagonal itself
    assert abs(int(triangle.sum()) - 48 * 64 // 2) <= 64
    assert triangle[0, 0, :60].all()
    assert not triangle[0, 47, 4:].any()


def test_an_image_without_a_label_file_is_kept(yolo: YOLOFolder) -> None:
    save_image(yolo.root / "images" / "train" / "deep" / "empty.jpg")
    yolo.add("blank", "")
    data = yolo.open(masks=True)
    assert [len(target["boxes"]) for _, target in data] == [0, 0, 1]
    assert data.problems == []


def test_parts_join_and_may_lie_the_other_way_round(yolo: YOLOFolder) -> None:
    yolo.add("second", SQUARE, "val")
    save_image(yolo.root / "test" / "images" / "third.png")
    (yolo.root / "test" / "labels").mkdir()
    (yolo.root / "test" / "labels" / "third.txt").write_text(SQUARE)
    assert [path.stem for path in yolo.open("val+test+train").images] == ["second", "third", "good"]


def test_classes_select_by_name_or_name_the_numbers(yolo: YOLOFolder) -> None:
    assert yolo.open(classes=["bird", "dog", "cat"])[0][1]["labels"].tolist() == [1]
    (yolo.root / "data.yaml").unlink()
    assert yolo.open(classes=["first", "second"])[0][1]["labels"].tolist() == [1]
    with pytest.raises(ValueError, match=r"classes must be given where root has no data.yaml .*, got None"):
        yolo.open()
    (yolo.root / "classes.txt").write_text("cat\ndog\nbird\n")
    assert yolo.open().classes == ("cat", "dog", "bird")


# What is bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0 0.5", "degenerate box"),
        ("0 0.5 0.5 -0.2 0.5", "degenerate box"),
        ("0 -0.5 0.5 0.2 0.5", "box outside the image"),
        ("0 320 240 64 48", "coordinate that is not normalised"),
        ("0 nan 0.5 0.2 0.5", "coordinate that is not normalised"),
        ("0 inf 0.5 0.2 0.5", "coordinate that is not normalised"),
        ("cat 0.5 0.5 0.2 0.2", "line that is not of numbers"),
        ("0 0,5 0.5 0.2 0.2", "line that is not of numbers"),
        ("0 \ufffd 0.5 0.2 0.2", "line that is not of numbers"),
        ("0", "line that is neither a box nor a polygon"),
        ("0 0.5 0.5 0.2", "line that is neither a box nor a polygon"),
        ("0 0.5 0.5 0.2 0.2 0.9", "line that is neither a box nor a polygon"),
        ("0 0 0 1 0 1 1 0", "line that is neither a box nor a polygon"),
        ("2 0.5 0.5 0.2 0.2", "unknown class"),
        ("-1 0.5 0.5 0.2 0.2", "unknown class"),
        ("0.5 0.5 0.5 0.2 0.2", "unknown class"),
        ("nan 0.5 0.5 0.2 0.2", "unknown class"),
        ("1e30 0.5 0.5 0.2 0.2", "unknown class"),
    ],
)
def test_bad_line(yolo: YOLOFolder, line: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    path = yolo.add("bad", f"0 0.5 0.5 0.5 0.5\n{line}\n")
    data = yolo.open()
    assert "line 2" in check_problem(data, path, reason, caplog).detail
    assert data[0][1]["boxes"].tolist() == [[16, 12, 48, 36]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "object without a mask"),
        ("0 1.1 0.2 1.3 0.2 1.3 0.9", "empty mask"),
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "empty mask"),
    ],
)
def test_bad_mask(yolo: YOLOFolder, line: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    path = yolo.add("bad", f"{SQUARE}\n{line}")
    data = yolo.open(masks=True)
    check_problem(data, path, reason, caplog)
    assert len(data[0][1]["boxes"]) == len(data[0][1]["masks"]) == 1


def test_label_files_of_other_bytes(yolo: YOLOFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = yolo.add("bad", "")
    path.write_bytes(b"\xff\xfe\x00 0.5\n")
    check_problem(yolo.open(), path, "line that is not of numbers", caplog)
    path.write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\r\n")  # byte order mark, ends of lines of Windows
    data = yolo.open()
    assert data.problems == []
    assert len(data[0][1]["boxes"]) == 1


def test_label_file_that_can_not_be_read(yolo: YOLOFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = yolo.add("bad", "")
    path.unlink()
    path.mkdir()
    data = yolo.open()
    check_problem(data, path, "unreadable label file", caplog)
    assert len(data) == 2


def test_label_file_without_an_image(yolo: YOLOFolder, caplog: pytest.LogCaptureFixture) -> None:
    (yolo.root / "labels" / "train" / "classes.txt").write_text("cat")  # as labelImg leaves it
    path = yolo.root / "labels" / "train" / "gone.txt"
    path.write_text(SQUARE)
    data = yolo.open()
    check_problem(data, path, "label file without an image", caplog)
    assert len(data) == 1


def test_file_that_is_no_image(yolo: YOLOFolder, caplog: pytest.LogCaptureFixture) -> None:
    (yolo.root / "images" / "train" / ".DS_Store").touch()
    path = yolo.root / "images" / "train" / "notes.doc"
    path.touch()
    check_problem(yolo.open(), path, "file that is no image by its name", caplog)


@pytest.mark.parametrize("content", BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_image(yolo: YOLOFolder, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    yolo.add("bad", SQUARE)
    path = yolo.root / "images" / "train" / "bad.png"
    path.write_bytes(content)
    data = yolo.open()
    check_problem(data, path, "unreadable image", caplog)
    assert len(data) == 1


def test_huge_header(yolo: YOLOFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = huge_png(yolo.root / "images" / "train" / "huge.png")
    check_problem(yolo.open(), path, "unreadable image", caplog)


def test_missing_part_names_the_folders_looked_for(yolo: YOLOFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"images/test with .*labels/test or .*test/images .*, got 'test'"):
        yolo.open("train+test")


def test_no_usable_image_is_an_error(yolo: YOLOFolder) -> None:
    (yolo.root / "images" / "train" / "good.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"usable image in split='train', got '.*yolo' with 1 problem \(1 unreadable"):
        yolo.open()
