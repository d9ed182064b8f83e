# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from moe_vision.data import VOCDetection
from moe_vision.data.readers import voc as voc_module

from .checks import check_problem
from .conftest import VOCFolder

# What is good


def test_sample_contract(voc: VOCFolder) -> None:
    data = VOCDetection(voc.root)
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (48, 64)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[10, 8, 30, 28]]
    assert (target["labels"].tolist(), target["labels"].dtype) == ([0], torch.int64)
    assert target["image_id"] == 0
    assert data.images == (voc.root / "JPEGImages" / "good.jpg",)
    assert data.problems == []
    assert data.summary() == "1 images, 1 boxes, 0 problems"


@pytest.mark.parametrize("cache", [True, False])
def test_pixels_are_those_of_the_file(voc: VOCFolder, cache: bool) -> None:
    voc.image("exact", suffix="png")
    voc.xml("exact", filename="exact.png")
    voc.split("train", ["exact"])
    image, _ = VOCDetection(voc.root, cache=cache)[0]
    expected = np.asarray(Image.open(voc.root / "JPEGImages" / "exact.png"))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_classes_are_the_sorted_names_or_those_given(voc: VOCFolder) -> None:
    voc.add("two", [("zebra", (1, 1, 9, 9)), ("ant", (1, 1, 9, 9))])
    found = VOCDetection(voc.root)
    assert found.classes == ("ant", "cell", "zebra")
    assert found[1][1]["labels"].tolist() == [2, 0]
    given = VOCDetection(voc.root, classes=["zebra", "cell", "ant"])
    assert given.classes == ("zebra", "cell", "ant")
    assert given[1][1]["labels"].tolist() == [0, 2]


def test_splits_join_and_a_name_counts_once(voc: VOCFolder) -> None:
    voc.add("two")
    voc.split("val", ["two", "good", ""])
    voc.split("test", ["good"])
    assert [path.stem for path in VOCDetection(voc.root, "val+test").images] == ["two", "good"]


def test_an_image_without_objects_is_kept(voc: VOCFolder) -> None:
    voc.add("empty")
    data = VOCDetection(voc.root)
    assert len(data) == 2
    assert data[1][1]["boxes"].shape == (0, 4)
    assert data[1][1]["labels"].dtype == torch.int64
    assert data.problems == []


def test_a_box_that_sticks_out_is_clipped(voc: VOCFolder) -> None:
    voc.add("wide", [("cell", (-5, 10.5, 70, 50))])
    data = VOCDetection(voc.root)
    assert data[1][1]["boxes"].tolist() == [[0, 10.5, 64, 48]]
    assert data.problems == []


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_other_image_formats(voc: VOCFolder, suffix: str) -> None:
    voc.image("other", suffix=suffix)
    voc.xml("other", filename=f"other.{suffix}")
    voc.split("train", ["other"])
    assert VOCDetection(voc.root)[0][0].shape == (3, 48, 64)


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_grey_and_16_bit_images_come_as_rgb_uint8(voc: VOCFolder, mode: str) -> None:
    pixels = np.full((48, 64), 128 if mode == "L" else 128 * 257, dtype=np.uint8 if mode == "L" else np.uint16)
    Image.fromarray(pixels).save(voc.root / "JPEGImages" / "grey.png")
    voc.xml("grey", filename="grey.png")
    voc.split("train", ["grey"])
    image, _ = VOCDetection(voc.root)[0]
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [128]


