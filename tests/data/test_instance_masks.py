# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import masks_to_boxes

from moe_vision.data import InstanceMasks
from moe_vision.data.readers.instance_masks import _found

from .checks import BROKEN_IMAGES, ESCAPES, check_problem, huge_png, save_image


class IndexFolder:
    """Images with index PNGs that a test fills; it starts with one good pair of 64 x 48."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "masks").mkdir(parents=True)
        self.indices = np.zeros((48, 64), dtype=np.uint16)
        self.indices[8:28, 10:30] = 7
        self.indices[40:41, 60:61] = 60_000  # one pixel, and a gap in the values
        self.add("good", self.indices)
        self.split("train", ["good"])

    def add(self, name: str, indices: NDArray[Any]) -> Path:
        """Add an image and its index PNG; return the latter."""
        save_image(self.root / "images" / f"{name}.png")
        path = self.root / "masks" / f"{name}.png"
        Image.fromarray(indices).save(path)
        self.split("train", ["good", name])
        return path

    def split(self, name: str, names: list[str]) -> None:
        (self.root / f"{name}.txt").write_text("\n".join(names))

    def open(self, split: str = "train", **options: Any) -> InstanceMasks:
        return InstanceMasks(self.root, split, **options)


@pytest.fixture
def folder(tmp_path: Path) -> IndexFolder:
    return IndexFolder(tmp_path / "cells")


# What is good


def test_sample_contract(folder: IndexFolder) -> None:
    data = folder.open()
    image, target = data[0]
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
    assert target["boxes"].tolist() == [[10, 8, 30, 28], [60, 40, 61, 41]]
    assert target["labels"].tolist() == [0, 0]
    assert (target["masks"].shape, target["masks"].dtype) == ((2, 48, 64), torch.bool)
    assert target["masks"].sum(dim=(1, 2)).tolist() == [400, 1]
    assert target["masks"][0, 8:28, 10:30].all()
    assert data.classes == ("object",)
    assert data.summary() == "1 images, 2 boxes, 0 problems"


def test_boxes_alone(folder: IndexFolder) -> None:
    _, target = folder.open(masks=False)[0]
    assert "masks" not in target
    assert len(target["boxes"]) == 2


@settings(deadline=None)
@given(seed=st.integers(0, 999), values=st.integers(1, 9))
def test_boxes_are_around_the_masks(seed: int, values: int) -> None:
    indices = np.random.default_rng(seed).integers(0, values + 1, (7, 11), dtype=np.uint16)
    found = _found(indices, "cell")
    masks = torch.from_numpy(np.stack([indices == value for value in np.unique(indices) if value]))
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # torchvision's include the last pixel
    assert torch.tensor([item.box for item in found]).tolist() == boxes.tolist()


@pytest.mark.parametrize("mode", ["uint8", "palette", "uint16", "bool"])
def test_kinds_of_png(folder: IndexFolder, mode: str) -> None:
    indices = np.where(folder.indices > 0, 200, 0).astype(np.uint8 if mode == "palette" else mode)
    path = folder.add("kind", indices)
    if mode == "palette":
        image = Image.fromarray(indices)
        image.putpalette(list(range(256)) * 3)
        image.save(path)
    _, target = folder.open()[1]
    assert target["masks"].sum().item() == 401
    assert len(target["boxes"]) == 1


def test_an_image_without_instances_is_kept(folder: IndexFolder) -> None:
    folder.add("empty", np.zeros((48, 64), dtype=np.uint8))
    data = folder.open()
    _, target = data[1]
    assert (target["boxes"].shape, target["masks"].shape) == ((0, 4), (0, 48, 64))
    assert data.problems == []


def test_the_class_has_the_name_given(folder: IndexFolder) -> None:
    assert folder.open(classes=["nucleus"]).classes == ("nucleus",)
    with pytest.raises(ValueError, match=r"classes must be one name, .*, got \('a', 'b'\)"):
        folder.open(classes=["a", "b"])


def test_splits_join(folder: IndexFolder) -> None:
    folder.add("other", folder.indices)
    folder.split("val", ["other"])
    folder.split("test", ["good", "", "other"])
    assert [path.stem for path in folder.open("val+test").images] == ["other", "good"]


# What is bad


def test_colours_are_no_indices(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = folder.add("bad", np.zeros((48, 64, 3), dtype=np.uint8))
    data = folder.open()
    assert "one channel" in check_problem(data, path, "unreadable mask", caplog).detail
    assert len(data) == 1


def test_mask_of_another_size(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = folder.add("bad", folder.indices.T.copy())
    check_problem(folder.open(), path, "mask of another size than its image", caplog)


@pytest.mark.parametrize("content", BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_unreadable(folder: IndexFolder, kind: str, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder.add("bad", folder.indices)
    path = folder.root / f"{kind}s" / "bad.png"
    path.write_bytes(content)
    data = folder.open()
    check_problem(data, path, f"unreadable {kind}", caplog)
    assert len(data) == 1


def test_truncated_mask(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = folder.add("bad", np.random.default_rng(0).integers(0, 9, (48, 64), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:-200])
    check_problem(folder.open(), path, "unreadable mask", caplog)


def test_huge_header(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = huge_png(folder.add("bad", folder.indices))
    check_problem(folder.open(), path, "unreadable mask", caplog)


def test_more_instances_than_memory_holds(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    save_image(folder.root / "images" / "noise.png", 256, 256)
    path = folder.root / "masks" / "noise.png"
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(path)  # 65,535 masks of 64 KiB: 4 GiB
    folder.split("train", ["good", "noise"])
    data = folder.open()
    check_problem(data, path, "masks too large", caplog)
    assert len(data) == 1


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_missing(folder: IndexFolder, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder.add("bad", folder.indices)
    path = folder.root / f"{kind}s" / "bad.png"
    path.unlink()
    check_problem(folder.open(), path if kind == "mask" else path.with_suffix(""), f"missing {kind}", caplog)


@pytest.mark.parametrize("name", ESCAPES)
def test_list_that_leads_out_of_the_folder(folder: IndexFolder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder.split("train", ["good", name])
    check_problem(folder.open(), name, "path outside the data set", caplog)


def test_list_that_is_not_utf8(folder: IndexFolder) -> None:
    (folder.root / "train.txt").write_bytes(b"good\ncaf\xe9\n")
    data = folder.open()
    assert [problem.reason for problem in data.problems] == ["missing image"]
    assert len(data) == 1


def test_list_with_a_name_that_no_file_can_have(folder: IndexFolder) -> None:
    folder.split("train", ["good", "x" * 300, "a\0b"])
    data = folder.open()
    assert [problem.reason for problem in data.problems] == ["unreadable image"] * 2
    assert len(data) == 1


def test_missing_split_names_those_there_are(folder: IndexFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"existing: train\), got 'val'"):
        folder.open("val")


def test_a_mask_that_breaks_later_is_reported_once(folder: IndexFolder, caplog: pytest.LogCaptureFixture) -> None:
    data = folder.open()
    (folder.root / "masks" / "good.png").unlink()
    for _ in range(2):
        _, target = data[0]
        assert (target["boxes"].shape, target["masks"].shape) == ((0, 4), (0, 48, 64))
    check_problem(data, data.images[0], "undecodable image, used as grey without boxes", caplog)
