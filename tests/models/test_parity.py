# SPDX-License-Identifier: Apache-2.0
"""The networks against measurements of the reference: same weights, same boxes, scores, masks and classes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_vision import ESMoE, create_model
from moe_vision.models import YOLOMaster
from moe_vision.tasks import class_scores
from tests.models.reference_detector import (
    FIXTURES,
    filled_by_rule,
    reference_detector,
    reference_facts,
    reference_network,
    relative_error,
)
from tests.strategies import EXECUTORS


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).random((1, 3, 96, 128), dtype=np.float32))


def measured(fixture: str) -> dict[str, Tensor]:
    with np.load(FIXTURES / f"{fixture}.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def dispatched(model: YOLOMaster, dispatch: str) -> YOLOMaster:
    layers = [module for module in model.modules() if isinstance(module, ESMoE)]
    assert len(layers) == (3 if model.config.block == "pointwise" else 4)
    for layer in layers:
        layer.dispatch = dispatch
    return model


def corners(boxes: Tensor) -> Tensor:
    """Turn centre, width and height, (4, N), into xyxy, (N, 4)."""
    x, y, width, height = boxes
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_boxes_and_scores_equal_the_reference(dispatch: str, images: Tensor) -> None:
    expected = measured("det-n")["out.0"][0]
    with torch.inference_mode():
        output = dispatched(reference_detector(), dispatch)(images)
    assert relative_error(output.boxes[0], corners(expected[:4])) <= 1e-4
    assert relative_error(output.scores[0], expected[4:].T) <= 1e-4


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_v0_1_equals_the_reference(dispatch: str, images: Tensor) -> None:
    model = filled_by_rule(create_model("yolo_master_n", variant="v0_1"), "v01-det-n")
    expected = measured("v01-det-n")["out.0"][0]
    with torch.inference_mode():
        output = dispatched(model, dispatch)(images)
    assert relative_error(output.boxes[0], corners(expected[:4])) <= 1e-4
    assert relative_error(output.scores[0], expected[4:].T) <= 1e-4


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_segmentation_equals_the_reference(dispatch: str, images: Tensor) -> None:
    model, expected = reference_network("segment", "seg-n"), measured("seg-n")
    with torch.inference_mode():
        output = dispatched(model, dispatch)(images)
    boxes, scores, coefficients = expected["out.0"][0].split([4, 80, 32])
    assert relative_error(output.boxes[0], corners(boxes)) <= 1e-4
    assert relative_error(output.scores[0], scores.T) <= 1e-4
    assert relative_error(output.coefficients[0], coefficients.T) <= 1e-4
    assert torch.equal(coefficients, expected["out.1.1"][0])
    assert relative_error(output.prototypes, expected["out.1.2"]) <= 1e-4


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_classification_equals_the_reference(dispatch: str, images: Tensor) -> None:
    model, expected = reference_network("classify", "cls-n"), measured("cls-n")
    with torch.inference_mode():
        logits = dispatched(model, dispatch)(images)
    # With these weights another image changes the logits by 2e-4 at most: closer than elsewhere.
    assert relative_error(logits, expected["out.1"]) <= 1e-5
    assert relative_error(class_scores(logits)[0]["scores"], expected["out.0"][0]) <= 1e-5


@pytest.mark.parametrize(
    ("fixture", "prefix", "settings"),
    [
        ("det-n", "out.1", {"variant": "esmoe"}),
        ("seg-n", "out.1.0", {"variant": "esmoe", "task": "segment"}),
        ("v01-det-n", "out.1", {"variant": "v0_1"}),
    ],
)
def test_raw_maps_equal_the_reference(fixture: str, prefix: str, settings: dict[str, str], images: Tensor) -> None:
    model, expected = filled_by_rule(create_model("yolo_master_n", **settings), fixture), measured(fixture)
    with torch.inference_mode():
        maps = model.head(model.neck(*model.backbone(images)))
    maps = maps.detection if fixture == "seg-n" else maps
    levels = [expected[f"{prefix}.{level}"].flatten(2)[0] for level in range(3)]  # 64 rows of sides, 80 of classes
    sides, scores = torch.cat(levels, dim=1).split([64, 80])
    assert relative_error(maps.sides[0].flatten(1), sides.T) <= 1e-4
    assert relative_error(maps.scores[0], scores.T) <= 1e-4


@pytest.mark.parametrize(
    ("task", "fixture", "count"), [("detect", "det-n", 811), ("segment", "seg-n", 873), ("classify", "cls-n", 470)]
)
def test_number_of_entries_equals_the_reference(task: str, fixture: str, count: int) -> None:
    # The fixed weights of the expectation are ours too, as bins.
    assert len(reference_network(task, fixture).state_dict()) == len(reference_facts(fixture)["state_dict"]) == count
