# SPDX-License-Identifier: Apache-2.0
"""Evaluation: pycocotools as oracle, and a detector that is judged in the pixels of the original images."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from moe_vision import create_model, predict
from moe_vision.data import ShapeScenes
from moe_vision.data.samples import make_sample
from moe_vision.models import YOLOMaster
from moe_vision.train import evaluate
from moe_vision.train.metrics import METRICS, coco_metrics
from tests.models.reference_detector import busy_detector

CLASSES = ("cat", "dog", "cow")
Objects = list[dict[str, Tensor]]


def random_truths(rng: np.random.Generator, images: int = 12) -> Objects:
    """Up to 9 objects an image, from 5 to 200 pixels large; some images hold none."""
    truths = []
    for _ in range(images):
        count = int(rng.integers(0, 10))
        corners, sides = rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(1.6, 5.3, (count, 2)))
        boxes = torch.tensor(np.concatenate([corners, corners + sides], axis=1), dtype=torch.float32)
        truths.append({"boxes": boxes, "labels": torch.tensor(rng.integers(0, 3, count))})
    return truths


def noisy_detections(rng: np.random.Generator, truths: Objects) -> Objects:
    """Objects found twice or not at all, shaken, some of a wrong class, and false alarms."""
    found = []
    for truth, alarms in zip(truths, random_truths(rng, len(truths)), strict=True):
        boxes, labels = truth["boxes"].repeat(2, 1), truth["labels"].repeat(2)
        kept = torch.tensor(rng.random(len(labels)) < 0.7)
        boxes, labels = boxes[kept], labels[kept]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + sides * torch.tensor(rng.normal(0, 0.08, boxes.shape), dtype=torch.float32)
        wrong = torch.tensor(rng.random(len(labels)) < 0.1)
        labels = torch.where(wrong, (labels + 1) % 3, labels)
        boxes, labels = torch.cat([boxes, alarms["boxes"]]), torch.cat([labels, alarms["labels"]])
        scores = torch.tensor(rng.permutation(10_000)[: len(labels)] / 10_000, dtype=torch.float32)
        found.append({"boxes": boxes, "labels": labels, "scores": scores})
    return found


def rows(objects: Objects) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for image, one in enumerate(objects):
        scores = one.get("scores", torch.ones(len(one["labels"]))).tolist()
        for box, label, score in zip(one["boxes"].tolist(), one["labels"].tolist(), scores, strict=True):
            x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
            row = {"image_id": image, "category_id": label, "bbox": [x, y, width, height], "area": width * height}
            table.append({**row, "id": len(table) + 1, "iscrowd": 0, "score": score})
    return table


def precision_table(truths: Objects, found: Objects) -> np.ndarray:
    """Pycocotools' precisions by IoU, recall, class and size of the objects."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(truths))],
        "annotations": rows(truths),
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(rows(found)), "bbox")
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def oracle(truths: Objects, found: Objects) -> dict[str, Any]:
    """The metrics by pycocotools, read off its table of precisions."""
    table = precision_table(truths, found)

    def mean(part: np.ndarray) -> float:
        return float(part[part > -1].mean()) if (part > -1).any() else -1.0

    values = [table[..., 0], table[0, ..., 0], table[5, ..., 0], table[..., 1], table[..., 2], table[..., 3]]
    by_class = {name: mean(table[:, :, label, 0]) for label, name in enumerate(CLASSES)}
    return {**dict(zip(METRICS, map(mean, values), strict=True)), "class_map": by_class}


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = random_truths(rng)
    found = noisy_detections(rng, truths)
    metrics, expected = coco_metrics(truths, found, CLASSES), oracle(truths, found)
    assert 0.1 < metrics["map"] < 0.9  # neither hopeless nor trivial
    assert metrics["class_map"] == pytest.approx(expected["class_map"], abs=1e-6)
    for name in METRICS:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name


def test_perfect_detections() -> None:
    truths = random_truths(np.random.default_rng(0))
    metrics = coco_metrics(truths, [{**truth, "scores": torch.ones(len(truth["labels"]))} for truth in truths], CLASSES)
    assert [metrics[name] for name in METRICS] == pytest.approx([1.0] * 6)
    assert metrics["class_map"] == pytest.approx(dict.fromkeys(CLASSES, 1.0))


def test_no_detections_and_no_objects() -> None:
    truths = random_truths(np.random.default_rng(0), 3)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    found = [{**truth, "scores": torch.ones(len(truth["labels"]))} for truth in truths]
    assert coco_metrics(truths, [none] * 3, CLASSES)["map"] == 0
    assert coco_metrics([none] * 3, found, CLASSES)["map"] == 0


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
    metrics = coco_metrics([truth], [{**truth, "scores": torch.tensor([0.5])}], CLASSES)
    assert metrics["map"] == pytest.approx(1.0)
    assert metrics["class_map"] == pytest.approx({"cat": -1.0, "dog": 1.0, "cow": -1.0})
    # 50 x 50 is medium: between 32^2 and 96^2 pixels
    assert [metrics[f"map_{size}"] for size in ("small", "medium", "large")] == pytest.approx([-1.0, 1.0, -1.0])


class Found:
    """Images whose objects are what a detector finds in them: a set on which it is perfect."""

    def __init__(self, model: YOLOMaster) -> None:
        self.classes = model.class_names
        scenes = ShapeScenes(3, 64)
        # Crops of unequal sides, so that the letterbox has something to undo.
        self.images = [scenes[0][0][:, :40], scenes[1][0][:, :, 10:50], scenes[2][0]]
        self.targets = predict(model, self.images, score=0.5, max_detections=20)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        found = self.targets[index]
        return make_sample(self.images[index], found["boxes"], found["labels"], index)


def test_a_detector_is_perfect_on_what_it_finds() -> None:
    model = busy_detector()
    source = Found(model)
    assert all(len(target["boxes"]) > 5 for target in source.targets)
    metrics = evaluate(model, source, image_size=64, batch_size=2)
    # What it finds beyond those has lower scores, and costs nothing once all are found.
    assert metrics["map"] == pytest.approx(1.0)
    shares = metrics["experts"]
    assert list(shares) == [f"backbone.stage{stage}.moe" for stage in (2, 3, 4, 5)]
    assert all(sum(share) == pytest.approx(1.0) for share in shares.values())
    assert not model.training


def test_untrained_detector_and_bad_size() -> None:
    scenes = ShapeScenes(3, 64)
    model = create_model("yolo_master_n", num_classes=4, class_names=scenes.classes).train()
    assert evaluate(model, scenes, image_size=64)["map"] < 0.1
    with pytest.raises(ValueError, match="image_size must be a multiple of 32, got 100"):
        evaluate(model, scenes, image_size=100)
