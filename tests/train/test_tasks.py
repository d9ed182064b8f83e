# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation to segment and to classify; masks against pycocotools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from moe_vision import create_model, predict
from moe_vision.data import ShapeScenes
from moe_vision.data.samples import make_sample
from moe_vision.models import YOLOMaster, load_checkpoint
from moe_vision.train import Trainer, TrainSettings, evaluate
from moe_vision.train.metrics import METRICS, accuracy_metrics, coco_metrics
from tests.models.reference_detector import reference_network

CLASSES = ("disc", "ring", "bar")


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def blobs(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Ellipses of all of COCO's sizes in an image of 200 x 240."""
    y, x = np.mgrid[:200, :240]
    radii = np.exp(rng.uniform(1.5, 4.5, (count, 2)))
    centres = rng.uniform(0, 200, (count, 2))
    return [((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1 for (cy, cx), (ry, rx) in zip(centres, radii, strict=True)]


def masked_scenes(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects, and detections of them that are shifted, missing or of a wrong class."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(8):
        masks = [mask for mask in blobs(rng, int(rng.integers(0, 7))) if mask.any()]
        labels = torch.tensor(rng.integers(0, 3, len(masks)))
        truths.append({"labels": labels, "rles": [rle(mask) for mask in masks]})
        kept = [i for i in range(len(masks)) if rng.random() < 0.8]
        shifted = [np.roll(masks[i], tuple(rng.integers(-4, 5, 2)), (0, 1)) for i in kept]
        wrong = torch.tensor([int(rng.random() < 0.1) for _ in kept], dtype=torch.int64)
        scores = torch.tensor(rng.permutation(1000)[: len(kept)] / 1000, dtype=torch.float32)
        found.append({"labels": (labels[kept] + wrong) % 3, "scores": scores, "rles": [rle(mask) for mask in shifted]})
    return truths, found


def rows(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for image, one in enumerate(objects):
        scores = one.get("scores", torch.ones(len(one["labels"]))).tolist()
        for mask, label, score in zip(one["rles"], one["labels"].tolist(), scores, strict=True):
            row = {"image_id": image, "category_id": label, "segmentation": mask, "area": float(coco_mask.area(mask))}
            table.append({**row, "id": len(table) + 1, "iscrowd": 0, "score": score})
    return table


@pytest.mark.parametrize("seed", range(3))
def test_mask_metrics_equal_pycocotools(seed: int) -> None:
    truths, found = masked_scenes(seed)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image, "height": 200, "width": 240} for image in range(len(truths))],
        "annotations": rows(truths),
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
    }
    truth.createIndex()
    oracle = COCOeval(truth, truth.loadRes(rows(found)), "segm")
    oracle.params.maxDets = [1, 10, 300]
    oracle.evaluate()
    oracle.accumulate()
    table = oracle.eval["precision"][..., -1]

    def mean(part: np.ndarray) -> float:
        return float(part[part > -1].mean()) if (part > -1).any() else -1.0

    metrics = coco_metrics(truths, found, CLASSES, masks=True)
    parts = [table[..., 0], table[0, ..., 0], table[5, ..., 0], table[..., 1], table[..., 2], table[..., 3]]
    assert [metrics[name] for name in METRICS] == pytest.approx(list(map(mean, parts)), abs=1e-6)
    assert 0.1 < metrics["map"] < 0.95


def test_accuracy() -> None:
    # Images of the classes 0, 0, 1 and 7; the first is right, the second third, the third ninth (last), the last fifth.
    scores = torch.zeros(4, 9)
    scores[0, 0] = 1
    scores[1, [4, 5, 0]] = torch.tensor([3.0, 2.0, 1.0])
    scores[2] = torch.arange(9.0)
    scores[2, 1] = -1
    scores[3, [0, 1, 2, 3, 7]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    metrics = accuracy_metrics(scores, torch.tensor([0, 0, 1, 7]), tuple("abcdefghi"))
    assert metrics["top1"] == pytest.approx(1 / 4)
    assert metrics["top5"] == pytest.approx(3 / 4)
    assert metrics["class_top1"] == {**dict.fromkeys("cdefgi", -1.0), "a": 0.5, "b": 0.0, "h": 0.0}


class MaskedScenes(ShapeScenes):
    """Generated scenes whose objects fill their boxes."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = super().__getitem__(index)
        masks = torch.zeros(len(target["labels"]), *image.shape[1:], dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, target["boxes"].round().int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        return make_sample(
            image.as_subclass(Tensor), target["boxes"].as_subclass(Tensor), target["labels"], index, masks
        )


class Textures:
    """Smooth and noisy images: two classes that a few steps tell apart, whatever is done to colours."""

    classes = ("smooth", "noisy")

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        generator = torch.Generator().manual_seed(index)
        size = (3, 40, 50) if index % 2 else (3, 1, 1)
        image = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).expand(3, 40, 50).contiguous()
        return image, {"label": index % 2, "image_id": index}


def fit(task: str, data: Any, out: Path, *, placement: str = "backbone", **settings: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create_model(
        "yolo_master_n", task=task, num_classes=len(data.classes), class_names=data.classes, placement=placement
    )
    small = {"epochs": 2, "image_size": 64, "batch_size": 4, "num_workers": 0, "warmup_epochs": 1}
    return Trainer(model, data, data, out, TrainSettings(**{**small, **settings})).fit()


def losses(out: Path) -> list[dict[str, float]]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_segmentation_trains_and_is_evaluated(tmp_path: Path) -> None:
    metrics = fit("segment", MaskedScenes(4, 64), tmp_path)
    assert {"class", "box", "mask", "balance"} == set(losses(tmp_path)[-1])
    assert {*METRICS, *(f"mask_{name}" for name in METRICS), "class_map", "mask_class_map"} < set(metrics)
    model = load_checkpoint(tmp_path / "best.safetensors")
    assert model.config.task == "segment"
    assert evaluate(model, MaskedScenes(4, 64), image_size=64)["mask_map"] == pytest.approx(metrics["mask_map"])


def test_classification_learns(tmp_path: Path) -> None:
    metrics = fit("classify", Textures(), tmp_path, placement="none", epochs=30, lr=5e-4, batch_size=8, ema_decay=0.5)
    assert metrics["top1"] == 1.0
    assert metrics["class_top1"] == {"smooth": 1.0, "noisy": 1.0}
    course = [line["class"] for line in losses(tmp_path)]
    assert sum(course[-5:]) < 0.5 * sum(course[:5])
    model = load_checkpoint(tmp_path / "best.safetensors")
    assert [model.class_names[result["label"]] for result in predict(model, [Textures()[0][0], Textures()[1][0]])] == [
        "smooth",
        "noisy",
    ]


class Found:
    """Images whose instances are what a network finds in them: a set on which it is perfect."""

    def __init__(self, model: YOLOMaster) -> None:
        self.classes = model.class_names
        scenes = ShapeScenes(2, 64)
        # Of unequal sides, so that the letterbox has something to undo, and larger than the network's input.
        self.images = [scenes[0][0][:, :40].repeat_interleave(2, 2), scenes[1][0][:, :, 10:50]]
        self.targets = predict(model, self.images, score=0.3, max_detections=20)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        found = self.targets[index]
        whole = found["masks"].flatten(1).any(dim=1)
        boxes, labels, masks = (found[name][whole] for name in ("boxes", "labels", "masks"))
        return make_sample(self.images[index].as_subclass(Tensor), boxes, labels, index, masks)


def test_a_network_is_perfect_on_the_masks_it_finds() -> None:
    model = reference_network("segment", "seg-n")
    model.image_size = 64
    with torch.no_grad():
        for box_tower, coefficient_tower in zip(
            model.head.detection.box_towers, model.head.coefficient_towers, strict=True
        ):
            box_tower[-1].bias.copy_(-torch.arange(16.0).repeat(4))  # small boxes everywhere
            coefficient_tower[-1].bias.fill_(1.0)  # masks that fill more than half of them
    source = Found(model)
    assert all(len(source[index][1]["labels"]) > 5 for index in range(2))
    shares = [target["masks"].float().sum() for target in source.targets]
    assert all(share > 0 for share in shares)
    metrics = evaluate(model, source, image_size=64, batch_size=2)
    assert metrics["map"] == pytest.approx(1.0)
    assert metrics["mask_map"] == pytest.approx(1.0)
