# SPDX-License-Identifier: Apache-2.0
"""One ES-MoE block against measurements of the reference: same weights, same routes, same output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE
from tests.reference_weights import fill
from tests.strategies import EXECUTORS

FIXTURES = Path(__file__).parents[1] / "fixtures"
BLOCKS = ("block-e3-dense", "block-e4-k2")


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> tuple[ESMoE, dict[str, Tensor]]:
    """The layer with the reference's weights, and what the reference computed."""
    facts = json.loads((FIXTURES / f"{request.param}.json").read_text())
    num_experts = facts["num_experts"]
    layer = ESMoE(
        facts["in_channels"], facts["out_channels"], num_experts=num_experts, top_k=facts["top_k"] or num_experts
    ).eval()
    layer.load_state_dict(_reference_state(facts["state_dict"], layer))
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    with np.load(FIXTURES / f"{request.param}.npz") as arrays:
        return layer, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _reference_state(shapes: dict[str, list[int]], layer: ESMoE) -> dict[str, Tensor]:
    """Map the reference's entries onto the layer's, in order: only the router's 1x1 convolutions are reshaped."""
    state = {}
    for (name, own), (key, shape) in zip(layer.state_dict().items(), shapes.items(), strict=True):
        values = torch.from_numpy(fill(key, tuple(shape)))
        # The fixtures were made with this factor, so that the images choose different experts.
        state[name] = (values * 20 if key == "routing.routing_network.2.weight" else values).reshape(own.shape)
    return state


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_block_equals_reference(block: tuple[ESMoE, dict[str, Tensor]], dispatch: str) -> None:
    layer, measured = block
    layer.dispatch = dispatch
    with torch.inference_mode():
        y = layer(measured["x"])
    assert _relative_error(layer.routing.weights, measured["routing_weights"]) <= 1e-5
    assert _relative_error(y, measured["y"]) <= 1e-5


def test_images_of_the_fixture_choose_different_experts(block: tuple[ESMoE, dict[str, Tensor]]) -> None:
    _, measured = block
    chosen = measured["routing_weights"] > 0
    assert chosen.any(dim=0).all()
