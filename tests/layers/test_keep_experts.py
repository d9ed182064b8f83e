# SPDX-License-Identifier: Apache-2.0
"""A layer that loses experts computes what it did where the others were never selected."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision import ESMoE
from moe_vision.layers import PointwiseMoE, keep_experts
from tests.strategies import KINDS, assert_same, make_images, make_layer


def without(layer: ESMoE, indices: list[int], x: torch.Tensor) -> torch.Tensor:
    """The output with logits of the other experts so low that none is selected."""
    others = torch.tensor([index for index in range(len(layer.experts)) if index not in indices], dtype=torch.long)
    hook = layer.router.register_forward_hook(lambda _m, _i, logits: logits.index_fill(1, others, -1e30))
    try:
        return layer(x)
    finally:
        hook.remove()


@given(st.sets(st.integers(0, 4), min_size=2), st.sampled_from(KINDS), st.integers(0, 100))
@settings(max_examples=15)
def test_as_if_the_others_were_never_selected(kept: set[int], kind: str, seed: int) -> None:
    layer = make_layer(num_experts=5, top_k=2, expert=kind, seed=seed)
    x, indices = make_images(4, 4, 6, 5, seed=seed), sorted(kept)
    expected = without(layer, indices, x)
    sizes = [layer.experts.kernel_sizes[index] for index in indices]
    smaller = copy.deepcopy(layer)
    keep_experts(smaller, indices)
    assert_same(smaller(x), expected)
    assert list(smaller.experts.kernel_sizes) == sizes
    assert smaller.routing.indices.max() < len(indices)
    assert len(layer.experts) == 5  # the original is another


def test_the_block_with_a_convolutional_router() -> None:
    torch.manual_seed(0)
    layer = PointwiseMoE(8, num_experts=5, top_k=2).eval()
    layer.router.norm2.running_mean.normal_(std=0.1)
    x = torch.randn(6, 8, 9, 9)
    expected = without(layer, [0, 2, 4], x)
    keep_experts(layer, [0, 2, 4])
    assert_same(layer(x), expected)
    layer.train()(x)
    assert layer.state_dict()["router.norm2.running_var"].shape == (3,)


def test_fewer_than_k_stay() -> None:
    layer = make_layer(num_experts=4, top_k=3)
    keep_experts(layer, [1, 2])
    layer(make_images(2, 4, 6, 5))
    assert layer.routing.indices.shape == (2, 2)


@pytest.mark.parametrize("indices", [[], [2, 1], [1, 1], [-1], [4]])
def test_errors(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indices must be ascending and in \[0, num_experts=4\), and at least one"):
        keep_experts(make_layer(), indices)
    layer = make_layer()
    layer.router = torch.nn.Flatten()
    with pytest.raises(ValueError, match="router must be a DynamicRouter, or a PooledRouter with BatchNorm2d"):
        keep_experts(layer, [0])
