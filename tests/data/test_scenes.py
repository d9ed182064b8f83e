# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from moe_vision.data import ShapeScenes
from moe_vision.data.scenes import _background, _polygon, paint


def test_sample_contract() -> None:
    scenes = ShapeScenes(5, image_size=96)
    assert len(scenes) == 5
    image, target = scenes[2]
    assert (image.shape, image.dtype) == ((3, 96, 96), torch.uint8)
    assert target["boxes"].canvas_size == (96, 96)
    assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
    assert target["image_id"] == 2
    with pytest.raises(IndexError, match=r"index must be in \[0, num_scenes=5\), got 5"):
        scenes[5]


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    one, two = ShapeScenes(4, seed=1), ShapeScenes(9, seed=1)
    np.random.seed(0)  # noqa: NPY002
    assert torch.equal(one[3][0], two[3][0])
    assert torch.equal(one[3][1]["boxes"], two[3][1]["boxes"])
    assert not torch.equal(one[2][0], one[3][0])
    assert not torch.equal(one[3][0], ShapeScenes(4, seed=2)[3][0])


@pytest.mark.parametrize("size", [64, 160, 321])
def test_boxes_are_exact_against_the_pixels(size: int) -> None:
    scenes = ShapeScenes(40, image_size=size, seed=5)
    for index, (image, target) in enumerate(scenes[index] for index in range(40)):
        # the background draws the first random numbers of a scene, so it can be had alone
        background = torch.from_numpy(_background(np.random.default_rng((5, index)), size)[0]).permute(2, 0, 1)
        changed = (image - background.clamp(0, 255)).abs().amax(dim=0) > 4
        outside = changed.clone()
        for left, top, right, bottom in target["boxes"].tolist():
            x1, y1, x2, y2 = int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))
            outside[y1:y2, x1:x2] = False
            rows, columns = changed[y1:y2, x1:x2].nonzero().T
            found = [columns.min() + x1, rows.min() + y1, columns.max() + 1 + x1, rows.max() + 1 + y1]
            np.testing.assert_allclose(found, [left, top, right, bottom], atol=1.25)
        assert not outside.any()


@pytest.mark.parametrize("name", ShapeScenes.classes)
def test_painted_area_is_that_of_the_shape(name: str) -> None:
    polygon = _polygon(name, angle=0.7) * 40 + 50
    canvas = np.zeros((100, 100, 3), dtype=np.float32)
    paint(canvas, polygon, np.array([0, 0, 100], dtype=np.float32))
    x, y = polygon.T.astype(np.float64)
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # shoelace formula
    assert canvas[..., :2].max() == 0
    covered = (canvas[..., 2] > 42).sum()  # the shade runs from 1.1 to 0.85: half covered is at least 42
    assert covered == pytest.approx(area, rel=0.06)


def test_scenes_run_from_almost_empty_to_crowded_and_from_small_to_large() -> None:
    scenes = ShapeScenes(300)
    targets = [scenes[index][1] for index in range(300)]
    counts = np.array([len(target["labels"]) for target in targets])
    assert counts.min() == 1
    assert 16 <= counts.max() <= 20
    assert (counts <= 2).mean() > 0.15
    assert (counts >= 10).mean() > 0.15
    boxes = torch.cat([target["boxes"].as_subclass(torch.Tensor) for target in targets])
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    assert 7 < sides.min() < 12
    assert sides.max() > 60
    assert boxes.min() >= 0
    assert boxes.max() <= 160
    labels = torch.cat([target["labels"] for target in targets])
    assert (labels.bincount(minlength=4) / len(labels) > 0.2).all()


def test_objects_hardly_overlap() -> None:
    scenes = ShapeScenes(100)
    for index in range(100):
        boxes = scenes[index][1]["boxes"]
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() < 0.35


def test_colour_does_not_tell_the_class() -> None:
    scenes = ShapeScenes(300)
    means: dict[int, list[torch.Tensor]] = {label: [] for label in range(4)}
    for image, target in (scenes[index] for index in range(300)):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            x, y = int(box[0] + box[2]) // 2, int(box[1] + box[3]) // 2
            means[label].append(image[:, y, x].float())
    colours = torch.stack([torch.stack(found).mean(dim=0) for found in means.values()])
    spread = torch.cat([torch.stack(found) for found in means.values()]).std(dim=0)
    assert ((colours.amax(dim=0) - colours.amin(dim=0)) < 0.5 * spread).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scenes": 0}, "num_scenes must be at least 1, got 0"),
        ({"num_scenes": 3, "image_size": 32}, "image_size must be at least 64 pixels, got 32"),
    ],
)
def test_errors(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeScenes(**options)
