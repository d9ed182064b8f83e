# SPDX-License-Identifier: Apache-2.0
"""Networks with the weights of the reference measurements: random, but with life in every layer."""

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
    """Build the released detector in eval and fill it by rule."""
    return reference_network("detect", "det-n", **settings)


def reference_network(task: str, fixture: str, **settings: Any) -> YOLOMaster:
    """Build the released network of a task in eval and fill it by rule."""
    return filled_by_rule(create_model("yolo_master_n", task=task, **{**RELEASED, **settings}), fixture)


def filled_by_rule(model: YOLOMaster, fixture: str) -> YOLOMaster:
    """Fill a network with the weights of a fixture, the entries of both in the same order."""
    shapes = {key: tuple(shape) for key, shape in reference_facts(fixture)["state_dict"].items() if "dfl" not in key}
    own = model.state_dict()
    bins = {name: own.pop(name) for name in list(own) if name.endswith(".bins")}  # fixed in both
    state = {
        name: torch.from_numpy(fill(key, shape)).reshape(tensor.shape)
        for (name, tensor), (key, shape) in zip(own.items(), shapes.items(), strict=True)
    }
    model.load_state_dict({**state, **bins})
    return model.eval()


@cache
def reference_facts(fixture: str = "det-n") -> dict[str, Any]:
    return json.loads((FIXTURES / f"{fixture}.json").read_text())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def busy_detector() -> YOLOMaster:
    """Build a detector that finds small boxes everywhere in images of 64 pixels; an image selects 2 of 3 experts."""
    return _busy(reference_detector(top_k=2))


def busy_segmenter() -> YOLOMaster:
    """Build its like that finds masks in the boxes too, with outlines of their own."""
    model = _busy(reference_network("segment", "seg-n", top_k=2))
    norm = model.head.prototypes[-1].norm.train()
    norm.momentum = 1.0
    with torch.no_grad():  # the last norm of the prototypes takes its statistics from noise: they vary in an image
        model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def _busy(model: YOLOMaster) -> YOLOMaster:
    model.image_size = 64
    head = model.head.detection if model.config.task == "segment" else model.head
    with torch.no_grad():
        for tower in head.box_towers:
            # Probabilities that fall by e a bin: sides of about 0.6 strides.
            tower[-1].bias.copy_(-torch.arange(16.0).repeat(4))
    return model
