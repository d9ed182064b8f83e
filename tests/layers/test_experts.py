# SPDX-License-Identifier: Apache-2.0
"""The experts: what each computes, and the two ways in which several of them run as one convolution."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from moe_vision import DepthwiseExperts
from moe_vision.layers import DepthwiseExpert, SeparableExpert
from tests.contracts.layer import LayerContract
from tests.strategies import KINDS, assert_same, feature_map_shapes, make_images

KERNEL_SIZES = (1, 3, 5, 9)


def test_depthwise_expert_literally() -> None:
    expert = DepthwiseExpert(2, 3, bias=True)
    with torch.no_grad():
        expert.conv_dw.weight.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3))
        expert.conv_dw.bias.copy_(torch.tensor([0.0, 5.0]))
    # A kernel of ones sums the 2 x 2 map at every pixel, since the window reaches all of it: 1 + 2 + 3 + 4 = 10.
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    assert expert(x).tolist() == [[[[10, 10], [10, 10]], [[105, 105], [105, 105]]]]


def test_separable_expert_has_nothing_between_its_convolutions() -> None:
    expert = SeparableExpert(2, 1, 3, act_layer=nn.Identity, norm_layer=nn.Identity)
    x = make_images(2, 2, 5, 4)
    # Linear in x: the sign goes through and zero stays zero.
    torch.testing.assert_close(expert(-3 * x), -3 * expert(x))
    assert not expert(torch.zeros(1, 2, 5, 4)).any()


def test_separable_expert_ends_in_norm_and_activation() -> None:
    expert = SeparableExpert(4, 6, 3).eval()
    x = make_images(2, 4, 5, 4)
    features = expert.conv_pw(expert.conv_dw(x)) / (1 + 1e-5) ** 0.5  # an untrained norm divides by sqrt(1 + eps)
    torch.testing.assert_close(expert(x), features * features.sigmoid())


@pytest.mark.parametrize("kind", KINDS)
def test_shared_init_makes_one_function_that_training_parts(kind: str) -> None:
    x = make_images(3, 4, 7, 5)
    apart = DepthwiseExperts(4, kernel_sizes=(5, 3, 9), kind=kind)
    assert (apart(x)[:, 1:] - apart(x)[:, :1]).abs().amax(dim=(0, 2, 3, 4)).min() > 0.1
    experts = DepthwiseExperts(4, kernel_sizes=(5, 3, 9), kind=kind, init="shared")
    if kind == "depthwise":
        assert torch.equal(experts[2](x), x)  # the identity, whatever the size
    one, two, three = experts(x).unbind(1)
    assert_same(one, two)
    assert_same(three, two)
    experts[0].conv_dw.weight.data.zero_()  # the weights are copies
    assert_same(experts[1](x), two)
    (two + three).square().sum().backward()
    assert experts[2].conv_dw.weight.grad[:, :, 0].any()  # the rim of zeros learns


@pytest.mark.parametrize("stride", [1, 2])
@settings(max_examples=15)
@given(shape=feature_map_shapes(min_batch=1), expert=st.integers(0, 3))
def test_i33_padding_a_kernel_is_exact(stride: int, shape: tuple[int, ...], expert: int) -> None:
    experts = DepthwiseExperts(4, kernel_sizes=KERNEL_SIZES, kind="depthwise", stride=stride, bias=True).double()
    x = make_images(*shape, dtype=torch.float64)
    weights = nn.functional.one_hot(torch.full((shape[0],), expert), 4).double()
    assert_same(experts.merged(x, weights), experts[expert](x))


@settings(max_examples=15)
@given(shape=feature_map_shapes(min_batch=1), seed=st.integers(0, 999))
def test_merged_is_the_weighted_sum(shape: tuple[int, ...], seed: int) -> None:
    experts = DepthwiseExperts(4, kernel_sizes=KERNEL_SIZES, kind="depthwise", bias=True).double()
    x = make_images(*shape, dtype=torch.float64)
    weights = torch.rand(shape[0], 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_same(experts.merged(x, weights), (weights[:, :, None, None, None] * experts(x)).sum(dim=1))


@pytest.mark.parametrize("stride", [1, 2])
@settings(max_examples=15)
@given(shape=feature_map_shapes(min_batch=1), k=st.integers(1, 4), seed=st.integers(0, 999))
def test_gathered_are_the_selected_experts(stride: int, shape: tuple[int, ...], k: int, seed: int) -> None:
    experts = DepthwiseExperts(4, 6, kernel_sizes=KERNEL_SIZES, stride=stride).double().eval()
    x = make_images(*shape, dtype=torch.float64)
    indices = torch.rand(shape[0], 4, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :k]
    assert_same(experts.gathered(x, indices), experts(x)[torch.arange(shape[0])[:, None], indices])


@pytest.mark.parametrize("affine", [True, False])
def test_gathered_folds_any_batch_norm(affine: bool) -> None:
    experts = DepthwiseExperts(4, norm_layer=partial(nn.BatchNorm2d, affine=affine, eps=0.1))
    experts(2 + 3 * make_images(5, 4, 6, 6))  # fills the running statistics
    x = make_images(3, 4, 6, 6, seed=1)
    indices = torch.tensor([[0, 1], [3, 2], [1, 3]])
    assert_same(experts.eval().gathered(x, indices), experts(x)[torch.arange(3)[:, None], indices])


@pytest.mark.parametrize(
    "norm_layer", [nn.Identity, partial(nn.BatchNorm2d, track_running_stats=False), BatchNormAct2d]
)
def test_gathered_needs_frozen_statistics(norm_layer: type[nn.Module]) -> None:
    experts = DepthwiseExperts(4, norm_layer=norm_layer).eval()
    with pytest.raises(ValueError, match=r"dispatch must not be 'static' unless norm_layer is BatchNorm2d.*'dense'"):
        experts.gathered(make_images(2, 4, 3, 3), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_has_its_kernel_size(kind: str) -> None:
    experts = DepthwiseExperts(8, kernel_sizes=(3, 7), kind=kind)
    assert [expert.conv_dw.kernel_size for expert in experts] == [(3, 3), (7, 7)]


def test_parameters_of_separable_experts() -> None:
    # C k^2 + C C_out + 2 C_out for k = 3, 5: 8 * 34 + 2 * (8 * 16 + 2 * 16) = 272 + 320.
    assert sum(p.numel() for p in DepthwiseExperts(8, 16, kernel_sizes=(3, 5)).parameters()) == 592


class TestDepthwiseExperts(LayerContract):
    factory = DepthwiseExperts
    arguments: ClassVar = {"in_channels": 2, "kernel_sizes": (3, 5)}
    example_shape = (3, 2, 4, 3)
    bad_arguments = (
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"kernel_sizes": ()}, "kernel_sizes must name at least one kernel size, got none"),
        ({"kernel_sizes": (3, 4)}, r"kernel_sizes must be odd and positive, got 4 in \(3, 4\)"),
        ({"kernel_sizes": (-1,)}, r"kernel_sizes must be odd and positive, got -1 in \(-1,\)"),
        ({"kind": "dense"}, "expert must be one of separable, depthwise, got 'dense'"),
        ({"kind": "depthwise", "out_channels": 3}, "out_channels must equal in_channels=2 for depthwise.*got 3"),
        ({"bias": True}, "bias must be False for separable experts"),
    )
    bad_inputs = ()
    cardinality = (
        ({}, (3, 2, 4, 3), (3, 2, 2, 4, 3)),
        ({"out_channels": 5, "stride": 2}, (1, 2, 5, 1), (1, 2, 5, 3, 1)),
        ({"kind": "depthwise", "kernel_sizes": (9,)}, (0, 2, 3, 3), (0, 1, 2, 3, 3)),
    )

    def test_feature(self) -> None:
        experts, x = self.make().eval(), self.example()
        stacked = experts(x)
        assert len(experts) == 2
        for index, expert in enumerate(experts):
            assert torch.equal(stacked[:, index], expert(x))
        assert not torch.allclose(stacked[:, 0], stacked[:, 1])


class TestLinearDepthwiseExperts(TestDepthwiseExperts):
    """The contract again with the linear kind."""

    arguments: ClassVar = {"in_channels": 2, "kernel_sizes": (3, 5), "kind": "depthwise", "bias": True}
    bad_arguments = (({"out_channels": 3}, "out_channels must equal in_channels=2"),)
    cardinality = (({"stride": 2}, (3, 2, 5, 4), (3, 2, 2, 3, 2)),)
