# SPDX-License-Identifier: Apache-2.0
"""Extremes: logits at the edge, one expert and 64, huge maps, tiny images; the same bits on every run; threads."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from moe_vision import ESMoE, auxiliary_loss, create_model, predict
from tests.memory import peak_megabytes
from tests.strategies import EXECUTORS, KINDS, TOLERANCE, assert_same, force_routing, make_images, make_layer
from tests.trained import trained

FP16_EDGE = 65504.0
# Logits of four experts, and the weights of the best two.
LOGITS = {
    "1e4": ([1e4, -1e4, 1e4, 0.0], [0.5, 0.0, 0.5, 0.0]),
    "far apart": ([1e4, -1e4, 0.0, -1.0], [1.0, 0.0, 0.0, 0.0]),
    "edge of fp16": ([-FP16_EDGE, FP16_EDGE, 0.0, FP16_EDGE], [0.0, 0.5, 0.0, 0.5]),
    "all equal": ([3.0] * 4, [0.5, 0.5, 0.0, 0.0]),
    "masked": ([-math.inf, 1.0, -math.inf, 1.0], [0.0, 0.5, 0.0, 0.5]),
    "all masked": ([-math.inf] * 4, [0.5, 0.5, 0.0, 0.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits(name: str, kind: str, dtype: torch.dtype) -> None:
    logits, weights = LOGITS[name]
    x = make_images(3, 4, 6, 5, dtype=dtype)
    for mode in EXECUTORS:
        layer = make_layer(expert=kind, dispatch=mode).to(dtype)
        force_routing(layer, logits)
        y = layer(x)
        assert layer.routing.weights.tolist() == [weights] * 3
        mixed = sum(weight * expert(x) for weight, expert in zip(weights, layer.experts, strict=True))
        assert_same(y, layer.act(layer.norm(mixed)), 2 * TOLERANCE[dtype])
        (layer.train()(x).float().square().mean() + auxiliary_loss(layer, balance=0.01, z=0.0)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (64, 1), (64, 2), (64, 64)])
def test_one_expert_and_64(num_experts: int, top_k: int, kind: str) -> None:
    settings = {
        "num_experts": num_experts,
        "top_k": top_k,
        "kernel_sizes": [1 + 2 * (i % 3) for i in range(num_experts)],
    }
    x = make_images(5, 4, 6, 5)
    expected = make_layer(expert=kind, dispatch="dense", **settings)(x)
    for mode in ("auto", "grouped", "per_image", "static"):
        layer = make_layer(expert=kind, dispatch=mode, **settings)
        assert_same(layer(x), expected)
        assert (layer.routing.weights > 0).sum(dim=1).tolist() == [top_k] * 5
        (layer.train()(x).square().mean() + auxiliary_loss(layer)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.slow
def test_a_map_of_4096_squared_takes_the_memory_of_three() -> None:
    layer, x = make_layer(1), torch.rand(1, 1, 4096, 4096)
    with torch.no_grad():
        peak = peak_megabytes(lambda: layer(x))
    assert 64 < peak < 3.01 * 64  # MiB of a map


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_images_of_one_pixel_and_of_one_colour(task: str) -> None:
    model = trained(create_model("yolo_master_n", task=task, num_classes=3, image_size=64))
    white, black = torch.full((3, 50, 40), 255, dtype=torch.uint8), torch.zeros(3, 64, 64, dtype=torch.uint8)
    pixel, line = torch.full((3, 1, 1), 7, dtype=torch.uint8), torch.full((3, 1, 300), 7, dtype=torch.uint8)
    images = [white, black, pixel, line]
    found, found_again = (predict(model, images, score=0.0) for _ in range(2))
    assert len(found) == 4
    for one, other in zip(found, found_again, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            values, again = torch.as_tensor(value), torch.as_tensor(other[name])
            assert values.isfinite().all()
            assert torch.equal(values, again)


def results(layer: ESMoE, x: Tensor) -> list[Tensor]:
    """Return what a forward in eval and a train step give."""
    quiet = layer.eval()(x).detach()
    y = layer.train()(x)
    (y.float().square().mean() + auxiliary_loss(layer)).backward()
    return [quiet, y.detach(), *(parameter.grad for parameter in layer.parameters()), *layer.buffers()]


@pytest.mark.parametrize("mode", ["auto", *EXECUTORS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_second_run_gives_the_same_bits(dtype: torch.dtype, kind: str, mode: str) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = make_layer(8, expert=kind, dispatch=mode).to(dtype).to(memory_format=memory_format)
        x = make_images(5, 8, 7, 6, dtype=dtype).to(memory_format=memory_format)
        first, second = (results(copy.deepcopy(layer), x) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        assert first[0].dtype == first[1].dtype == dtype
        assert all(values.isfinite().all() for values in first)


def test_each_thread_sees_its_own_routing() -> None:
    layer, x, other = make_layer(), make_images(5, 4, 7, 5), make_images(3, 4, 7, 5, seed=1)
    layer(x)
    mine = layer.routing
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: layer.routing).result() is None
        pool.submit(layer, other).result()
        theirs = pool.submit(lambda: layer.routing).result()
    assert layer.routing is mine
    assert len(theirs.logits) == 3
    torch.testing.assert_close(theirs.logits, layer.router(other))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_a_layer_do_not_disturb_one_another(kind: str) -> None:
    layer = make_layer(expert=kind)
    batches = [make_images(1 + seed, 4, 20, 20, seed=seed) for seed in range(8)]

    @torch.no_grad()
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return layer(x), layer.routing.indices

    expected = [forward(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        for (y, indices), (y_alone, indices_alone) in zip(pool.map(forward, batches * 20), expected * 20, strict=True):
            assert torch.equal(y, y_alone)
            assert torch.equal(indices, indices_alone)
