# SPDX-License-Identifier: Apache-2.0
"""Crowd regions in evaluation: a COCO file that pycocotools evaluates too, and literal cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from moe_vision import predict
from moe_vision.data import COCODetection, ShapeScenes
from moe_vision.models import YOLOMaster
from moe_vision.train import evaluate
from moe_vision.train.metrics import coco_metrics
from tests.models.reference_detector import busy_detector, busy_segmenter

IDS = (11, 12, 20)  # of images: ascending, with gaps
Entry = dict[str, Any]


def rle(mask: Tensor) -> Entry:
    encoded = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def xywh(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def entries(found: dict[str, Tensor], image: int) -> list[Entry]:
    """What was found in an image, as COCO writes results."""
    masks = found.get("masks", [None] * len(found["labels"]))
    return [
        {"image_id": image, "category_id": 10 * label + 3, "bbox": xywh(box), "score": score}
        | ({"segmentation": rle(mask)} if mask is not None and mask.any() else {})
        for box, label, score, mask in zip(
            found["boxes"], found["labels"].tolist(), found["scores"].tolist(), masks, strict=True
        )
    ]


def annotate(rows: list[Entry], size: tuple[int, int]) -> list[Entry]:
    """Every fifth of what was found is an object; for each class the left half of the image is a crowd region."""
    height, width = size
    objects = [{**row, "iscrowd": 0} for row in rows[::5]]
    half = torch.zeros(size, dtype=torch.bool)
    half[:, : width // 2] = True
    crowd = {"bbox": [0, 0, width // 2, height], "segmentation": rle(half), "iscrowd": 1}
    crowds = [{**crowd, "image_id": rows[0]["image_id"], "category_id": category} for category in (3, 23)]
    # Areas that are neither those of the boxes nor of the masks: by them every other object is medium, the rest small.
    return [{**row, "area": 400.0 + 2000 * (place % 2)} for place, row in enumerate((*objects, *crowds))]


def write(folder: Path, model: YOLOMaster) -> list[Entry]:
    """Write a data set of which a network finds much; return what it finds in it, as COCO writes results."""
    scenes = ShapeScenes(3, 64)
    images = [scenes[0][0][:, :40], scenes[1][0][:, :, 10:50], scenes[2][0]]
    options = {"score": 0.001, "iou": 0.7, "max_detections": 300, "image_size": 64}
    results = [entries(found, image) for found, image in zip(predict(model, images, **options), IDS, strict=True)]
    results = [[row for row in rows if "segmentation" in row or model.config.task == "detect"] for rows in results]
    sizes = [tuple(image.shape[-2:]) for image in images]
    annotations = [row for rows, size in zip(results, sizes, strict=True) for row in annotate(rows[:60], size)]
    for image, pixels in zip(IDS, images, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{image}.png")
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.png", "height": height, "width": width}
            for image, (height, width) in zip(IDS, sizes, strict=True)
        ],
        "categories": [
            {"id": 10 * label + 3, "name": f"class {label:02}"} for label in range(model.config.num_classes)
        ],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
    }
    (folder / "all.json").write_text(json.dumps(content))
    return [row for rows in results for row in rows]


def by_pycocotools(file: Path, results: list[Entry], kind: str) -> list[float]:
    """MAP 50:95, 50 and 75, of small and of medium objects."""
    truth = COCO(str(file))
    other = "bbox" if kind == "segm" else "segmentation"  # with both, masks would have the size of their boxes
    rows = [{key: row[key] for key in row if key != other} for row in results]
    evaluation = COCOeval(truth, truth.loadRes(rows), kind)
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    table, small, medium = np.moveaxis(evaluation.eval["precision"][:, :, :, :3, -1], 3, 0)
    return [float(part[part > -1].mean()) for part in (table, table[0], table[5], small, medium)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_file_with_crowds_is_judged_as_by_pycocotools(tmp_path: Path, task: str) -> None:
    model = busy_detector() if task == "detect" else busy_segmenter()
    results = write(tmp_path, model)
    data = COCODetection(tmp_path / "all.json", tmp_path, masks=task == "segment")
    assert data.problems == []
    metrics = evaluate(model, data, image_size=64, batch_size=2)
    expected = by_pycocotools(tmp_path / "all.json", results, "bbox")
    names = ["map", "map50", "map75", "map_small", "map_medium"]
    assert [metrics[name] for name in names] == pytest.approx(expected, abs=1e-6)
    if task == "segment":
        expected = by_pycocotools(tmp_path / "all.json", results, "segm")
        names = [f"mask_{name}" for name in names]
        assert [metrics[name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert 0.1 < metrics[names[0]] < 0.95

    data.crowd_regions = lambda index: {
        name: values[:0] for name, values in data[index][1].items() if name != "image_id"
    }
    assert evaluate(model, data, image_size=64)[names[0]] < metrics[names[0]] - 0.01


def test_a_detection_inside_a_crowd_is_no_mistake() -> None:
    # Three detections, the best one inside the region, the second on the object, the last outside of both.
    region, label = torch.tensor([[0.0, 0.0, 50.0, 50.0]]), torch.tensor([0])
    thing = torch.tensor([[60.0, 60.0, 90.0, 90.0]])
    boxes = torch.cat([torch.tensor([[10.0, 10.0, 20.0, 20.0]]), thing, torch.tensor([[60.0, 0.0, 80.0, 20.0]])])
    found = {"boxes": boxes, "labels": label.repeat(3), "scores": torch.tensor([0.9, 0.8, 0.7])}
    truth = {"boxes": thing, "labels": label}
    crowds = {"boxes": region, "labels": label}
    assert coco_metrics([truth], [found], ("cell",))["map"] == pytest.approx(0.5)  # one of two is right
    assert coco_metrics([{**truth, "crowds": crowds}], [found], ("cell",))["map"] == pytest.approx(1.0)
    # A region of another class helps nothing.
    crowds["labels"] = label + 1
    metrics = coco_metrics([{**truth, "crowds": crowds}], [found], ("cell", "cat"))
    assert metrics["class_map"] == pytest.approx({"cell": 0.5, "cat": -1.0})
