# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as pycoco
from pycocotools.coco import COCO
from torchvision import tv_tensors

from moe_vision.data import COCODetection

from .checks import BROKEN_IMAGES, ESCAPES, check_problem, huge_png, save_image

SQUARE = [10, 8, 30, 8, 30, 28, 10, 28]
Entry = dict[str, Any]


class COCOFolder:
    """A COCO file that a test fills; it starts with one good image of 64 x 48 and one annotated square."""

    def __init__(self, root: Path) -> None:
        self.images = root / "images"
        self.path = root / "annotations.json"
        save_image(self.images / "good.png")
        self.content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "good.png", "height": 48, "width": 64}],
            "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "zebra"}],  # in no order, with gaps
            "annotations": [],
        }
        self.annotate(id=1)

    def annotate(self, **changes: object) -> Entry:
        """Add an annotation: the square, a cat, in the good image, unless changed."""
        square = {"image_id": 7, "category_id": 90, "bbox": [10, 8, 20, 20], "segmentation": [SQUARE]}
        self.content["annotations"].append({"id": len(self.content["annotations"]) + 1, **square, **changes})
        return self.content["annotations"][-1]

    def open(self, **options: Any) -> COCODetection:
        self.path.write_text(json.dumps(self.content))
        return COCODetection(self.path, self.images, **options)


@pytest.fixture
def coco(tmp_path: Path) -> COCOFolder:
    return COCOFolder(tmp_path)


# What is good


def test_sample_contract(coco: COCOFolder) -> None:
    coco.annotate(category_id=3, bbox=[50.5, 40, 20, 20])  # sticks out of 64 x 48
    data = coco.open()
    image, target = data[0]
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
    assert target["boxes"].tolist() == [[10, 8, 30, 28], [50.5, 40, 64, 48]]
    assert data.classes == ("zebra", "cat")  # by id
    assert target["labels"].tolist() == [1, 0]
    assert target["image_id"] == 0
    assert "masks" not in target
    assert data.problems == []
    assert data.summary() == "1 images, 2 boxes, 0 problems"


def test_masks(coco: COCOFolder) -> None:
    coco.annotate(segmentation={"size": [48, 64], "counts": [48 * 63, 48]}, bbox=[63, 0, 1, 48])  # the last column
    _, target = coco.open(masks=True)[0]
    masks = target["masks"]
    assert isinstance(masks, tv_tensors.Mask)
    assert (masks.shape, masks.dtype) == ((2, 48, 64), torch.bool)
    # a pixel belongs to the square if its centre does
    assert masks[0, 8:28, 10:30].all()
    assert masks[0].sum() == 20 * 20
    assert masks[1, :, 63].all()
    assert masks[1].sum() == 48


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_are_those_of_pycocotools(coco: COCOFolder) -> None:
    rng = np.random.default_rng(0)
    noise = np.asfortranarray(rng.random((48, 64)) < 0.3, dtype=np.uint8)
    compressed = {"size": [48, 64], "counts": pycoco.encode(noise)["counts"].decode()}
    several = [(rng.random(2 * corners) * 80 - 8).tolist() for corners in (3, 5, 11)]
    for segmentation in (compressed, several, [several[1]], {"size": [48, 64], "counts": [5, 100, 2967]}):
        coco.annotate(segmentation=segmentation)
    data = coco.open(masks=True)
    oracle = COCO(coco.path)
    expected = [oracle.annToMask(annotation) for annotation in oracle.loadAnns(oracle.getAnnIds())]
    assert data.problems == []
    assert np.array_equal(data[0][1]["masks"].numpy(), np.stack(expected).astype(bool))


def test_crowds_are_apart(coco: COCOFolder) -> None:
    coco.annotate(
        iscrowd=1, category_id=3, segmentation={"size": [48, 64], "counts": [0, 48 * 64]}, bbox=[0, 0, 64, 48]
    )
    data = coco.open(masks=True)
    assert data[0][1]["labels"].tolist() == [1]
    crowds = data.crowd_regions(0)
    assert crowds["boxes"].tolist() == [[0, 0, 64, 48]]
    assert crowds["labels"].tolist() == [0]
    assert crowds["masks"].all()
    assert crowds["masks"].shape == (1, 48, 64)
    assert set(coco.open().crowd_regions(0)) == {"boxes", "labels"}
    assert data.problems == []


def test_images_without_annotations_are_kept(coco: COCOFolder) -> None:
    save_image(coco.images / "deep" / "empty.jpg", 30, 20)
    coco.content["images"].append({"id": "x", "file_name": "deep/empty.jpg"})
    data = coco.open(masks=True)
    assert len(data) == 2
    _, target = data[1]
    assert (target["boxes"].shape, target["masks"].shape) == ((0, 4), (0, 20, 30))
    assert data.problems == []


