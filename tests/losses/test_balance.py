# SPDX-License-Identifier: Apache-2.0
"""Balance losses: literal values, the rescue of starved experts (I40), I46 to I49, and their sum over a model."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_vision import Routing, TopKGate, auxiliary_loss, load_balancing_loss, router_z_loss
from tests.strategies import Gating, gatings, make_images, make_layer, separated_gatings

KINDS = ("switch", "mse", "cv2")
ALL_KINDS = (*KINDS, "information")

# Four images and three experts, by their probabilities.
PROBABILITIES = [[0.5, 0.25, 0.25], [0.5, 0.125, 0.375], [0.125, 0.75, 0.125], [0.875, 0.0625, 0.0625]]


def route(logits: Tensor, k: int = 1) -> Routing:
    return TopKGate(k)(logits)


def route_probabilities(rows: list[list[float]], k: int = 1) -> Routing:
    return route(torch.tensor(rows, dtype=torch.float64).log(), k)


# P = (0.5 + 0.5 + 0.125 + 0.875, 0.25 + 0.125 + 0.75 + 0.0625, 0.25 + 0.375 + 0.125 + 0.0625) / 4
#   = (2, 1.1875, 0.8125) / 4 = (0.5, 0.296875, 0.203125).


def test_switch_literally() -> None:
    # K = 1: experts 0, 0, 1, 0 are best, f = (3, 1, 0) / 4; 3 (0.75 * 0.5 + 0.25 * 0.296875) = 1.34765625.
    assert load_balancing_loss(route_probabilities(PROBABILITIES)).item() == pytest.approx(1.34765625)
    # K = 2: {0, 1} (a tie, lowest index), {0, 2}, {1, 0} (a tie again), {0, 1}: f = (4, 3, 1) / 8;
    # 3 (0.5 * 0.5 + 0.375 * 0.296875 + 0.125 * 0.203125) = 3 * 0.38671875 = 1.16015625.
    assert load_balancing_loss(route_probabilities(PROBABILITIES, 2)).item() == pytest.approx(1.16015625)


def test_mse_literally() -> None:
    # P - 1/3 = (0.16666667, -0.03645833, -0.13020833); squares 0.02777778, 0.00132921, 0.01695421; mean 0.01535373.
    assert load_balancing_loss(route_probabilities(PROBABILITIES), "mse").item() == pytest.approx(0.01535373, rel=1e-6)


def test_cv2_literally() -> None:
    # 3 (0.25 + 0.0881347656 + 0.0412597656) - 1 = 3 * 0.3793945312 - 1 = 0.1381835938.
    assert load_balancing_loss(route_probabilities(PROBABILITIES), "cv2").item() == pytest.approx(0.1381835938)


def test_z_literally() -> None:
    # Rows of log 2 and of log 1, log 3: logsumexp is log 4 in both; (log 4)^2 = 1.386294^2 = 1.921812.
    logits = torch.tensor([[2.0, 2.0], [1.0, 3.0]]).log()
    assert router_z_loss(route(logits)).item() == pytest.approx(1.921812, rel=1e-6)
    # Rows with logsumexp log 4 and log 2: (1.921812 + 0.480453) / 2 = 1.201133.
    logits = torch.tensor([[2.0, 2.0], [1.0, 1.0]]).log()
    assert router_z_loss(route(logits)).item() == pytest.approx(1.201133, rel=1e-6)


@given(separated_gatings(min_k=2, scales=(0.1, 1.0)), st.sampled_from(KINDS))
def test_i40_the_least_used_expert_is_rescued(gating: Gating, kind: str) -> None:
    logits = gating.logits.requires_grad_()
    routing = route(logits, gating.k)
    counts = routing.indices.flatten().bincount(minlength=logits.shape[1])
    usage = counts.double() if kind == "switch" else routing.probs.mean(dim=0)
    assume((usage.max() - usage.min()) > 1e-6)
    (gradient,) = torch.autograd.grad(load_balancing_loss(routing, kind), logits)
    assert gradient.sum(dim=0)[usage.argmin()] < 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
def test_i40_an_expert_that_no_image_selects_is_rescued(soft: str, kind: str) -> None:
    # The last expert is never among the best two; a loss on the masked weights would give it no gradient at all.
    logits = torch.tensor([[2.0, 1.0, 1.5, -1.0], [1.0, 2.0, 1.2, -2.0], [0.5, 2.0, 2.5, -1.5]], requires_grad=True)
    routing = TopKGate(2, soft)(logits)
    (gradient,) = torch.autograd.grad(load_balancing_loss(routing, kind), logits)
    assert (gradient[:, 3] < 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(gating=gatings(min_batch=1))
def test_i46_mse_and_cv2_are_one_loss_in_two_scales(dtype: torch.dtype, tolerance: float, gating: Gating) -> None:
    routing = route(gating.logits.to(dtype), gating.k)
    num_experts = gating.logits.shape[1]
    usage = routing.probs.mean(dim=0)
    cv2 = load_balancing_loss(routing, "cv2").item()
    tolerance *= num_experts
    assert cv2 == pytest.approx(num_experts * usage.square().sum().item() - 1, abs=tolerance)
    assert cv2 == pytest.approx(num_experts**2 * load_balancing_loss(routing, "mse").item(), abs=tolerance)


@given(gatings(min_batch=1))
def test_i47_ranges_of_mse_and_cv2(gating: Gating) -> None:
    routing, num_experts = route(gating.logits, gating.k), gating.logits.shape[1]
    assert 0 <= load_balancing_loss(routing, "mse") <= (num_experts - 1) / num_experts**2 + 1e-14
    assert 0 <= load_balancing_loss(routing, "cv2") <= num_experts - 1 + 1e-12


@pytest.mark.parametrize("num_experts", [1, 2, 5, 16])
def test_i47_extremes_of_mse_and_cv2(num_experts: int) -> None:
    one_hot = torch.zeros(3, num_experts, dtype=torch.float64)
    one_hot[:, 0] = 1e4
    assert load_balancing_loss(route(one_hot), "mse").item() == pytest.approx((num_experts - 1) / num_experts**2)
    assert load_balancing_loss(route(one_hot), "cv2").item() == pytest.approx(num_experts - 1)
    # Uniform on average although no image is: the rows are cyclic shifts.
    cyclic = torch.stack([torch.arange(num_experts, dtype=torch.float64).roll(i) for i in range(num_experts)])
    for logits in (torch.zeros(3, num_experts, dtype=torch.float64), cyclic):
        for kind in ("mse", "cv2"):
            logits.requires_grad_()
            loss = load_balancing_loss(route(logits), kind)
            assert loss.item() == pytest.approx(0, abs=1e-14)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert gradient.isfinite().all()


@given(separated_gatings(min_k=2, scales=(0.1, 1.0)))
def test_i47_mse_is_positive_unless_uniform(gating: Gating) -> None:
    routing = route(gating.logits, gating.k)
    usage = routing.probs.mean(dim=0)
    assume(usage.max() - usage.min() > 1e-6)
    assert load_balancing_loss(routing, "mse") > 0


@given(gatings(min_batch=1))
def test_i48_range_of_switch(gating: Gating) -> None:
    bound = gating.logits.shape[1] / gating.k
    loss = load_balancing_loss(route(gating.logits, gating.k))
    assert 0 < loss <= bound * (1 + 1e-12)


@given(gatings(min_batch=1))
def test_i48_switch_of_one_image_is_at_least_one(gating: Gating) -> None:
    for image in gating.logits:
        assert load_balancing_loss(route(image[None], gating.k)) >= 1 - 1e-12


@pytest.mark.parametrize("k", [1, 2, 3])
def test_i48_switch_is_one_when_selections_or_probabilities_are_uniform(k: int) -> None:
    # Four cyclic shifts select each expert k times, with any probabilities.
    cyclic = torch.stack([torch.tensor([3.0, 1.0, 0.5, -1.0]).roll(i) for i in range(4)])
    assert load_balancing_loss(route(cyclic, k)).item() == pytest.approx(1, abs=1e-6)
    # Ties select the first k for every image, at uniform probabilities.
    assert load_balancing_loss(route(torch.zeros(5, 4), k)).item() == pytest.approx(1, abs=1e-6)


def test_i48_switch_can_be_below_one_for_several_images() -> None:
    # f = (2/3, 1/3): two images choose expert 0 narrowly, one chooses expert 1 by far.
    # P_0 = (0.51 + 0.51 + 0.01) / 3 = 0.343333; 2 (2/3 * 0.343333 + 1/3 * 0.656667) = 0.895556.
    routing = route_probabilities([[0.51, 0.49], [0.51, 0.49], [0.01, 0.99]])
    assert load_balancing_loss(routing).item() == pytest.approx(0.895556, rel=1e-5)


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(gating=separated_gatings(), data=st.data())
def test_i49_permutations_do_not_matter(kind: str, gating: Gating, data: st.DataObject) -> None:
    batch, num_experts = gating.logits.shape
    images = data.draw(st.permutations(range(batch)))
    experts = data.draw(st.permutations(range(num_experts)))
    permuted = route(gating.logits[images][:, experts], gating.k)
    routing = route(gating.logits, gating.k)
    assert load_balancing_loss(permuted, kind).item() == pytest.approx(load_balancing_loss(routing, kind).item())
    assert router_z_loss(permuted).item() == pytest.approx(router_z_loss(routing).item())


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(gating=separated_gatings(), shift=st.sampled_from([-100.0, 3.0, 37.0]))
def test_i49_shifted_logits_do_not_matter(kind: str, gating: Gating, shift: float) -> None:
    expected = load_balancing_loss(route(gating.logits, gating.k), kind).item()
    actual = load_balancing_loss(route(gating.logits + shift, gating.k), kind).item()
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("num_experts", [1, 2, 7, 16])
def test_i49_z_loss_pins_the_free_constant(num_experts: int) -> None:
    zeros = torch.zeros(3, num_experts, dtype=torch.float64)
    assert router_z_loss(route(zeros)).item() == pytest.approx(math.log(num_experts) ** 2)
    assert router_z_loss(route(zeros + 2)).item() == pytest.approx((math.log(num_experts) + 2) ** 2)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_i34_empty_batch_is_zero_and_connected(kind: str) -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    routing = route(logits, 2)
    loss = load_balancing_loss(routing, kind) + router_z_loss(routing)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
@given(gating=separated_gatings(min_k=2, max_experts=6, scales=(0.1, 1.0)))
def test_i41_gradcheck_of_the_losses(kind: str, gating: Gating) -> None:
    def losses(logits: Tensor) -> tuple[Tensor, Tensor]:
        routing = route(logits, gating.k)
        return load_balancing_loss(routing, kind), router_z_loss(routing)

    assert torch.autograd.gradcheck(losses, (gating.logits.requires_grad_(),), atol=1e-6)


@given(gatings(min_batch=1, scales=(0.1, 1.0, 10.0)))
def test_i50_information_is_between_none_and_all(gating: Gating) -> None:
    loss = load_balancing_loss(route(gating.logits, gating.k), "information").item()
    assert -math.log(gating.logits.shape[1]) - 1e-6 <= loss <= 1e-6


def test_i50_information_of_images_that_are_alike_or_sure() -> None:
    alike = torch.tensor([[1.0, 0.0, 0.0]] * 4)
    sure = 50 * torch.eye(3)
    assert load_balancing_loss(route(alike, 1), "information").item() == pytest.approx(0, abs=1e-6)
    assert load_balancing_loss(route(sure, 1), "information").item() == pytest.approx(-math.log(3), abs=1e-6)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind must be one of switch, mse, cv2, information, got 'entropy'"):
        load_balancing_loss(route(torch.zeros(1, 2)), "entropy")
    with pytest.raises(ValueError, match="kind must be one of switch, mse, cv2, information, got 'entropy'"):
        auxiliary_loss(make_layer(), kind="entropy")


def two_layers() -> nn.Sequential:
    return nn.Sequential(make_layer(seed=0), nn.Sequential(nn.ReLU(), make_layer(seed=1))).train()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_auxiliary_loss_sums_the_layers(kind: str) -> None:
    model = two_layers()
    model(make_images(5, 4, 7, 5))
    first, second = model[0].routing, model[1][1].routing
    balance = load_balancing_loss(first, kind) + load_balancing_loss(second, kind)
    z = router_z_loss(first) + router_z_loss(second)
    torch.testing.assert_close(auxiliary_loss(model, balance=0.5, z=0.25, kind=kind), 0.5 * balance + 0.25 * z)


def test_auxiliary_loss_by_default_is_a_hundredth_of_switch() -> None:
    layer = make_layer().train()
    layer(make_images(5, 4, 7, 5))
    torch.testing.assert_close(auxiliary_loss(layer), 0.01 * load_balancing_loss(layer.routing))


def test_auxiliary_loss_is_of_the_last_forward() -> None:
    layer, x = make_layer().train(), make_images(5, 4, 7, 5)
    layer(x)
    once = auxiliary_loss(layer).item()
    layer(x)
    assert auxiliary_loss(layer).item() == once
    assert auxiliary_loss(layer).item() == once


def test_auxiliary_loss_counts_a_shared_layer_once() -> None:
    layer = make_layer().train()
    model = nn.ModuleDict({"one": layer, "other": nn.Sequential(layer)})
    layer(make_images(5, 4, 7, 5))
    assert torch.equal(auxiliary_loss(model), auxiliary_loss(layer))


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 1), nn.Sequential()])
def test_auxiliary_loss_needs_a_layer(model: nn.Module) -> None:
    name = type(model).__name__
    with pytest.raises(ValueError, match=f"model must hold at least one ESMoE, got a {name} without any"):
        auxiliary_loss(model)


@pytest.mark.parametrize("run_first", [True, False])
def test_auxiliary_loss_needs_a_forward_of_every_layer(run_first: bool) -> None:
    model = two_layers()
    if run_first:
        model[0](make_images(5, 4, 7, 5))
    name = "1.1" if run_first else "0"
    with pytest.raises(ValueError, match=f"must have run a forward before auxiliary_loss, but ESMoE '{name}' has not"):
        auxiliary_loss(model)


@pytest.mark.parametrize("settings", [{}, {"balance": 0.0, "z": 1.0}, {"balance": 0.0}])
def test_auxiliary_loss_can_be_read_in_validation(settings: dict[str, Any]) -> None:
    layer = make_layer()
    with torch.no_grad():
        layer(make_images(5, 4, 7, 5))
        assert auxiliary_loss(layer, **settings).isfinite()


def test_auxiliary_loss_of_a_frozen_router() -> None:
    layer = make_layer().train()
    layer.router.requires_grad_(False)
    layer(make_images(5, 4, 7, 5))
    assert not auxiliary_loss(layer).requires_grad
