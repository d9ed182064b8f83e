# SPDX-License-Identifier: Apache-2.0
"""A gate whose images decide how many experts they need."""

import copy
from random import Random
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_vision import ESMoE, Routing, TopPGate, auxiliary_loss, expert_budget_loss
from moe_vision.diagnostics import RoutingMonitor
from tests.contracts.layer import LayerContract
from tests.strategies import EXECUTORS, KINDS, Gating, assert_same, gatings, make_images, make_layer, separated_gatings

ps = st.sampled_from([0.05, 0.3, 0.5, 0.75, 0.9, 1.0])


@given(gatings(), ps, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_weights_of_any_logits(gating: Gating, p: float, dtype: torch.dtype) -> None:
    routing = TopPGate(p, gating.k)(gating.logits.to(dtype))
    assert (routing.weights >= 0).all()
    torch.testing.assert_close(
        routing.weights.sum(dim=1), torch.ones(len(gating.logits)).to(routing.weights), atol=1e-6, rtol=0
    )
    assert routing.indices.shape == (len(gating.logits), gating.k)
    counts = routing.selected.sum(dim=1)
    assert ((counts >= 1) & (counts <= gating.k)).all()
    # The experts with a weight are the first of the list, and no other has one.
    places = routing.selected.gather(1, routing.indices)
    assert (places.int().diff(dim=1) <= 0).all()
    assert torch.equal(places.sum(dim=1), (routing.weights != 0).sum(dim=1))


@given(separated_gatings(scales=(0.1, 1.0)), ps)
def test_fewest_experts_that_reach_p(gating: Gating, p: float) -> None:
    probabilities = gating.logits.softmax(dim=1)
    counts = TopPGate(p, gating.k)(gating.logits).selected.sum(dim=1).tolist()
    for row, count in zip(probabilities, counts, strict=True):
        reached = row.sort(descending=True).values.cumsum(dim=0)
        assume((reached - p).abs().min() > 1e-9)
        fewest = int((reached < p).sum()) + 1
        assert count == min(fewest, gating.k)


@given(separated_gatings(min_k=2), ps, st.randoms())
def test_the_names_of_the_experts_do_not_matter(gating: Gating, p: float, random: Random) -> None:
    order = random.sample(range(gating.logits.shape[1]), gating.logits.shape[1])
    gate = TopPGate(p, gating.k)
    torch.testing.assert_close(
        gate(gating.logits[:, order]).weights, gate(gating.logits).weights[:, order], atol=1e-12, rtol=0
    )


@given(gatings(min_batch=1), ps)
def test_training_and_inference_are_one_function(gating: Gating, p: float) -> None:
    gate = TopPGate(p, gating.k)
    trained = gate.train()(gating.logits)
    for name, value in gate.eval()(gating.logits)._asdict().items():
        assert torch.equal(value, getattr(trained, name)), name


@pytest.mark.parametrize("step", [1e-4, 1e-6])
def test_an_expert_comes_and_goes_with_weight_zero(step: float) -> None:
    # At (0.6, 0.3, 0.1) the first reaches p = 0.6 just so: a little less, and the second takes part.
    probabilities = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    move = step * torch.tensor([[1.0, -0.5, -0.5]], dtype=torch.float64)
    gate = TopPGate(0.6, 3)
    more, fewer = (gate((probabilities + sign * move).log()) for sign in (-1, 1))
    assert (more.selected.sum(), fewer.selected.sum()) == (2, 1)
    assert (more.weights - fewer.weights).abs().max() < 4 * step


def test_extremes() -> None:
    gate = TopPGate(0.9, 2)
    routing = gate(torch.tensor([[1e30, 0.0, -1e30], [float("nan"), 0.0, 1.0], [float("inf"), 0.0, 0.0]]))
    assert routing.weights[0].tolist() == routing.weights[2].tolist() == [1, 0, 0]
    assert routing.weights[1].isnan().any()
    assert gate(torch.zeros(0, 3)).weights.shape == (0, 3)


def calls_of(experts: nn.ModuleList) -> list[int]:
    """Count, from now on, the images that each expert runs on."""
    counts = [0] * len(experts)

    def count(index: int) -> None:
        experts[index].register_forward_pre_hook(
            lambda _m, inputs: counts.__setitem__(index, counts[index] + len(inputs[0]))
        )

    for index in range(len(experts)):
        count(index)
    return counts


@given(st.sampled_from(KINDS), st.integers(1, 4), st.sampled_from([0.4, 0.7, 0.95]), st.integers(0, 50))
@settings(max_examples=12)
def test_executors_agree_and_run_what_is_needed(kind: str, max_k: int, p: float, seed: int) -> None:
    layer = make_layer(num_experts=4, expert=kind, seed=seed)
    layer.gate = TopPGate(p, max_k)
    x = make_images(5, 4, 6, 5, seed=seed)
    layer.dispatch = "dense"
    expected = layer(x)
    needed = layer.routing.selected.sum(dim=0).tolist()
    for dispatch in (*EXECUTORS[1:], "auto"):
        layer.dispatch = dispatch
        assert_same(layer(x), expected)
    for dispatch in ("grouped", "per_image"):
        sparse = copy.deepcopy(layer)
        sparse.dispatch = dispatch
        counts = calls_of(sparse.experts)
        sparse(x)
        if dispatch == "per_image" or len(set(map(tuple, sparse.routing.selected.tolist()))) > 1:
            assert counts == needed


def test_images_with_all_experts_allowed_still_run_the_fewest() -> None:
    layer = make_layer(num_experts=4)
    layer.gate = TopPGate(0.5, max_k=4)
    with torch.no_grad():
        layer.router.fc2.weight.zero_()
        layer.router.fc2.bias.copy_(torch.tensor([9.0, 0, 0, 0]))
    counts = calls_of(layer.experts)
    layer(make_images(3, 4, 6, 5))
    assert counts == [3, 0, 0, 0]


def test_the_budget_moves_images_to_the_target() -> None:
    gate = TopPGate(0.7, max_k=4)
    for logits, target in (([2.0, 0.5, 0.1, 0.0], 3.0), ([0.2, 0.1, 0.1, 0.0], 1.0)):
        z = torch.tensor([logits], requires_grad=True)
        loss = expert_budget_loss(gate(z), gate, target)
        (gradient,) = torch.autograd.grad(loss, z)
        # More experts are needed where the best is less likely.
        assert (gradient[0, 0] > 0) == (target == 3.0)
    exact = gate(torch.tensor([[9.0, 0, 0, 0], [0.0, 0, 0, 0]], requires_grad=True))
    assert expert_budget_loss(exact, gate, 2.0).item() == 0  # one and three


def test_a_training_holds_the_mean_and_is_watched() -> None:
    torch.manual_seed(0)
    layer = ESMoE(4, num_experts=4, top_k=2)
    layer.gate = TopPGate(0.7, max_k=4)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    labels = torch.arange(32) % 4
    with RoutingMonitor(model) as monitor:
        for step in range(60):
            if step == 50:
                monitor.start_epoch()
            images = torch.rand(32, 4, 6, 6) + 2 * F.one_hot(labels, 4)[:, :, None, None]
            loss = F.cross_entropy(model(images), labels)
            loss = loss + auxiliary_loss(layer, balance=0.1, budget=1.0, budget_experts=1.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert monitor.summary()["0"].experts_per_image == pytest.approx(1.5, abs=0.35)


class TestContract(LayerContract):
    """The gate as a module."""

    factory = TopPGate
    arguments: ClassVar = {"p": 0.7, "max_k": 3}
    example_shape = (3, 4)
    bad_arguments = (
        ({"p": 0.0}, r"p must be in \(0, 1\], got 0.0"),
        ({"p": 1.5}, r"p must be in \(0, 1\], got 1.5"),
        ({"max_k": 0}, r"max_k must be at least 1, got 0"),
    )
    bad_inputs = (
        ((4,), r"logits must have shape \(B, E\), got \(4,\)"),
        ((3, 2), r"max_k must be in \[1, num_experts=2\], got 3"),
    )
    cardinality = (({"max_k": 1}, (1, 1), (1, 1)), ({"max_k": 16}, (9, 16), (9, 16)), ({}, (0, 4), (0, 4)))

    @staticmethod
    def features(output: Routing) -> Tensor:
        return output.weights

    def test_feature(self) -> None:
        routing = self.make()(torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log())
        # 0.6 and 0.1 of 0.2 reach 0.7.
        torch.testing.assert_close(routing.weights, torch.tensor([[6 / 7, 1 / 7, 0, 0]]))
        assert routing.indices.tolist() == [[0, 1, 2]]
