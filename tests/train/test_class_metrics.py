# SPDX-License-Identifier: Apache-2.0
"""What is measured of each class: precision curves against pycocotools, the best F1, and counts."""

import numpy as np
import pytest
import torch

from moe_vision.train.metrics import coco_metrics, count_objects, precision_curves
from tests.train.test_evaluation import CLASSES, Objects, noisy_detections, precision_table, random_truths

EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def oracle(truths: Objects, found: Objects) -> np.ndarray:
    """Pycocotools' precisions at an IoU of 0.5, by recall and class."""
    return precision_table(truths, found)[0, :, :, 0]


@pytest.mark.parametrize("seed", range(3))
def test_curves_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = random_truths(rng)
    found = noisy_detections(rng, truths)
    curves, expected = precision_curves(truths, found, CLASSES), oracle(truths, found)
    metrics = coco_metrics(truths, found, CLASSES)
    assert list(curves) == list(CLASSES)
    for label, (name, curve) in enumerate(curves.items()):
        assert curve == pytest.approx(expected[:, label].tolist(), abs=1e-6)
        assert np.mean(curve) == pytest.approx(metrics["class_map50"][name])
        precision, recall = metrics["class_precision"][name], metrics["class_recall"][name]
        f1 = [2 * p * r / (p + r) if p else 0.0 for p, r in zip(curve, np.linspace(0, 1, 101), strict=True)]
        assert 2 * precision * recall / (precision + recall) == pytest.approx(max(f1))
        assert 0.1 < precision < 1


def test_precision_and_recall_at_the_best_f1() -> None:
    places = torch.tensor([[0.0, 0.0, 50.0, 50.0]]) + 100 * torch.arange(6)[:, None]
    truth = {"boxes": places[:4], "labels": torch.zeros(4, dtype=torch.int64)}
    # Right, right, false, right, false: precision 3 / 4 at recall 3 / 4 gives F1 0.75, more than
    # 1 at 1 / 2 (0.67), and 3 / 5 at 3 / 4 (0.67).
    scores = torch.tensor([0.9, 0.8, 0.6, 0.7, 0.5])
    found = {"boxes": places[[0, 1, 2, 4, 5]], "labels": torch.zeros(5, dtype=torch.int64), "scores": scores}
    metrics = coco_metrics([truth], [found], CLASSES)
    assert metrics["class_precision"] == pytest.approx({"cat": 0.75, "dog": -1.0, "cow": -1.0})
    assert metrics["class_recall"] == pytest.approx({"cat": 0.75, "dog": -1.0, "cow": -1.0})
    assert list(precision_curves([truth], [found], CLASSES)) == ["cat"]  # the others have no objects


def test_nothing_found_and_nothing_there() -> None:
    truth = {"boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0]]), "labels": torch.tensor([1])}
    assert precision_curves([truth], [EMPTY], CLASSES) == {"dog": [0.0] * 101}
    assert precision_curves([EMPTY], [{**truth, "scores": torch.ones(1)}], CLASSES) == {}
    assert coco_metrics([truth], [EMPTY], CLASSES)["class_recall"]["dog"] == 0.0


def test_counts() -> None:
    truths = [{"labels": torch.tensor(labels, dtype=torch.int64)} for labels in ([0, 0, 2], [], [2])]
    counts = count_objects(truths, CLASSES)
    assert counts["class_images"] == {"cat": 1, "dog": 0, "cow": 2}
    assert counts["class_objects"] == {"cat": 2, "dog": 0, "cow": 2}
