# SPDX-License-Identifier: Apache-2.0
"""The detection loss, with the arithmetic by hand."""

import math

import pytest
import torch
from torch import Tensor

from moe_vision.losses.detection import detection_loss, distribution_focal_loss

HALF = 0.465502  # CIoU of [0, 0, 16, 16] with its upper half, see test_assign.py
UPPER, WHOLE = [0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0]
OBJECT = {"boxes": torch.tensor([WHOLE]), "labels": torch.tensor([0])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def one_point(boxes: list[list[float]], logit: float = 0.0) -> tuple[Tensor, ...]:
    """Raw maps of one image for each box, with a single anchor point at (8, 4), one class and even sides."""
    batch = len(boxes)
    return (
        torch.zeros(batch, 1, 4, 4),
        torch.tensor(boxes)[:, None],
        torch.full((batch, 1, 1), logit),
        torch.tensor([[8.0, 4.0]]),
        torch.tensor([8.0]),
    )


def test_terms_of_one_point() -> None:
    terms = detection_loss(*one_point([UPPER]), [OBJECT], dfl=True)
    # The point's quality is HALF; the sum of qualities counts as at least 1.
    # class: BCE of probability 1/2 is log 2 whatever the target: 0.5 * 0.693147 = 0.346574
    # box: 7.5 * (1 - HALF) * HALF = 1.866074
    # dfl: even bins, log 4 for any distance: 1.5 * 1.386294 * HALF = 0.967984
    assert terms["class"].item() == pytest.approx(0.346574, rel=1e-5)
    assert terms["box"].item() == pytest.approx(1.866074, rel=1e-5)
    assert terms["dfl"].item() == pytest.approx(0.967984, rel=1e-5)


def test_terms_are_divided_by_the_sum_of_qualities_of_the_batch() -> None:
    terms = detection_loss(*one_point([UPPER, WHOLE, WHOLE]), [OBJECT] * 3)
    total = HALF + 1 + 1  # the exact boxes have quality 1 and no box loss
    assert terms["class"].item() == pytest.approx(0.5 * 3 * math.log(2) / total, rel=1e-5)
    assert terms["box"].item() == pytest.approx(7.5 * (1 - HALF) * HALF / total, rel=1e-5)


def test_target_of_the_class_is_the_quality() -> None:
    logit = 2.0
    terms = detection_loss(*one_point([UPPER], logit), [OBJECT])
    p = 1 / (1 + math.exp(-logit))
    bce = -(HALF * math.log(p) + (1 - HALF) * math.log(1 - p))
    assert terms["class"].item() == pytest.approx(0.5 * bce, rel=1e-5)
    assert "dfl" not in terms


def test_a_right_prediction_costs_nothing() -> None:
    terms = detection_loss(*one_point([WHOLE], logit=50.0), [OBJECT])
    assert terms["class"].item() == pytest.approx(0, abs=1e-6)
    assert terms["box"].item() == pytest.approx(0, abs=1e-5)


def test_labels_pick_their_class_alone() -> None:
    sides, boxes, _, points, strides = one_point([WHOLE])
    scores = torch.tensor([[[-50.0, 50.0, -50.0]]])
    target = {"boxes": OBJECT["boxes"], "labels": torch.tensor([1])}
    assert detection_loss(sides, boxes, scores, points, strides, [target])["class"] < 1e-6
    other = {"boxes": OBJECT["boxes"], "labels": torch.tensor([2])}
    assert detection_loss(sides, boxes, scores, points, strides, [other])["class"] > 10


def test_a_batch_without_objects_costs_its_false_scores() -> None:
    maps = [part.requires_grad_() for part in one_point([UPPER, UPPER])]
    terms = detection_loss(*maps, [EMPTY, EMPTY], dfl=True)
    # Two points with probability 1/2 and target 0, over a sum of qualities that counts as 1.
    assert terms["class"].item() == pytest.approx(0.5 * 2 * math.log(2), rel=1e-6)
    assert terms["box"].item() == terms["dfl"].item() == 0
    sum(terms.values()).backward()
    for part in maps[:3]:  # a gradient, even of zeros: ranks of a distributed run must agree on what they average
        assert part.grad is not None
        assert part.grad.isfinite().all()


def test_distribution_focal_loss_literally() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    # 1.25 lies between bins 1 and 2: -(0.75 log 0.2 + 0.25 log 0.3) = 1.508072; 2: -log 0.3 = 1.203973;
    # 0: -log 0.1 = 2.302585; 2.5: -(log 0.3 + log 0.4) / 2 = 1.060132; mean 1.518690
    distances = torch.tensor([[1.25, 2.0, 0.0, 2.5]])
    loss = distribution_focal_loss(probabilities.log().expand(1, 4, 4), distances)
    assert loss.tolist() == pytest.approx([1.518690], rel=1e-5)


def test_distances_beyond_the_bins_are_clamped() -> None:
    sides = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 4, 4)
    # 7 counts as 2.99: -(0.01 log 0.3 + 0.99 log 0.4) = 0.919167; -3 as 0: 2.302585
    loss = distribution_focal_loss(sides, torch.tensor([[7.0, 7.0, -3.0, -3.0]]))
    assert loss.tolist() == pytest.approx([(0.919167 + 2.302585) / 2], rel=1e-5)


def test_distances_are_measured_in_strides_from_the_point() -> None:
    sides, boxes, scores, points, strides = one_point([WHOLE])
    # From (8, 4) to the sides of WHOLE, in strides of 8: left 1, top 0.5, right 1, bottom 1.5.
    for side, (low, high) in enumerate([(1, 1), (0, 1), (1, 1), (1, 2)]):
        sides[0, 0, side] = -50.0
        sides[0, 0, side, [low, high]] = 0.0
    terms = detection_loss(sides, boxes, scores, points, strides, [OBJECT], dfl=True)
    # Sides on a bin cost 0, sides half-way cost log 2 each: 1.5 * (2 / 4) * log 2, times the quality 1.
    assert terms["dfl"].item() == pytest.approx(1.5 * 0.5 * math.log(2), rel=1e-5)
