# SPDX-License-Identifier: Apache-2.0
"""Executors: one function, whichever experts run (I24 to I26, I31, I34, I35), and which experts those are."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_vision import ESMoE, Routing, TopKGate
from moe_vision.layers import dispatch
from tests.strategies import (
    EXECUTORS,
    KINDS,
    TOLERANCE,
    assert_same,
    count_calls,
    feature_map_shapes,
    force_routing,
    freeze_norms,
    layer_settings,
    make_images,
    make_layer,
)

MODES = ("auto", *EXECUTORS)
SPARSE = ("grouped", "per_image", "static")
SELECTIVE = ("auto", "grouped", "per_image")  # do not touch unselected experts, whatever their kind


def run(layer: ESMoE, x: Tensor, mode: str) -> Tensor:
    layer.dispatch = mode
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("mode", ["auto", *SPARSE])
@settings(max_examples=20)
@given(layer=layer_settings(), shape=feature_map_shapes(), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_i26_i35_executors_equal_dense(
    mode: str, layer: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    esmoe = make_layer(**layer).to(dtype)
    x = make_images(*shape, dtype=dtype)
    assert_same(run(esmoe, x, mode), run(esmoe, x, "dense"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_experts", range(1, 7))
def test_i26_every_k(num_experts: int, kind: str) -> None:
    x = make_images(9, 4, 7, 5)
    for k in range(1, num_experts + 1):
        layer = make_layer(num_experts=num_experts, top_k=k, expert=kind)
        expected = run(layer, x, "dense")
        for mode in ("auto", *SPARSE):
            assert_same(run(layer, x, mode), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", SPARSE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_i26_half_precision(dtype: torch.dtype, mode: str, kind: str) -> None:
    layer = make_layer(8, expert=kind)
    x = make_images(9, 8, 7, 5)
    exact = run(layer, x, "dense")
    layer, x = layer.to(dtype), x.to(dtype)
    expected = run(layer, x, "dense")
    assert_same(run(layer, x, mode), expected)
    assert_same(expected, exact.to(dtype), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_i36_autocast(mode: str, kind: str) -> None:
    layer, x = make_layer(8, expert=kind, bias=kind == "depthwise"), make_images(9, 8, 7, 5)
    exact = run(layer, x, "dense")
    with torch.autocast("cpu", torch.bfloat16):
        y = run(layer, x, mode)
    assert y.dtype == torch.bfloat16
    assert {values.dtype for values in layer.routing[:3]} == {torch.float32}
    assert_same(y.float(), exact, 3e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_i36_autocast_trains(mode: str, kind: str) -> None:
    layer, x = make_layer(8, expert=kind, dispatch=mode).train(), make_images(9, 8, 7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("soft", ["relaxed", "straight_through"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_soft_gates_reach_hard_experts_in_eval(mode: str, kind: str, soft: str) -> None:
    x = make_images(5, 4, 7, 5)
    expected = run(make_layer(expert=kind), x, "dense")
    assert_same(run(make_layer(expert=kind, soft=soft), x, mode), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_relaxed_training_mixes_every_expert(kind: str) -> None:
    layer, x = make_layer(expert=kind, soft="relaxed", output_norm=False), make_images(5, 4, 7, 5)
    freeze_norms(layer.train())
    y = layer(x)
    expected = (layer.routing.weights[:, :, None, None, None] * layer.experts(x)).sum(dim=1)
    assert (layer.routing.weights > 0).all()
    assert_same(y, expected)


@pytest.mark.parametrize("mode", ["auto", *SPARSE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
def test_i26_executors_equal_dense_in_training(soft: str, kind: str, mode: str) -> None:
    """With the statistics of the norms frozen; a batch norm that sees fewer images is another function."""
    x = make_images(5, 4, 7, 5, dtype=torch.float64)
    results = {}
    for dispatch_mode in (mode, "dense"):
        layer = make_layer(expert=kind, soft=soft, dispatch=dispatch_mode).double().train()
        freeze_norms(layer)
        y = layer(x)
        results[dispatch_mode] = [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]
    for actual, expected in zip(results[mode], results["dense"], strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15)
@given(layer=layer_settings(), shape=feature_map_shapes(min_batch=1))
def test_i24_images_are_independent(mode: str, layer: dict[str, Any], shape: tuple[int, ...]) -> None:
    esmoe = make_layer(**layer).double()
    x = make_images(*shape, dtype=torch.float64)
    alone = torch.cat([run(esmoe, image[None], mode) for image in x])
    assert_same(run(esmoe, x, mode), alone)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15)
@given(layer=layer_settings(), shape=feature_map_shapes(), data=st.data())
def test_i25_permuted_images_give_permuted_outputs(
    mode: str, layer: dict[str, Any], shape: tuple[int, ...], data: st.DataObject
) -> None:
    esmoe = make_layer(**layer).double()
    x = make_images(*shape, dtype=torch.float64)
    order = torch.tensor(data.draw(st.permutations(range(shape[0]))), dtype=torch.int64)
    assert_same(run(esmoe, x[order], mode), run(esmoe, x, mode)[order])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_broken_pixels_touch_their_own_image_alone(mode: str, kind: str, value: float) -> None:
    layer, x = make_layer(expert=kind), make_images(5, 4, 6, 6)
    expected = run(layer, x, mode)
    x[2, 1, 3, 3] = value
    y = run(layer, x, mode)
    others = [0, 1, 3, 4]
    # To rounding: an image that selects other experts moves the rest, and torch's SiLU rounds by place in the batch.
    assert_same(y[others], expected[others])
    assert not y[2].isfinite().all()


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("mode", SELECTIVE)
def test_i31_unselected_experts_never_run(mode: str, batch: int) -> None:
    layer = make_layer(dispatch=mode)
    force_routing(layer, [0.0, 3.0, 1.0, 2.0])
    counts = count_calls(layer)
    layer(make_images(batch, 4, 6, 6))
    # Each selected expert runs once: on the batch, or on one image after the other.
    times = batch if mode == "per_image" else 1
    assert counts == [0, times, 0, times]


@pytest.mark.parametrize("mode", SELECTIVE)
def test_i31_images_run_their_own_experts(mode: str) -> None:
    layer, x = make_layer(dispatch=mode, top_k=1), make_images(6, 4, 6, 6)
    layer(x)
    chosen = layer.routing.indices[:, 0].bincount(minlength=4)
    assert 1 < (chosen > 0).sum() < 4
    counts = count_calls(layer)
    layer(x)
    assert counts == (chosen.tolist() if mode == "per_image" else (chosen > 0).long().tolist())


@pytest.mark.parametrize("size", [319, 320])
def test_auto_takes_large_maps_one_by_one(size: int) -> None:
    layer = make_layer()
    force_routing(layer, [0.0, 3.0, 1.0, 2.0])
    counts = count_calls(layer)
    layer(make_images(2, 4, size, size))
    large = 4 * size**2 >= dispatch.PER_IMAGE_MIN_ELEMENTS  # 407,044 and 409,600; it is 409,600
    assert large == (size == 320)
    assert counts == ([0, 2, 0, 2] if large else [0, 1, 0, 1])


@pytest.mark.parametrize("mode", SELECTIVE)
@pytest.mark.parametrize("soft", ["relaxed", "straight_through"])
def test_i31_soft_gates_are_sparse_in_eval(soft: str, mode: str) -> None:
    layer = make_layer(dispatch=mode, soft=soft)
    force_routing(layer, [0.0, 3.0, 1.0, 2.0])
    counts = count_calls(layer)
    layer(make_images(2, 4, 6, 6))
    assert counts[0] == counts[2] == 0
    assert min(counts[1], counts[3]) > 0


@pytest.mark.parametrize("mode", SELECTIVE)
def test_i31_all_experts_run_when_all_are_selected(mode: str) -> None:
    layer = make_layer(dispatch=mode, top_k=4)
    counts = count_calls(layer)
    layer(make_images(1, 4, 6, 6))
    assert counts == [1, 1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_what_an_expert_gave_is_not_written_over(mode: str) -> None:
    layer, x = make_layer(dispatch=mode), make_images(3, 4, 6, 6)
    seen: list[tuple[int, Tensor, Tensor]] = []
    for index, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda _, inputs, y, index=index: seen.append((index, inputs[0], y)))
    with torch.no_grad():
        layer(x)
        recorded = seen.copy()
        assert recorded or mode == "static"
        for index, features, y in recorded:
            assert torch.equal(y, layer.experts[index](features))


def test_linear_experts_merge_in_eval() -> None:
    # None of the experts runs: their kernels are mixed and applied once.
    layer = make_layer(expert="depthwise", dispatch="auto")
    counts = count_calls(layer)
    layer(make_images(3, 4, 6, 6))
    assert counts == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_i34_empty_batch(mode: str, kind: str) -> None:
    layer = make_layer(expert=kind, dispatch=mode, stride=2)
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    assert layer(torch.empty(0, 4, 7, 5)).shape == (0, 4, 4, 3)
    assert all(torch.equal(before[name], values) for name, values in layer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_i35_memory_formats(mode: str, kind: str) -> None:
    layer, x = make_layer(expert=kind), make_images(5, 4, 7, 6)
    expected = run(layer, x, "dense")
    sliced = torch.zeros(5, 8, 7, 12)[:, ::2, :, ::2].copy_(x)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for variant in (x.to(memory_format=torch.channels_last), sliced, transposed):
        assert not variant.is_contiguous()
        assert_same(run(layer, variant, mode), expected)


def test_channels_last_weights() -> None:
    layer, x = make_layer(8), make_images(5, 8, 7, 6)
    expected = run(layer, x, "dense")
    layer = layer.to(memory_format=torch.channels_last)
    for mode in MODES:
        assert_same(run(layer, x.to(memory_format=torch.channels_last), mode), expected)


@pytest.mark.parametrize("executor", [dispatch.dense, dispatch.grouped, dispatch.per_image, dispatch.static])
def test_mixture_literally(executor: dispatch.Executor) -> None:
    layer = make_layer(1, num_experts=3, kernel_sizes=(1, 1, 1), expert="depthwise")
    with torch.no_grad():
        for expert, factor in zip(layer.experts, (2.0, 30.0, 400.0), strict=True):
            expert.conv_dw.weight.fill_(factor)
    # Odds 1 : 3 for experts 0 and 2, then 1 : 1 for experts 1 and 2.
    weights = torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.5, 0.5]])
    routing = Routing(weights, weights, weights, torch.tensor([[2, 0], [1, 2]]))
    y = executor(torch.ones(2, 1, 1, 1), routing, layer.experts)
    # 0.25 * 2 + 0.75 * 400 = 300.5 and 0.5 * 30 + 0.5 * 400 = 215.
    assert y.flatten().tolist() == [300.5, 215.0]


def test_mixture_by_name() -> None:
    layer, x = make_layer(), make_images(3, 4, 6, 6)
    routing = TopKGate(2).eval()(layer.router(x))
    expected = dispatch.dense(x, routing, layer.experts)
    for mode in MODES:
        assert_same(dispatch.mixture(x, routing, layer.experts, mode), expected)


def test_unknown_executor_set_later() -> None:
    layer = make_layer()
    layer.dispatch = "sparse"  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match="dispatch must be one of auto, dense, grouped, per_image, static, got 'sparse'"
    ):
        layer(make_images(1, 4, 5, 5))