def test_classes_may_be_given(coco: COCOFolder) -> None:
    assert coco.open(classes=["dog", "cat"])[0][1]["labels"].tolist() == [1]


def test_two_categories_of_one_name_are_one_class(coco: COCOFolder) -> None:
    coco.content["categories"].append({"id": 91, "name": "cat"})
    coco.annotate(category_id=91)
    data = coco.open()
    assert data.classes == ("zebra", "cat")
    assert data[0][1]["labels"].tolist() == [1, 1]


# What is bad: reported once with the file's name, and the rest is used


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [10, 8, 0, 20]}, "degenerate box"),
        ({"bbox": [10, 8, -5, 20]}, "degenerate box"),
        ({"bbox": [10, 8, float("nan"), 20]}, "degenerate box"),
        ({"bbox": [10, float("inf"), 20, 20]}, "degenerate box"),
        ({"bbox": [64, 8, 20, 20]}, "box outside the image"),
        ({"bbox": [10, 8, 20]}, "coordinate that is not a number"),
        ({"bbox": ["ten", 8, 20, 20]}, "coordinate that is not a number"),
        ({"bbox": 5}, "coordinate that is not a number"),
        ({"bbox": [10**400, 8, 20, 20]}, "coordinate that is not a number"),
        ({"category_id": 4}, "unknown class"),
        ({"category_id": None}, "unknown class"),
        ({"category_id": [90]}, "unknown class"),
        ({"image_id": 8}, "annotation of an unknown image"),
        ({"image_id": [7]}, "annotation of an unknown image"),
        ({"id": 1}, "duplicate id in annotations"),
    ],
)
def test_bad_annotation(coco: COCOFolder, changes: Entry, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    bad = coco.annotate(**changes)
    data = coco.open()
    problem = check_problem(data, coco.path, reason, caplog)
    assert str(bad["id"]) in problem.detail
    assert data[0][1]["boxes"].tolist() == [[10, 8, 30, 28]]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "object without a mask"),
        ([], "object without a mask"),
        ([[10, 8, 30, 8]], "polygon of fewer than 3 points"),
        ([[10, 8, 30, 8, 30, 28, 10]], "polygon with an odd number of coordinates"),
        ([[10, 8, 30, float("nan"), 30, 28]], "polygon far outside the image"),
        ([[10, 8, 30, "8", 30, 28]], "coordinate that is not a number"),
        (SQUARE, "coordinate that is not a number"),
        ([[70, 8, 90, 8, 90, 28]], "unusable mask"),  # beside the image
        ({"size": [64, 48], "counts": [0, 48 * 64]}, "unusable mask"),  # width and height swapped
        ({"size": [48, 64], "counts": [0, 10**12]}, "unusable mask"),
        ({"size": [48, 64], "counts": [48 * 64]}, "unusable mask"),  # empty
        ({"size": [48, 64], "counts": "~~~"}, "unusable mask"),
        ({"counts": [0, 48 * 64]}, "unusable mask"),
        ({}, "unusable mask"),
    ],
)
def test_bad_mask(coco: COCOFolder, segmentation: object, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    coco.annotate(segmentation=segmentation)
    assert len(coco.open()[0][1]["boxes"]) == 2  # without masks it does not matter
    caplog.clear()
    data = coco.open(masks=True)
    if segmentation == SQUARE:  # each number is taken for a polygon
        assert {problem.reason for problem in data.problems} == {reason}
    else:
        assert "2" in check_problem(data, coco.path, reason, caplog).detail
    assert len(data[0][1]["boxes"]) == len(data[0][1]["masks"]) == 1


def test_good_polygons_of_an_object_are_kept(coco: COCOFolder, caplog: pytest.LogCaptureFixture) -> None:
    coco.annotate(segmentation=[[1, 1, 2, 2], SQUARE])
    data = coco.open(masks=True)
    check_problem(data, coco.path, "polygon of fewer than 3 points", caplog)
    assert data[0][1]["masks"].sum(dim=(1, 2)).tolist() == [400, 400]


@pytest.mark.parametrize("key", ["images", "categories"])
def test_duplicate_id(coco: COCOFolder, key: str, caplog: pytest.LogCaptureFixture) -> None:
    coco.content[key].append({**coco.content[key][0], "name": "dog", "file_name": "other.png"})
    data = coco.open()
    check_problem(data, coco.path, f"duplicate id in {key}", caplog)
    assert len(data) == 1
    assert data.classes == ("zebra", "cat")


@pytest.mark.parametrize(
    ("key", "entry", "reason"),
    [
        ("images", {"id": 8}, "entry in images without id or file_name"),
        ("images", {"file_name": "good.png"}, "entry in images without id or file_name"),
        ("images", {"id": [8], "file_name": "good.png"}, "entry in images without id or file_name"),
        ("categories", {"id": 8, "name": None}, "entry in categories without id or name"),
        ("images", "good.png", "broken entry in images"),
        ("annotations", None, "broken entry in annotations"),
        ("annotations", {}, "annotation of an unknown image"),
    ],
)
def test_broken_entry(coco: COCOFolder, key: str, entry: object, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    coco.content[key].append(entry)
    data = coco.open()
    check_problem(data, coco.path, reason, caplog)
    assert data[0][1]["labels"].tolist() == [1]


@pytest.mark.parametrize("content", BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_unreadable_image(coco: COCOFolder, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = coco.images / "bad.png"
    path.write_bytes(content)
    coco.content["images"].append({"id": 8, "file_name": "bad.png"})
    data = coco.open()
    check_problem(data, path, "unreadable image", caplog)
    assert len(data) == 1


def test_huge_header(coco: COCOFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = huge_png(coco.images / "huge.png")
    coco.content["images"].append({"id": 8, "file_name": "huge.png"})
    problem = check_problem(coco.open(), path, "unreadable image", caplog)
    assert "decompression bomb" in problem.detail


@pytest.mark.parametrize("name", ["gone.png", "caf\u00e9.png", "lone \udcff.png", "x" * 300 + ".png"])
def test_missing_image(coco: COCOFolder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    coco.content["images"].append({"id": 8, "file_name": name})
    data = coco.open()
    (problem,) = data.problems
    assert problem.reason in ("missing image", "unreadable image")
    assert problem.file.startswith(str(coco.images))
    problem.file.encode()  # can be printed
    assert len(data) == 1


@pytest.mark.parametrize("name", ESCAPES)
def test_image_outside_the_folder(coco: COCOFolder, name: str, caplog: pytest.LogCaptureFixture) -> None:
    save_image(coco.images.parent / "secret.png")  # exists, and must not be read
    coco.content["images"].append({"id": 8, "file_name": name})
    data = coco.open()
    assert check_problem(data, coco.path, "path outside the data set", caplog).detail == name
    assert len(data) == 1


def test_image_of_another_size_than_annotated(coco: COCOFolder, caplog: pytest.LogCaptureFixture) -> None:
    path = save_image(coco.images / "turned.png", 64, 48)
    coco.content["images"].append({"id": 8, "file_name": "turned.png", "height": 64, "width": 48})
    data = coco.open()
    check_problem(data, path, "image of another size than annotated", caplog)
    assert len(data) == 1


def test_too_many_masks_for_memory(coco: COCOFolder, caplog: pytest.LogCaptureFixture) -> None:
    # 1 GiB holds 10 masks of 10000 x 10000 bytes
    path = coco.images / "large.png"
    huge_png(path, 10_000)
    coco.content["images"].append({"id": 8, "file_name": "large.png"})
    for _ in range(11):
        coco.annotate(image_id=8)
    with pytest.warns(Warning, match="decompression bomb"):
        data = coco.open(masks=True, cache=False)
    check_problem(data, coco.path, "masks too large", caplog)
    assert len(data) == 1


@pytest.mark.parametrize("cache", [True, False])
def test_truncated_image_comes_grey_without_objects(
    coco: COCOFolder, cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = coco.images / "good.png"
    path.write_bytes(path.read_bytes()[:-500])
    data = coco.open(masks=True, cache=cache)
    image, target = data[0]
    assert image.unique().tolist() == [114]
    assert (target["boxes"].shape, target["masks"].shape) == ((0, 4), (0, 48, 64))
    check_problem(data, path, "undecodable image, used as grey without boxes", caplog)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a JSON file"),
        (b"{", "must be a JSON file"),
        (b"\xff\xfe\xfa", "must be a JSON file"),
        ('{"images": "caf\u00e9"}'.encode("latin-1"), "must be a JSON file"),
        (b"[" * 100_000, "must be a JSON file"),
        (b"[]", "must be a COCO JSON file, got .* with a list"),
        (b'{"images": [], "annotations": []}', "with a list 'categories'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "with a list 'images'"),
        (b'{"images": [], "annotations": [], "categories": []}', "at least one usable image .* with 0 problems"),
    ],
)
def test_broken_json(coco: COCOFolder, content: bytes, message: str) -> None:
    coco.path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        COCODetection(coco.path, coco.images)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        COCODetection(tmp_path / "none.json", tmp_path)
