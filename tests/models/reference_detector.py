# SPDX-License-Identifier: Apache-2.0
"""A detector with the weights of the reference measurements: random, but with life in every layer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_vision import create_model
from moe_vision.models import YOLOMaster
from tests.reference_weights import fill

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELEASED = {"num_experts": 3, "top_k": 3, "kernel_sizes": (3, 5, 7)}


def reference_detector(**settings: Any) -> YOLOMaster:
    """Build the released network in eval and fill it by rule."""
    return filled_by_rule(create_model("yolo_master_n", **{**RELEASED, **settings}), "det-n")


def filled_by_rule(model: YOLOMaster, fixture: str) -> YOLOMaster:
    """Fill a network with the weights of a fixture, the entries of both in the same order."""
    shapes = {key: tuple(shape) for key, shape in reference_facts(fixture)["state_dict"].items() if "dfl" not in key}
    own = {name: tensor for name, tensor in model.state_dict().items() if name != "head.bins"}
    state = {
        name: torch.from_numpy(fill(key, shape)).reshape(tensor.shape)
        for (name, tensor), (key, shape) in zip(own.items(), shapes.items(), strict=True)
    }
    model.load_state_dict({**state, "head.bins": model.head.bins})
    return model.eval()


@cache
def reference_facts(fixture: str = "det-n") -> dict[str, Any]:
    return json.loads((FIXTURES / f"{fixture}.json").read_text())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def busy_detector() -> YOLOMaster:
    """Build a detector that finds small boxes everywhere in images of 64 pixels; an image selects 2 of 3 experts."""
    model = reference_detector(top_k=2)
    model.image_size = 64
    with torch.no_grad():
        for tower in model.head.box_towers:
            # Probabilities that fall by e a bin: sides of about 0.6 strides.
            tower[-1].bias.copy_(-torch.arange(16.0).repeat(4))
    return model
