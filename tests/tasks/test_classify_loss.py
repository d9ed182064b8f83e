# SPDX-License-Identifier: Apache-2.0
"""The classification task's loss: literal values, whole networks, and the contract of its labels."""

import math

import pytest
import torch
from torch import Tensor

from moe_vision import auxiliary_loss, create_model
from moe_vision.models import YOLOMaster
from moe_vision.tasks import class_scores, classify_loss

LOGITS = torch.tensor([[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]).log()  # probabilities in quarters and eighths


@pytest.fixture(scope="module")
def model() -> YOLOMaster:
    """A network without experts, of which the loss reads nothing."""
    return create_model("yolo_master_n", task="classify", num_classes=3, placement="none")


def test_literally(model: YOLOMaster) -> None:
    # (-log 2/4 - log 1/8) / 2 = (log 2 + 3 log 2) / 2 = 2 log 2
    terms = classify_loss(model, LOGITS, torch.tensor([1, 2]))
    assert set(terms) == {"class"}
    assert terms["class"].item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_shares_of_classes_literally(model: YOLOMaster) -> None:
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.25, 0.75]])  # as mixup makes them
    assert classify_loss(model, LOGITS, shares)["class"].item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_label_smoothing_literally(model: YOLOMaster) -> None:
    # 0.3 spread over three classes: targets (0.1, 0.8, 0.1); -(0.2 log 1/4 + 0.8 log 1/2) = 1.2 log 2
    terms = classify_loss(model, LOGITS[:1], torch.tensor([1]), label_smoothing=0.3)
    assert terms["class"].item() == pytest.approx(1.2 * math.log(2), rel=1e-6)


def test_every_parameter_gets_a_gradient_and_balance_counts() -> None:
    model = create_model("yolo_master_n", task="classify", num_classes=3).train()
    logits = model(torch.rand(2, 3, 64, 64))
    terms = classify_loss(model, logits, torch.tensor([2, 0]), balance=0.2)
    assert terms["balance"] == auxiliary_loss(model, balance=0.2) > 0.8 - 1e-4  # four layers, each at least 1
    sum(terms.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0]), r"labels must be one for each of the 2 images, got \(1,\)"),
        (torch.tensor([[0, 1, 0], [0, 1, 0]]), r"one for each of the 2 images, got \(2, 3\)"),
        (torch.tensor([0, 3]), r"labels must be in \[0, num_classes=3\), got 3"),
        (torch.tensor([-1, 0]), r"labels must be in \[0, num_classes=3\), got -1"),
        (torch.tensor([0, 1], dtype=torch.int32), "labels must be int64, or floats .*, got torch.int32"),
        (torch.zeros(2), r"labels of floats must have shape \(2, 3\), got \(2,\)"),
        (torch.zeros(2, 4), r"labels of floats must have shape \(2, 3\), got \(2, 4\)"),
    ],
)
def test_labels_that_do_not_fit(model: YOLOMaster, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classify_loss(model, LOGITS, labels)


def test_bad_label_smoothing(model: YOLOMaster) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        classify_loss(model, LOGITS, torch.tensor([0, 1]), label_smoothing=1.5)


def test_scores_of_classes_literally() -> None:
    first, second = class_scores(LOGITS.double())
    assert (first["label"], second["label"]) == (1, 0)
    assert (first["score"], second["score"]) == pytest.approx((0.5, 0.75))
    assert second["scores"].tolist() == pytest.approx([0.75, 0.125, 0.125])
    assert second["scores"].dtype == torch.float32
    assert class_scores(torch.zeros(0, 3)) == []
