# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest
import torch
from torchvision import tv_tensors

from moe_vision.data import ClassFolders

from .checks import BROKEN_IMAGES, check_problem, huge_png, save_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two dogs and a cat."""
    for name in ("dog/1.png", "dog/puppies/2.jpg", "cat/3.png"):
        save_image(tmp_path / "pets" / name)
    return tmp_path / "pets"


def test_sample_contract(root: Path) -> None:
    data = ClassFolders(root)
    assert data.classes == ("cat", "dog")
    assert [path.name for path in data.images] == ["3.png", "1.png", "2.jpg"]
    assert [target for _, target in (data[index] for index in range(3))] == [
        {"label": 0, "image_id": 0},
        {"label": 1, "image_id": 1},
        {"label": 1, "image_id": 2},
    ]
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
    assert type(target["label"]) is int
    assert data.problems == []
    assert data.summary() == "3 images, 2 classes, 0 problems"


def test_classes_fix_the_labels(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ClassFolders(root, classes=["dog", "bird"])
    assert data.classes == ("dog", "bird")
    assert [target["label"] for _, target in data] == [0, 0]
    assert "'cat' of 3.png" in check_problem(data, root / "cat", "unknown class", caplog).detail


def test_hidden_files_are_passed_over(root: Path) -> None:
    save_image(root / ".cache" / "1.png")
    (root / ".DS_Store").touch()
    (root / "dog" / ".DS_Store").touch()
    data = ClassFolders(root)
    assert len(data) == 3
    assert data.problems == []


@pytest.mark.parametrize("content", BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_image(root: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "dog" / "bad.png"
    path.write_bytes(content)
    data = ClassFolders(root)
    check_problem(data, path, "unreadable image", caplog)
    assert len(data) == 3


def test_huge_header(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = huge_png(root / "dog" / "huge.png")
    check_problem(ClassFolders(root), path, "unreadable image", caplog)


@pytest.mark.parametrize("cache", [True, False])
def test_truncated_image_comes_grey(root: Path, cache: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-500])
    data = ClassFolders(root, cache=cache)
    for _ in range(2):
        image, target = data[0]
        assert image.unique().tolist() == [114]
        assert target == {"label": 0, "image_id": 0}
    check_problem(data, path, "undecodable image, used as grey", caplog)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("5.png", "file outside of the folders of classes"), ("dog/notes.doc", "file that is no image by its name")],
)
def test_file_that_does_not_belong(root: Path, name: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    (root / name).touch()
    check_problem(ClassFolders(root), root / name, reason, caplog)


def test_class_without_images_keeps_its_label(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "bird").mkdir()
    data = ClassFolders(root)
    check_problem(data, root / "bird", "class without images", caplog)
    assert data.classes == ("bird", "cat", "dog")
    assert data[0][1]["label"] == 1


def test_names_that_are_not_utf8(root: Path) -> None:
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    os.rename(os.fsencode(root / "dog" / "1.png"), folder + b"/\xff.png")  # noqa: PTH104
    Path(os.fsdecode(folder), os.fsdecode(b"\xfe.png")).touch()
    data = ClassFolders(root)
    assert data.classes == ("caf?", "cat", "dog")
    assert data[0][0].float().std() > 10  # it was read
    (problem,) = data.problems
    assert problem.file.endswith("caf?/?.png")


def test_no_usable_image_is_an_error(root: Path) -> None:
    (root / "cat" / "3.png").write_bytes(b"")
    (root / "dog").rename(root / ".dog")
    with pytest.raises(ValueError, match=r"usable image in a folder of its class, got '.*pets' with 1 problem"):
        ClassFolders(root)
    with pytest.raises(FileNotFoundError, match="root must be a folder of classes, got"):
        ClassFolders(root / "elsewhere")
