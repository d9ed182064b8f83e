# SPDX-License-Identifier: Apache-2.0
"""The layer as a whole: its arguments, and invariants I27 to I30 and I37."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_vision import ESMoE, Routing
from tests.contracts.layer import LayerContract
from tests.strategies import EXECUTORS, KINDS, assert_same, force_routing, freeze_norms, make_images, make_layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
@pytest.mark.parametrize("soft", ["masked", "straight_through"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_i27_training_evaluates_the_same_function(top_k: int, soft: str, dispatch: str, kind: str) -> None:
    layer = make_layer(expert=kind, dispatch=dispatch, soft=soft, top_k=top_k).double()
    x = make_images(5, 4, 7, 5, dtype=torch.float64)
    expected = layer(x)
    layer.train()
    freeze_norms(layer)
    assert_same(layer(x), expected)


def test_i27_relaxed_ends_in_the_same_function() -> None:
    layer, x = make_layer(soft="relaxed"), make_images(5, 4, 7, 5)
    expected = layer(x)
    layer.train()
    freeze_norms(layer)
    assert not torch.allclose(layer(x), expected, atol=1e-3)
    layer.gate.soft = "masked"  # the end of a schedule
    assert_same(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_i28_eval_changes_nothing(dispatch: str, kind: str) -> None:
    layer, x = make_layer(expert=kind, dispatch=dispatch), make_images(5, 4, 7, 5)
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], values) for name, values in after.items())


@settings(max_examples=15)
@given(kind=st.sampled_from(KINDS), top_k=st.integers(1, 5), order=st.permutations(range(5)))
def test_i29_order_of_the_experts_does_not_matter(kind: str, top_k: int, order: list[int]) -> None:
    settings = {"num_experts": 5, "top_k": top_k, "expert": kind}
    layer = make_layer(**settings).double()
    permuted = ESMoE(4, kernel_sizes=[3 + 2 * i for i in order], **settings).double().eval()
    permuted.router.load_state_dict(layer.router.state_dict())
    permuted.norm.load_state_dict(layer.norm.state_dict())
    with torch.no_grad():
        permuted.router.fc2.weight.copy_(layer.router.fc2.weight[order])
        permuted.router.fc2.bias.copy_(layer.router.fc2.bias[order])
    for position, index in enumerate(order):
        permuted.experts[position].load_state_dict(layer.experts[index].state_dict())
    x = make_images(6, 4, 7, 5, dtype=torch.float64)
    assert_same(permuted(x), layer(x))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
@pytest.mark.parametrize("top_k", [2, 3, 4])
def test_i30_identical_experts_are_one_expert(
    top_k: int, dispatch: str, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    layer = make_layer(kernel_sizes=[3] * 4, expert=kind, dispatch=dispatch, top_k=top_k).to(dtype)
    for expert in layer.experts:
        expert.load_state_dict(layer.experts[0].state_dict())
    x = make_images(5, 4, 7, 5, dtype=dtype)
    assert_same(layer(x), layer.act(layer.norm(layer.experts[0](x))), tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_i37_zero_input(dispatch: str, kind: str) -> None:
    layer, x = make_layer(expert=kind, dispatch=dispatch), torch.zeros(3, 4, 6, 6)
    y = layer(x)
    assert y.isfinite().all()
    assert torch.equal(y, layer(x))
    # Every product with the input vanishes: what is left is W2 SiLU(b1) + b2, for each image.
    router = layer.router
    bias_path = router.fc2(nn.functional.silu(router.fc1.bias)).expand(3, 4)
    torch.testing.assert_close(layer.routing.logits, bias_path)


def test_i34_empty_batch_trains_without_a_change_of_statistics() -> None:
    for dispatch in ("auto", *EXECUTORS):
        layer = make_layer(dispatch=dispatch).train()
        before = {name: values.clone() for name, values in layer.named_buffers() if "running" in name}
        layer(torch.empty(0, 4, 6, 6)).sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
        assert all(torch.equal(values, layer.get_buffer(name)) for name, values in before.items())


def test_shared_experts_teach_the_router_as_soon_as_they_differ() -> None:
    layer, x = ESMoE(4, init="shared").train(), make_images(8, 4, 6, 6)
    goal = make_images(8, 4, 6, 6, seed=1)

    def gradient() -> Tensor:
        layer.zero_grad()
        (layer(x) * goal).sum().backward()
        return layer.router.fc2.weight.grad.abs().max()

    assert gradient() < 1e-4
    with torch.no_grad():
        for expert in layer.experts:
            expert.conv_pw.weight.add_(torch.randn_like(expert.conv_pw.weight))
    assert gradient() > 1e-2


def test_output_literally() -> None:
    layer = ESMoE(1, num_experts=2, top_k=2, kernel_sizes=(1, 1), act_layer=nn.Identity, norm_layer=nn.Identity)
    force_routing(layer, [0.0, 1.0986123])  # log 3: the weights are 1/4 and 3/4
    with torch.no_grad():
        for expert, factor in zip(layer.experts, (10.0, 2.0), strict=True):
            expert.conv_dw.weight.fill_(factor)
            expert.conv_pw.weight.fill_(1.0)
    # (10 / 4 + 2 * 3 / 4) * 3 = 4 * 3.
    torch.testing.assert_close(layer(torch.full((1, 1, 2, 2), 3.0)), torch.full((1, 1, 2, 2), 12.0))


def test_residual_adds_the_input() -> None:
    x = make_images(3, 4, 6, 6)
    torch.testing.assert_close(make_layer(residual=True)(x), x + make_layer()(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_shared_expert_is_added_before_the_norm(dispatch: str, kind: str) -> None:
    layer, x = make_layer(shared_expert=True, expert=kind, dispatch=dispatch, stride=2), make_images(3, 4, 7, 6)
    y = layer(x)
    mixed = (layer.routing.weights[:, :, None, None, None] * layer.experts(x)).sum(dim=1)
    assert_same(y, layer.act(layer.norm(mixed + layer.shared_expert(x))))


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_depthwise_layer_is_linear_for_a_fixed_route(dispatch: str) -> None:
    layer, x = make_layer(expert="depthwise", dispatch=dispatch), make_images(3, 4, 6, 6)
    force_routing(layer, [0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(layer(-2 * x), -2 * layer(x))


def test_depthwise_layer_has_norm_and_activation_on_request() -> None:
    assert isinstance(ESMoE(4, expert="depthwise").norm, nn.Identity)
    assert isinstance(ESMoE(4, expert="depthwise", output_norm=True).norm, nn.BatchNorm2d)
    assert isinstance(ESMoE(4, output_norm=False).act, nn.Identity)


def test_default_kernel_sizes() -> None:
    assert ESMoE(4).experts.kernel_sizes == (3, 5, 7, 9)
    assert ESMoE(4, num_experts=6).experts.kernel_sizes == (3, 5, 7, 9, 11, 13)


def test_parameters_of_the_paper() -> None:
    # 64 channels, E = 3: router 64 * 8 + 8 + 8 * 3 + 3 = 547; experts 64 * (9 + 25 + 49) + 3 * (64^2 + 2 * 64) = 17984;
    # norm 2 * 64 = 128; 18659 together, as published.
    assert sum(p.numel() for p in ESMoE(64, num_experts=3).parameters()) == 18_659


def test_device_and_dtype_reach_every_parameter() -> None:
    layer = ESMoE(4, shared_expert=True, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


def test_routing_is_that_of_the_last_forward() -> None:
    layer = make_layer()
    assert layer.routing is None
    for batch in (3, 5):
        layer(make_images(batch, 4, 6, 6))
        assert isinstance(layer.routing, Routing)
        assert [values.shape for values in layer.routing] == [(batch, 4)] * 3 + [(batch, 2)]


class TestESMoE(LayerContract):
    factory = ESMoE
    arguments: ClassVar = {"in_channels": 2, "num_experts": 3, "top_k": 2}
    example_shape = (4, 2, 4, 3)
    bad_arguments = (
        ({"top_k": 6, "num_experts": 4}, r"top_k must be in \[1, num_experts=4\], got 6"),
        ({"top_k": 0}, r"top_k must be in \[1, num_experts=3\], got 0"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -2}, "out_channels must be at least 1, got -2"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ({"kernel_sizes": (3, 4, 5)}, r"kernel_sizes must be odd and positive, got 4 in \(3, 4, 5\)"),
        ({"kernel_sizes": (3, 5)}, r"kernel_sizes must name num_experts=3 sizes, got 2: \[3, 5\]"),
        ({"kernel_sizes": ()}, r"kernel_sizes must name num_experts=3 sizes, got 0"),
        ({"expert": "linear"}, "expert must be one of separable, depthwise, got 'linear'"),
        ({"soft": "hard"}, "soft must be one of masked, relaxed, straight_through, got 'hard'"),
        ({"dispatch": "sparse"}, "dispatch must be one of auto, dense, grouped, per_image, static, got 'sparse'"),
        ({"residual": True, "stride": 2}, "residual must be False unless stride is 1.*got stride=2"),
        ({"residual": True, "out_channels": 3}, "residual must be False unless.*out_channels=3"),
        ({"bias": True}, "bias must be False for separable experts"),
        ({"expert": "depthwise", "out_channels": 3}, "out_channels must equal in_channels=2"),
    )
    bad_inputs = (
        ((2, 4, 3), r"input must have shape \(B, C, H, W\), got 3 dimensions: \(2, 4, 3\)"),
        ((1, 3, 4, 3), r"input must have in_channels=2 channels, got 3: \(1, 3, 4, 3\)"),
    )
    cardinality = (
        ({}, (4, 2, 4, 3), (4, 2, 4, 3)),
        ({"out_channels": 5}, (1, 2, 7, 9), (1, 5, 7, 9)),
        ({"out_channels": 5, "stride": 2, "shared_expert": True}, (2, 2, 7, 4), (2, 5, 4, 2)),
        ({"stride": 3}, (2, 2, 7, 1), (2, 2, 3, 1)),
        ({"residual": True}, (0, 2, 4, 3), (0, 2, 4, 3)),
        ({"num_experts": 1, "top_k": 1}, (9, 2, 1, 1), (9, 2, 1, 1)),
    )

    def test_feature(self) -> None:
        # Each image gets the experts its router chooses, at their weights.
        layer, x = self.make().eval(), self.example()
        y = layer(x)
        logits = layer.router(x)
        for image in range(4):
            first, second = logits[image].topk(2).indices.tolist()
            weights = logits[image, [first, second]].softmax(dim=0)
            features: Tensor = weights[0] * layer.experts[first](x) + weights[1] * layer.experts[second](x)
            torch.testing.assert_close(y[image], layer.act(layer.norm(features))[image])


class TestDepthwiseESMoE(TestESMoE):
    """The contract again with linear experts."""

    arguments: ClassVar = {"in_channels": 2, "num_experts": 3, "top_k": 2, "expert": "depthwise", "bias": True}
    bad_arguments = (({"out_channels": 3}, "out_channels must equal in_channels=2"),)
    cardinality = (({"stride": 2}, (3, 2, 5, 4), (3, 2, 3, 2)),)
