# SPDX-License-Identifier: Apache-2.0
"""A gate with a bias on the selection, and the step that moves it (I50)."""

import copy
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_vision import BiasedTopKGate, ESMoE, TopKGate, create_model, update_selection_bias
from moe_vision.layers import keep_experts
from tests.contracts.layer import LayerContract
from tests.strategies import Gating, gatings, make_images, make_layer


def biased(k: int, bias: torch.Tensor) -> BiasedTopKGate:
    gate = BiasedTopKGate(k, len(bias))
    gate.bias.copy_(bias)
    return gate


@given(gatings(min_batch=1), st.floats(0, 3), st.integers(0, 100))
def test_the_bias_changes_the_selection_alone(gating: Gating, scale: float, seed: int) -> None:
    num_experts = gating.logits.shape[1]
    bias = scale * torch.randn(num_experts, generator=torch.Generator().manual_seed(seed))
    logits = gating.logits.clamp(-50, 50)
    routing = biased(gating.k, bias)(logits)
    assert torch.equal(routing.indices, TopKGate(gating.k)(logits + bias).indices)
    assert torch.equal(routing.probs, TopKGate(gating.k)(logits).probs)
    chosen = routing.probs.gather(1, routing.indices)
    expected = chosen if gating.k == 1 < num_experts else chosen / chosen.sum(dim=1, keepdim=True)
    torch.testing.assert_close(routing.weights.gather(1, routing.indices), expected, atol=1e-5, rtol=1e-4)


@given(gatings(min_batch=1))
def test_without_bias_it_is_the_plain_gate(gating: Gating) -> None:
    for actual, expected in zip(
        BiasedTopKGate(gating.k, gating.logits.shape[1])(gating.logits), TopKGate(gating.k)(gating.logits), strict=True
    ):
        assert torch.equal(actual, expected)


def test_a_step_by_hand() -> None:
    # Counts (3, 0, 1, 0) have the mean 1: signs (-1, 1, 0, 1), whose mean is 1/4.
    gate = BiasedTopKGate(1, 4)
    gate.move_bias(torch.tensor([3.0, 0.0, 1.0, 0.0]), rate=0.4)
    torch.testing.assert_close(gate.bias, torch.tensor([-0.5, 0.3, -0.1, 0.3]))


def test_steps_balance_a_router_that_prefers_one() -> None:
    torch.manual_seed(0)
    layer = ESMoE(4, num_experts=4, top_k=1)
    layer.gate = BiasedTopKGate(1, 4)
    layer.router.fc2.bias.data[2] = 1.0
    x = torch.randn(64, 4, 5, 5) * torch.rand(64, 4, 1, 1)
    shares = []
    for _ in range(300):
        layer(x)
        shares.append(layer.routing.selected.float().mean(dim=0))
        update_selection_bias(layer, rate=0.01)
    assert shares[0].max() > 0.9
    assert torch.stack(shares[-50:]).mean(dim=0).max() < 0.4
    assert layer.gate.bias.sum().abs() < 1e-5


def test_batches_of_a_step_count_together() -> None:
    layer, whole = (make_layer(num_experts=4, top_k=1) for _ in range(2))
    layer.gate, whole.gate = BiasedTopKGate(1, 4), BiasedTopKGate(1, 4)
    x = make_images(5, 4, 6, 6)
    layer(x[:2])
    record = {"": layer.routing}
    layer(x[2:])
    update_selection_bias(layer, others=[record])
    whole(x)
    update_selection_bias(whole)
    assert torch.equal(layer.gate.bias, whole.gate.bias)
    assert whole.gate.bias.any()


def test_it_stays_with_the_experts_that_are_kept_and_with_the_weights() -> None:
    layer = make_layer(num_experts=4, top_k=2)
    layer.gate = biased(2, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    twin = make_layer(num_experts=4, top_k=2)
    twin.gate = BiasedTopKGate(2, 4)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.gate.bias, layer.gate.bias)
    keep_experts(layer, [1, 3])
    torch.testing.assert_close(layer.gate.bias, torch.tensor([0.2, 0.4]))
    assert torch.equal(copy.deepcopy(layer).gate.bias, layer.gate.bias)


def test_networks_have_it_in_their_config() -> None:
    model = create_model("yolo_master_n", task="classify", num_classes=2, selection_bias=True)
    assert isinstance(model.backbone.stage2.moe.gate, BiasedTopKGate)
    with pytest.raises(ValueError, match="selection_bias must be False with top_p below 1"):
        create_model("yolo_master_n", selection_bias=True, top_p=0.5)


class TestContract(LayerContract):
    """The gate as a module."""

    factory = BiasedTopKGate
    arguments: ClassVar = {"top_k": 2, "num_experts": 4}
    example_shape = (3, 4)
    bad_arguments = (
        ({"top_k": 5}, r"top_k must be in \[1, num_experts=4\], got 5"),
        ({"num_experts": 0}, r"num_experts must be at least 1, got 0"),
    )
    bad_inputs = (((4,), r"logits must have shape \(B, E\), got \(4,\)"),)


@pytest.mark.parametrize(
    ("model", "rate", "message"),
    [
        (ESMoE(4), 0.1, "model must hold an ESMoE with a BiasedTopKGate, got a ESMoE without any"),
        (nn.Identity(), 0.1, "model must hold an ESMoE with a BiasedTopKGate"),
        (ESMoE(4), 0.0, "rate must be above 0, got 0.0"),
    ],
)
def test_bad_arguments(model: nn.Module, rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update_selection_bias(model, rate=rate)