def test_the_cache_is_bounded(voc: VOCFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    voc.add("two")
    monkeypatch.setattr(voc_module, "CACHE_BYTES", 48 * 64 * 3)  # room for one image
    data = VOCDetection(voc.root)
    for path in data.images:
        path.unlink()
    assert data[0][0].float().std() > 10
    assert data[1][0].unique().tolist() == [114]  # was not cached, and is gone


# What is bad: reported once with the file's name, and the run goes on

NO_AREA = [(20, 20, 20, 30), (20, 20, 30, 20), (20, 20, 20, 20), (30, 20, 20, 30), (20, 30, 30, 20)]
NOT_FINITE = [("nan", 1, 9, 9), (1, 1, "inf", 9), (1, "-inf", 9, 9), ("1e999", 1, 9, 9)]


@pytest.mark.parametrize("box", NO_AREA + NOT_FINITE)
def test_degenerate_box(voc: VOCFolder, box: tuple[object, ...], caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad", [("cell", box), ("cell", (2, 3, 12, 13))])
    data = VOCDetection(voc.root)
    check_problem(data, voc.root / "Annotations" / "bad.xml", "degenerate box", caplog)
    assert data[1][1]["boxes"].tolist() == [[2, 3, 12, 13]]


@pytest.mark.parametrize("box", [(64, 1, 80, 9), (-9, 1, 0, 9), (1, -9, 9, 0), (1, 48, 9, 60)])
def test_box_outside_the_image(voc: VOCFolder, box: tuple[object, ...], caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad", [("cell", box)])
    data = VOCDetection(voc.root)
    check_problem(data, voc.root / "Annotations" / "bad.xml", "box outside the image", caplog)
    assert data[1][1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("value", ["ten", "", "1,5"])
def test_coordinate_that_is_not_a_number(voc: VOCFolder, value: str, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad", [("cell", (1, value, 9, 9))])
    data = VOCDetection(voc.root)
    check_problem(data, voc.root / "Annotations" / "bad.xml", "coordinate that is not a number", caplog)
    assert len(data) == 2


def test_object_without_a_box(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    path = voc.raw_xml("bad", b"<annotation><object><name>cell</name></object></annotation>")
    check_problem(VOCDetection(voc.root), path, "coordinate that is not a number", caplog)


def test_unknown_class(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad", [("dog", (1, 1, 9, 9)), ("cell", (2, 3, 12, 13))])
    data = VOCDetection(voc.root, classes=["cell"])
    problem = check_problem(data, voc.root / "Annotations" / "bad.xml", "unknown class", caplog)
    assert problem.detail == "'dog'"
    assert data[1][1]["labels"].tolist() == [0]


def test_object_without_a_name(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad", [("", (1, 1, 9, 9))])
    data = VOCDetection(voc.root)
    check_problem(data, voc.root / "Annotations" / "bad.xml", "unknown class", caplog)
    assert data.classes == ("cell",)


def test_missing_image(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    path = voc.root / "JPEGImages" / "bad.jpg"
    path.unlink()
    data = VOCDetection(voc.root)
    check_problem(data, path, "missing image", caplog)
    assert [image.stem for image in data.images] == ["good"]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0"])
def test_unreadable_image_header(voc: VOCFolder, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    path = voc.root / "JPEGImages" / "bad.jpg"
    path.write_bytes(content)
    data = VOCDetection(voc.root)
    check_problem(data, path, "unreadable image", caplog)
    assert len(data) == 1


def test_missing_xml(voc: VOCFolder, caplog: pytest.LogCaptureFixture) -> None:
    voc.split("train", ["good", "bad"])
    data = VOCDetection(voc.root)
    check_problem(data, voc.root / "Annotations" / "bad.xml", "missing xml", caplog)
    assert len(data) == 1


BROKEN = [b"", b"<annotation>", b"\x00\x01", b"<a>&nope;</a>", b'<?xml version="1.0" encoding="klingon"?><a/>']


@pytest.mark.parametrize("content", BROKEN)
def test_broken_xml(voc: VOCFolder, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    path = voc.raw_xml("bad", content)
    data = VOCDetection(voc.root)
    check_problem(data, path, "broken xml", caplog)
    assert len(data) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bomb_is_refused(voc: VOCFolder, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{f"&{inner};" * 10}">' for inner, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    bomb = f"<!DOCTYPE annotation [{entities}]><annotation><filename>&i;</filename></annotation>"
    path = voc.raw_xml("bad", bomb.encode(encoding))
    problem = check_problem(VOCDetection(voc.root), path, "broken xml", caplog)
    assert problem.detail == "document type declarations are not accepted"


ESCAPES = ["../../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "\\\\host\\secret"]


@pytest.mark.parametrize("name", ESCAPES)
def test_list_that_leads_out_of_the_folder(voc: VOCFolder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    voc.split("train", ["good", name])
    data = VOCDetection(voc.root)
    check_problem(data, name, "path outside the data set", caplog)
    assert len(data) == 1


@pytest.mark.parametrize("name", ESCAPES)
def test_xml_that_leads_out_of_the_folder(voc: VOCFolder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    voc.add("bad")
    Image.new("RGB", (64, 48)).save(voc.root.parent / "secret", format="PNG")  # exists, and must not be read
    path = voc.xml("bad", filename=name)
    problem = check_problem(VOCDetection(voc.root), path, "path outside the data set", caplog)
    assert problem.detail == name


def test_no_usable_image_is_an_error(voc: VOCFolder) -> None:
    voc.raw_xml("good", b"")
    with pytest.raises(ValueError, match=r"usable image in split='train', got '.*voc' with 1 problem \(1 broken xml\)"):
        VOCDetection(voc.root)


def test_missing_split_names_those_there_are(voc: VOCFolder) -> None:
    voc.split("val", ["good"])
    with pytest.raises(FileNotFoundError, match=r"existing: train, val\), got 'test'"):
        VOCDetection(voc.root, "val+test")
    with pytest.raises(FileNotFoundError, match="existing: none"):
        VOCDetection(voc.root / "elsewhere")


def truncate(voc: VOCFolder) -> Path:
    voc.add("bad", [("cell", (1, 1, 9, 9))])
    path = voc.root / "JPEGImages" / "bad.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    return path


@pytest.mark.parametrize("cache", [True, False])
def test_truncated_image_comes_grey_without_boxes(
    voc: VOCFolder, cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = truncate(voc)
    data = VOCDetection(voc.root, cache=cache)
    for _ in range(2):
        image, target = data[1]
        assert image.shape == (3, 48, 64)
        assert image.unique().tolist() == [114]
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
    problem = check_problem(data, path, "undecodable image, used as grey without boxes", caplog)
    assert "\n" not in problem.detail
    assert data[0][1]["boxes"].shape == (1, 4)


def test_truncated_image_is_logged_once_by_all_workers(voc: VOCFolder, tmp_path: Path) -> None:
    truncate(voc)
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger("moe_vision").addHandler(handler)
    loader = DataLoader(VOCDetection(voc.root, cache=False), batch_size=None, num_workers=2)
    try:
        for _ in range(2):
            assert len(list(loader)) == 2
    finally:
        logging.getLogger("moe_vision").removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text().count("bad.jpg") == 1
