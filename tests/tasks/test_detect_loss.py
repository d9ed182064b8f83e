# SPDX-License-Identifier: Apache-2.0
"""The detection task's loss on a whole network, and the contract of its targets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_vision import create_model
from moe_vision.models import YOLOMaster
from moe_vision.tasks import check_targets, detect_loss

Target = dict[str, Tensor]


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


EMPTY = target([], [])
ONE = target([[4.0, 4.0, 40.0, 50.0]], [2])
TWO = target([[4.0, 4.0, 40.0, 50.0], [30.0, 20.0, 60.0, 44.0]], [0, 1])


def crowd(count: int, size: int) -> Target:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * (size - 40)
    sides = 10 + 30 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": labels}


def make_model(**settings: Any) -> YOLOMaster:
    torch.manual_seed(0)
    return create_model("yolo_master_n", num_classes=3, **settings).train()


@pytest.mark.parametrize("dfl", [False, True])
@pytest.mark.parametrize(
    "targets", [[ONE, TWO], [ONE, EMPTY], [EMPTY, EMPTY]], ids=["objects", "one image without", "none"]
)
def test_every_trainable_parameter_gets_a_finite_gradient(targets: list[Target], dfl: bool) -> None:
    model = make_model(dfl=dfl)
    terms = detect_loss(model, model(torch.rand(2, 3, 64, 64)), targets)
    assert set(terms) == {"class", "box", "balance"} | ({"dfl"} if dfl else set())
    loss = sum(terms.values())
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_500_objects_in_an_image_train() -> None:
    model, size = make_model(), 320
    terms = detect_loss(model, model(torch.rand(2, 3, size, size)), [crowd(500, size), ONE])
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_more_objects_than_anchor_points_train() -> None:
    model = make_model()
    terms = detect_loss(model, model(torch.rand(1, 3, 64, 64)), [crowd(500, 64)])
    assert sum(terms.values()).isfinite()


def test_balance_is_weighted() -> None:
    model, images = make_model(), torch.rand(2, 3, 64, 64)
    maps = model(images)
    light, heavy = (detect_loss(model, maps, [ONE, TWO], balance=weight)["balance"] for weight in (0.1, 0.2))
    torch.testing.assert_close(heavy, 2 * light)
    assert light > 0.4 - 1e-4  # four layers, each at least 1 when balanced
    assert detect_loss(model, maps, [ONE, TWO], balance=0.0)["balance"] == 0


def test_a_few_steps_bring_the_loss_down() -> None:
    model, images = make_model(), torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        terms = detect_loss(model, model(images), [ONE, TWO])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append((terms["class"] + terms["box"]).item())
    assert min(losses[-3:]) < 0.7 * max(losses[:3]), losses


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([ONE], "targets must be one for each of the 2 images, got 1"),
        ([ONE, {"boxes": ONE["boxes"]}], r"targets\[1\] must have boxes and labels, got no labels"),
        ([{}, ONE], r"targets\[0\] must have boxes and labels, got no boxes, labels"),
        ([ONE, {**ONE, "labels": torch.tensor([1, 2])}], r"boxes \(M, 4\) and labels \(M,\), got \(1, 4\) and \(2,\)"),
        ([ONE, {**ONE, "boxes": torch.zeros(1, 5)}], r"got \(1, 5\) and \(1,\)"),
        ([ONE, {**EMPTY, "boxes": torch.zeros(0)}], r"got \(0,\) and \(0,\)"),
        ([ONE, {**ONE, "boxes": ONE["boxes"].double()}], r"targets\[1\]\['boxes'\] must be float32, got torch.float64"),
        ([ONE, {**ONE, "labels": torch.tensor([1.0])}], r"targets\[1\]\['labels'\] must be int64, got torch.float32"),
        ([ONE, {**ONE, "labels": torch.tensor([3])}], r"labels'\] must be in \[0, num_classes=3\), got 3"),
        ([ONE, {**ONE, "labels": torch.tensor([-1])}], r"labels'\] must be in \[0, num_classes=3\), got -1"),
        ([target([[4.0, 4.0, 4.0, 9.0]], [0]), ONE], r"targets\[0\]\['boxes'\] must be finite xyxy with x1 < x2"),
        ([target([[4.0, 9.0, 8.0, 4.0]], [0]), ONE], "y1 < y2, got"),
        ([target([[4.0, 4.0, float("nan"), 9.0]], [0]), ONE], "must be finite"),
        ([target([[4.0, 4.0, float("inf"), 9.0]], [0]), ONE], "must be finite"),
    ],
)
def test_targets_that_break_the_contract(targets: list[Target], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(targets, batch=2, num_classes=3)


def test_the_loss_checks_its_targets() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="one for each of the 1 images, got 2"):
        detect_loss(model, model(torch.rand(1, 3, 64, 64)), [ONE, ONE])
