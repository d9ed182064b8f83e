# SPDX-License-Identifier: Apache-2.0
"""The detector against measurements of the reference: same weights, same boxes, same scores."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_vision import create_model
from tests.models.reference_detector import (
    FIXTURES,
    filled_by_rule,
    reference_detector,
    reference_facts,
    relative_error,
)
from tests.strategies import EXECUTORS


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).random((1, 3, 96, 128), dtype=np.float32))


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, Tensor]]:
    with np.load(FIXTURES / "det-n.npz") as arrays:
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_boxes_and_scores_equal_the_reference(dispatch: str, images: Tensor, measured: dict[str, Tensor]) -> None:
    model = reference_detector()
    for stage in (model.backbone.stage2, model.backbone.stage3, model.backbone.stage4, model.backbone.stage5):
        stage.moe.dispatch = dispatch
    with torch.inference_mode():
        output = model(images)
    x, y, width, height = measured["out.0"][0, :4]
    expected = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
    assert relative_error(output.boxes[0], expected) <= 1e-4
    assert relative_error(output.scores[0], measured["out.0"][0, 4:].T) <= 1e-4


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_v0_1_equals_the_reference(dispatch: str, images: Tensor) -> None:
    model = filled_by_rule(create_model("yolo_master_n", variant="v0_1"), "v01-det-n").eval()
    for stage in (model.backbone.stage3, model.backbone.stage4, model.backbone.stage5):
        stage.moe.dispatch = dispatch
    with np.load(FIXTURES / "v01-det-n.npz") as arrays:
        measured = torch.from_numpy(arrays["out.0"])[0]
    with torch.inference_mode():
        output = model(images)
    x, y, width, height = measured[:4]
    expected = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
    assert relative_error(output.boxes[0], expected) <= 1e-4
    assert relative_error(output.scores[0], measured[4:].T) <= 1e-4


def test_raw_maps_equal_the_reference(images: Tensor, measured: dict[str, Tensor]) -> None:
    model = reference_detector()
    with torch.inference_mode():
        maps = model.head(model.neck(*model.backbone(images)))
    levels = [measured[f"out.1.{level}"].flatten(2)[0] for level in range(3)]  # 64 rows of sides, 80 of classes
    sides, scores = torch.cat(levels, dim=1).split([64, 80])
    assert relative_error(maps.sides[0].flatten(1), sides.T) <= 1e-4
    assert relative_error(maps.scores[0], scores.T) <= 1e-4


def test_number_of_entries_equals_the_reference() -> None:
    # 811 entries: the fixed weights of the expectation are ours too, as head.bins.
    assert len(reference_detector().state_dict()) == len(reference_facts()["state_dict"]) == 811
