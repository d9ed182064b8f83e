# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for logits and for settings of a layer, and the objects that tests are made on."""

from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_vision import ESMoE
from tests.trained import trained

MAX_EXPERTS = 16
MAX_BATCH = 9
SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
EXECUTORS = ("dense", "grouped", "per_image", "static")
KINDS = ("separable", "depthwise")

# Largest difference between two ways to compute the same features, relative to the largest of them.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class Gating(NamedTuple):
    """Logits (B, E) in fp64 and a K in [1, E]."""

    logits: Tensor
    k: int


@st.composite
def gatings(
    draw: st.DrawFn,
    *,
    min_k: int = 1,
    min_batch: int = 0,
    scales: tuple[float, ...] = SCALES,
) -> Gating:
    """Any logits, with ties: half of the draws repeat a few values."""
    num_experts = draw(st.integers(min_k, MAX_EXPERTS))
    shape = (draw(st.integers(min_batch, MAX_BATCH)), num_experts)
    smooth = st.floats(-1, 1, width=32, allow_subnormal=False)
    repeated = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
    values = draw(st.one_of(hnp.arrays(np.float64, shape, elements=kind) for kind in (smooth, repeated)))
    return Gating(torch.from_numpy(values * draw(st.sampled_from(scales))), draw(st.integers(min_k, num_experts)))


@st.composite
def separated_gatings(
    draw: st.DrawFn, *, min_k: int = 1, max_experts: int = MAX_EXPERTS, scales: tuple[float, ...] = (0.1, 1.0, 10.0)
) -> Gating:
    """Logits whose rows have no near ties: neighbours in rank are 0.5 to 1.5 ``scale`` apart."""
    num_experts = draw(st.integers(min_k, max_experts))
    batch = draw(st.integers(1, MAX_BATCH))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks = generator.permuted(np.tile(np.arange(num_experts), (batch, 1)), axis=1)
    jitter = generator.uniform(-0.25, 0.25, ranks.shape)
    logits = torch.from_numpy((ranks - num_experts / 2 + jitter) * draw(st.sampled_from(scales)))
    return Gating(logits, draw(st.integers(min_k, num_experts)))


@st.composite
def layer_settings(draw: st.DrawFn, *, max_experts: int = 4) -> dict[str, Any]:
    """Arguments of `make_layer`; every K <= E, both kinds of expert, strides, changes of channels."""
    num_experts = draw(st.integers(1, max_experts))
    kind = draw(st.sampled_from(KINDS))
    return {
        "in_channels": 4,
        "out_channels": draw(st.sampled_from([4, 6])) if kind == "separable" else 4,
        "num_experts": num_experts,
        "top_k": draw(st.integers(1, num_experts)),
        "stride": draw(st.sampled_from([1, 2])),
        "dilation": draw(st.sampled_from([1, 2])),
        "expert": kind,
        "bias": kind == "depthwise" and draw(st.booleans()),
        "shared_expert": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def feature_map_shapes(*, channels: int = 4, min_batch: int = 0) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Shapes (B, channels, H, W) with odd sides and sides of 1."""
    sides = st.integers(1, 11)
    return st.tuples(st.integers(min_batch, MAX_BATCH), st.just(channels), sides, sides)


def make_layer(in_channels: int = 4, out_channels: int | None = None, *, seed: int = 0, **settings: Any) -> ESMoE:
    """An `ESMoE` in eval that looks trained: uneven BatchNorm, and a router that tells images apart."""
    torch.manual_seed(seed)
    layer = trained(ESMoE(in_channels, out_channels, **settings))
    with torch.no_grad():
        layer.router.fc2.weight.mul_(20)
        layer.router.fc2.bias.normal_()
    return layer


def make_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Feature maps whose channel means differ from image to image, so that their routes differ too."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x + torch.randn(*shape[:2], 1, 1, generator=generator, dtype=torch.float64)).to(dtype)


def force_routing(layer: ESMoE, logits: list[float]) -> None:
    """Make the router give every image these logits."""
    with torch.no_grad():
        layer.router.fc2.weight.zero_()
        layer.router.fc2.bias.copy_(torch.tensor(logits))


def freeze_norms(layer: nn.Module) -> None:
    """Let BatchNorm use its running statistics although the layer trains."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def assert_same(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Compare features within a tolerance relative to the largest of them."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    if expected.numel():
        scale = expected.abs().max().clamp(min=1e-3).item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def count_calls(layer: ESMoE) -> list[int]:
    """Return a list that counts the calls of each expert from now on."""
    counts = [0] * len(layer.experts)

    def counting(index: int) -> Any:
        def hook(*_: object) -> None:
            counts[index] += 1

        return hook

    for index, expert in enumerate(layer.experts):
        expert.register_forward_hook(counting(index))
    return counts
