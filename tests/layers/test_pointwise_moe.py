# SPDX-License-Identifier: Apache-2.0
"""The block of the networks v0.1: its parts, and that executors, record and losses are those of ESMoE."""

import copy
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision import auxiliary_loss
from moe_vision.layers import PointwiseExpert, PointwiseExperts, PointwiseMoE, PooledRouter
from tests.contracts.layer import LayerContract
from tests.strategies import EXECUTORS, assert_same, make_images
from tests.trained import trained


def make_block(**settings: object) -> PointwiseMoE:
    """Build a block in eval whose norms have statistics of their own and whose router tells images apart."""
    torch.manual_seed(0)
    block = trained(PointwiseMoE(8, **settings))
    with torch.no_grad():
        block.router.conv2.weight.mul_(100)
    return block


class TestPointwiseMoE(LayerContract):
    factory = PointwiseMoE
    arguments: ClassVar = {"channels": 4, "num_experts": 3, "top_k": 2}
    example_shape: ClassVar = (3, 4, 5, 6)
    bad_arguments: ClassVar = (
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"top_k": 4}, r"top_k must be in \[1, num_experts=3\], got 4"),
        ({"dispatch": "sparse"}, "dispatch must be one of auto, dense"),
    )
    bad_inputs: ClassVar = (((4, 5, 6), r"input must have shape \(B, C, H, W\)"), ((1, 5, 5, 6), "in_channels=4"))
    cardinality: ClassVar = (
        ({}, (2, 4, 9, 7), (2, 4, 9, 7)),
        ({"num_experts": 1, "top_k": 1}, (1, 4, 1, 1), (1, 4, 1, 1)),
        ({}, (0, 4, 5, 5), (0, 4, 5, 5)),
    )

    def test_feature(self) -> None:
        block, x = make_block(), make_images(5, 8, 9, 7)
        y = block(x)
        mixture = (block.experts(x) * block.routing.weights[:, :, None, None, None]).sum(dim=1)
        assert_same(y, block.shared_expert(x) + mixture)


class TestPooledRouter(LayerContract):
    factory = PooledRouter
    arguments: ClassVar = {"in_channels": 4, "num_experts": 3}
    example_shape: ClassVar = (3, 4, 5, 6)
    bad_arguments: ClassVar = (({"num_experts": 0}, "num_experts must be at least 1, got 0"),)
    bad_inputs: ClassVar = (((1, 5, 5, 6), "in_channels=4"),)
    cardinality: ClassVar = (({}, (2, 4, 9, 7), (2, 3)), ({}, (2, 4, 1, 1), (2, 3)))

    def test_feature(self) -> None:
        router = PooledRouter(4, 3).eval()
        large, small = make_images(2, 4, 8, 12), make_images(2, 4, 4, 12)
        # Pooled by 4 above 4 pixels a side, as it is otherwise.
        assert_same(router(large), router(F.avg_pool2d(large, 4)))
        assert not torch.allclose(router(small), router(F.avg_pool2d(small, 4)))


class TestPointwiseExperts(LayerContract):
    factory = PointwiseExperts
    arguments: ClassVar = {"channels": 3, "num_experts": 2}
    example_shape: ClassVar = (3, 3, 4, 5)
    bad_arguments: ClassVar = (({"num_experts": 0}, "num_experts must be at least 1, got 0"),)
    bad_inputs: ClassVar = ()
    cardinality: ClassVar = (({}, (2, 3, 4, 5), (2, 2, 3, 4, 5)),)

    def test_feature(self) -> None:
        expert, x = PointwiseExpert(2).eval(), make_images(1, 2, 3, 3)
        assert len([m for m in expert.modules() if isinstance(m, nn.Conv2d)]) == 2
        with torch.no_grad():
            expert.conv1.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])[:, :, None, None])
            expert.conv2.weight.copy_(torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]])[:, :, None, None])
        # silu(v) - silu(-v) = v, up to the factors 1 / sqrt(1 + eps) of the two norms.
        torch.testing.assert_close(expert(x), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_executors_equal_dense(batch: int, top_k: int, dispatch: str) -> None:
    block, x = make_block(top_k=top_k), make_images(batch, 8, 6, 5)
    block.dispatch = "dense"
    expected = block(x)
    block.dispatch = dispatch
    assert_same(block(x), expected)


@pytest.mark.parametrize("dispatch", ["auto", "grouped", "per_image"])
def test_unselected_experts_never_run(dispatch: str) -> None:
    block, x = make_block(dispatch=dispatch, num_experts=8), make_images(1, 8, 6, 5)
    ran: list[int] = []
    for index, expert in enumerate(block.experts):
        expert.register_forward_hook(lambda *_, index=index: ran.append(index))
    block(x)
    assert sorted(ran) == sorted(block.routing.indices[0].tolist())


def test_record_and_losses_are_those_of_esmoe() -> None:
    block = make_block().train()
    y = block(make_images(5, 8, 6, 5))
    assert copy.deepcopy(block).routing is None
    (y.square().mean() + auxiliary_loss(block)).backward()
    assert all(p.grad is not None for p in block.parameters())


def test_images_are_independent_in_eval() -> None:
    block, x = make_block(), make_images(5, 8, 6, 5)
    alone: list[Tensor] = [block(image[None]) for image in x]
    assert_same(block(x), torch.cat(alone))
