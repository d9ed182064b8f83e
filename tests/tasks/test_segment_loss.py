# SPDX-License-Identifier: Apache-2.0
"""The segmentation task's loss on a whole network, and the contract of its targets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_vision import create_model
from moe_vision.losses.assign import assign_batch
from moe_vision.losses.segmentation import mask_loss
from moe_vision.models import SegmentMaps, YOLOMaster
from moe_vision.tasks import detect_loss, segment_loss

Target = dict[str, Tensor]


def discs(circles: list[tuple[float, float, float]], size: int = 64) -> Target:
    """Discs of (x, y, radius), all of class 1."""
    x, y = torch.arange(size) + 0.5, torch.arange(size)[:, None] + 0.5
    masks = [(x - cx) ** 2 + (y - cy) ** 2 < radius**2 for cx, cy, radius in circles]
    boxes = [[cx - radius, cy - radius, cx + radius, cy + radius] for cx, cy, radius in circles]
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.ones(len(circles), dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, size, size, dtype=torch.bool),
    }


ONE, TWO, EMPTY = discs([(20.0, 24.0, 12.0)]), discs([(40.0, 20.0, 14.0), (18.0, 44.0, 12.0)]), discs([])


def make_model(**settings: Any) -> YOLOMaster:
    torch.manual_seed(0)
    return create_model("yolo_master_n", task="segment", num_classes=3, **settings).train()


@pytest.mark.parametrize("dfl", [False, True])
@pytest.mark.parametrize("targets", [[TWO, EMPTY], [EMPTY, EMPTY]], ids=["one image without", "none"])
def test_every_trainable_parameter_gets_a_finite_gradient(targets: list[Target], dfl: bool) -> None:
    model = make_model(dfl=dfl)
    terms = segment_loss(model, model(torch.rand(2, 3, 64, 64)), targets)
    assert set(terms) == {"class", "box", "mask", "balance"} | ({"dfl"} if dfl else set())
    assert (terms["mask"] > 0) == any(len(target["labels"]) for target in targets)
    sum(terms.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_other_terms_are_those_of_detection() -> None:
    model = make_model(dfl=True)
    maps = model(torch.rand(2, 3, 64, 64))
    dot = discs([(40.0, 20.0, 14.0), (7.0, 7.0, 0.9)])  # its point is the nearest of stride 8, not (8, 8) of stride 16
    terms = segment_loss(model, maps, [ONE, dot], balance=0.1)
    del terms["mask"]
    assert terms == detect_loss(model, maps.detection, [ONE, dot], balance=0.1)
    dense = make_model(placement="none")
    assert "balance" not in segment_loss(dense, dense(torch.rand(1, 3, 64, 64)), [ONE])


def test_a_few_steps_bring_the_mask_loss_down() -> None:
    model, images = make_model(), torch.rand(2, 3, 64, 64) * 0.5
    for image, target in zip(images, (ONE, TWO), strict=True):
        image[:, target["masks"].any(dim=0)] += 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        maps = model(images)
        terms = segment_loss(model, maps, [ONE, TWO])
        losses.append(mean_mask_loss(maps, [ONE, TWO]))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.6 * max(losses[:3]), losses


def mean_mask_loss(maps: SegmentMaps, targets: list[Target]) -> float:
    """Binary cross-entropy of a mask's cell, the same for points of any quality."""
    boxes, scores, points = maps.detection.boxes, maps.detection.scores, maps.detection.points
    assigned = assign_batch(boxes, scores, points, targets)
    even = assigned._replace(quality=torch.ones_like(assigned.quality))
    return mask_loss(maps.coefficients, maps.prototypes, targets, even).item() / 7.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, r"targets\[1\] must have masks beside boxes and labels, got no masks"),
        ({"masks": ONE["masks"][0]}, r"targets\[1\]\['masks'\] must be one for .*, \(1, 64, 64\), got \(64, 64\)"),
        ({"masks": TWO["masks"]}, r"\(1, 64, 64\), got \(2, 64, 64\)"),
        ({"masks": ONE["masks"][:, ::4, ::4]}, r"of the size of the network's input, \(1, 64, 64\), got \(1, 16, 16\)"),
        ({"masks": ONE["masks"].float()}, r"targets\[1\]\['masks'\] must be bool or uint8, got torch.float32"),
        ({"labels": torch.tensor([3])}, r"targets\[1\]\['labels'\] must be in \[0, num_classes=3\), got 3"),
    ],
)
def test_targets_that_break_the_contract(change: dict[str, Any], message: str) -> None:
    model = make_model()
    target = {name: part for name, part in {**ONE, **change}.items() if part is not None}
    with pytest.raises(ValueError, match=message):
        segment_loss(model, model(torch.rand(2, 3, 64, 64)), [ONE, target])
