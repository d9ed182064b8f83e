# SPDX-License-Identifier: Apache-2.0
"""What learns from what: I38, I39, I41, I44, I45. (The balance losses' own gradients are in losses/test_balance.)"""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_vision import ESMoE, auxiliary_loss, soft_top_k
from moe_vision._types import SoftMode
from tests.strategies import EXECUTORS, KINDS, Gating, force_routing, make_images, make_layer, separated_gatings

NORMALISED = get_args(SoftMode)


def gradients(layer: ESMoE, loss: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_i38_relaxed_trains_every_expert_and_every_logit(top_k: int, kind: str) -> None:
    layer = make_layer(expert=kind, soft="relaxed", top_k=top_k).double().train()
    y = layer(make_images(5, 4, 7, 5, dtype=torch.float64))
    layer.routing.logits.retain_grad()
    found = gradients(layer, (y * torch.randn_like(y)).sum())
    for index in range(4):
        assert all(found[name].any() for name in found if name.startswith(f"experts.{index}."))
    assert (layer.routing.logits.grad != 0).all()


@settings(max_examples=15)
@given(top_k=st.integers(2, 3), kind=st.sampled_from(KINDS), dispatch=st.sampled_from(EXECUTORS))
def test_i39_masked_leaves_unselected_logits_alone(top_k: int, kind: str, dispatch: str) -> None:
    layer = make_layer(expert=kind, top_k=top_k, dispatch=dispatch).double()
    y = layer(make_images(5, 4, 7, 5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), layer.routing.logits)
    chosen = torch.zeros(5, 4, dtype=torch.bool).scatter(1, layer.routing.indices, True)
    assert not gradient[~chosen].any()
    assert gradient[chosen].all()


@pytest.mark.parametrize("mode", NORMALISED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@given(gating=separated_gatings(min_k=2, scales=(0.1, 1.0)))
def test_i39_gradients_of_the_logits_sum_to_zero(
    dtype: torch.dtype, tolerance: float, mode: SoftMode, gating: Gating
) -> None:
    logits = gating.logits.to(dtype).requires_grad_()
    direction = torch.randn_like(logits)
    weights = soft_top_k(logits, gating.k, mode)
    (gradient,) = torch.autograd.grad((weights * direction).sum(), logits)
    total = gradient.sum(dim=1)
    # The cut of relaxed has gradients of both signs, 1 / (2 temperature) times larger than those of its softmax.
    scale = max(1.0, direction.abs().max().item()) * 4
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("mode", ["masked", "relaxed"])
@settings(max_examples=20)
@given(gating=separated_gatings(max_experts=6, scales=(0.1, 1.0)))
def test_i41_gradcheck_of_the_gate(mode: SoftMode, gating: Gating) -> None:
    logits = gating.logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_top_k(z, gating.k, mode), (logits,), atol=1e-6)


@pytest.mark.parametrize("soft", ["masked", "relaxed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", EXECUTORS)
def test_i41_gradcheck_of_the_layer(dispatch: str, kind: str, soft: SoftMode) -> None:
    layer = make_layer(2, num_experts=3, expert=kind, dispatch=dispatch, soft=soft).double()
    x = make_images(3, 2, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_i44_unselected_experts_have_gradients_of_zero(dispatch: str, kind: str) -> None:
    layer = make_layer(expert=kind, dispatch=dispatch).train()
    force_routing(layer, [0.0, 3.0, 1.0, 2.0])
    found = gradients(layer, layer(make_images(5, 4, 7, 5)).square().mean())
    for index, selected in enumerate([False, True, False, True]):
        assert all(found[name].any() == selected for name in found if name.startswith(f"experts.{index}."))


def test_i44_statistics_of_unselected_experts_stay() -> None:
    layer = make_layer(dispatch="grouped").train()
    force_routing(layer, [0.0, 3.0, 1.0, 2.0])
    before = [expert.norm.running_mean.clone() for expert in layer.experts]
    layer(make_images(5, 4, 7, 5))
    after = [expert.norm.running_mean for expert in layer.experts]
    changed = [not torch.equal(*means) for means in zip(before, after, strict=True)]
    assert changed == [False, True, False, True]


@pytest.mark.parametrize("weights", [{"balance": 0.0, "z": 0.0}, {"balance": 0.0}])
def test_i45_a_weight_of_zero_changes_no_gradient(weights: dict[str, Any]) -> None:
    layer, x = make_layer().train(), make_images(5, 4, 7, 5)
    expected = gradients(layer, layer(x).square().mean())
    task = layer(x).square().mean()
    actual = gradients(layer, task + auxiliary_loss(layer, **weights))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_auxiliary_loss_trains_the_router_alone() -> None:
    layer = make_layer().train()
    layer(make_images(5, 4, 7, 5))
    auxiliary_loss(layer, balance=1.0, z=1.0).backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {
        f"router.{name}" for name, _ in layer.router.named_parameters()
    }
    assert all(p.grad.any() for p in layer.router.parameters())
