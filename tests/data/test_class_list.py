# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from moe_vision.data import ClassList

from .checks import BROKEN_IMAGES, ESCAPES, check_problem, save_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the images a.png and "deep/b c.png"."""
    save_image(tmp_path / "pets" / "a.png")
    save_image(tmp_path / "pets" / "deep" / "b c.png")
    return tmp_path / "pets"


def write(root: Path, text: str, name: str = "train.txt") -> Path:
    path = root / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a.png dog\n\ndeep/b c.png   cat\n"),
        ("list.txt", "a.png\tdog\r\ndeep/b c.png\tcat"),
        ("list.csv", "path,label\na.png,dog\ndeep/b c.png,cat\n"),
        ("list.csv", "id,Label, Image ,kids\n1, dog ,a.png,no\n\n2,cat,deep/b c.png,yes\n"),
        ("list.CSV", 'a.png,dog\n"deep/b c.png","cat"\n'),
        ("list.csv", "\ufefffilename,class\na.png,dog\ndeep/b c.png,cat"),
    ],
)
def test_forms(root: Path, name: str, text: str) -> None:
    data = ClassList(write(root, text, name))
    assert data.classes == ("cat", "dog")
    assert [path.name for path in data.images] == ["a.png", "b c.png"]
    assert [data[index][1] for index in range(2)] == [{"label": 1, "image_id": 0}, {"label": 0, "image_id": 1}]
    assert data[0][0].shape == (3, 48, 64)
    assert data.problems == []
    assert data.summary() == "2 images, 2 classes, 0 problems"


def test_images_may_lie_elsewhere(root: Path) -> None:
    path = write(root.parent, "a.png dog")
    assert len(ClassList(path, root)) == 1


def test_numbers_are_names_in_the_order_of_their_value(root: Path) -> None:
    data = ClassList(write(root, "a.png 10\ndeep/b c.png 9"))
    assert data.classes == ("9", "10")
    assert [target["label"] for _, target in data] == [1, 0]


def test_classes_fix_the_labels(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(root, "a.png dog\ndeep/b c.png cat")
    data = ClassList(path, classes=["bird", "dog"])
    assert [target["label"] for _, target in data] == [1]
    assert check_problem(data, path, "unknown class", caplog).detail == "'cat' of b c.png"


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("list.txt", "b.png", "line without path and class"),
        ("list.csv", "b.png", "line without path and class"),
        ("list.csv", ",dog", "line without path and class"),
        ("list.txt", "a.png cat", "image listed before"),
        ("list.csv", "a.png,dog", "image listed before"),
    ],
)
def test_bad_line(root: Path, name: str, line: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(root, f"a.png{',' if name.endswith('csv') else ' '}dog\n{line}\n", name)
    data = ClassList(path)
    assert check_problem(data, path, reason, caplog).detail.startswith("line 2")
    assert data.classes == ("dog",)


def test_missing_image(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ClassList(write(root, "gone.png cat\na.png dog"))
    check_problem(data, root / "gone.png", "missing image", caplog)
    assert data.classes == ("dog",)


@pytest.mark.parametrize("content", BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_image(root: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (root / "bad.png").write_bytes(content)
    check_problem(ClassList(write(root, "a.png dog\nbad.png cat")), root / "bad.png", "unreadable image", caplog)


@pytest.mark.parametrize("name", ESCAPES)
def test_path_that_leads_out_of_the_folder(root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    save_image(root.parent / "secret.png")  # exists, and must not be read
    path = write(root, f"a.png dog\n{name} cat")
    assert check_problem(ClassList(path), path, "path outside the data set", caplog).detail == name


def test_list_that_is_not_utf8(root: Path) -> None:
    path = root / "train.txt"
    path.write_bytes(b"a.png dog\ncaf\xe9.png cat\n")
    data = ClassList(path)
    assert [problem.reason for problem in data.problems] == ["missing image"]
    assert len(data) == 1


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_empty_list(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"path must list at least one usable image, got '.*' with 0 problems"):
        ClassList(write(root, "", name))
    with pytest.raises(FileNotFoundError):
        ClassList(root / "none.txt")
