# SPDX-License-Identifier: Apache-2.0
"""Linear experts in the place of a depthwise convolution: the same function on the same grid, whatever its padding."""

import copy
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from moe_vision.surgery import DepthwiseESMoE, swap
from moe_vision.surgery.upcycle import upcycled
from tests.strategies import TOLERANCE, assert_same, make_images
from tests.surgery.families import images, look_trained


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Depthwise convolutions of any kernel, stride, dilation, bias and padding that a 9 x 9 map has room for."""
    size, dilation = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1), (5, 2), (7, 1)]))
    kind = draw(st.sampled_from([nn.Conv2d, Conv2dSame]))
    padding: Any = draw(st.integers(0, dilation * (size // 2) + 1)) if kind is nn.Conv2d else 0
    settings = {"stride": draw(st.sampled_from([1, 2, 3])), "dilation": dilation, "bias": draw(st.booleans())}
    torch.manual_seed(draw(st.integers(0, 99)))
    return kind(4, 4, max(size, 3), padding=padding, groups=4, **settings)


@given(convolutions(), st.integers(9, 14), st.integers(9, 14), st.sampled_from([0, 2, 4]), st.booleans())
def test_computes_what_the_convolution_does(
    conv: nn.Conv2d, height: int, width: int, larger: int, training: bool
) -> None:
    x, size = make_images(3, 4, height, width), conv.kernel_size[0]
    layer = upcycled(conv, num_experts=3, kernel_sizes=(size, size + larger, size + 2)).train(training)
    nn.init.normal_(layer.router.fc2.weight, std=5)
    with torch.no_grad():
        assert_same(layer(x), conv(x), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_type_and_kernel_of_the_convolution(dtype: torch.dtype) -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=1, groups=4, dtype=dtype), make_images(3, 4, 9, 9, dtype=dtype)
    layer = upcycled(conv)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    with torch.no_grad():
        assert_same(layer.eval()(x), conv(x), TOLERANCE[dtype])


def test_noise_tells_the_copies_apart() -> None:
    conv = nn.Conv2d(64, 64, 5, padding=2, groups=64)
    kernels = [expert.conv_dw.weight for expert in upcycled(conv, perturb=0.1).experts]
    differences = [kernel - conv.weight for kernel in kernels]
    assert all(0.09 < (d.std() / conv.weight.std()).item() < 0.11 for d in differences)
    assert (differences[0] * differences[1]).mean() / differences[0].square().mean() < 0.1


def test_crops_no_kernel() -> None:
    layer = DepthwiseESMoE(nn.Conv2d(4, 4, 5, groups=4), kernel_sizes=(3, 5, 7, 9))
    assert layer.experts.kernel_sizes == (5, 5, 7, 9)


def test_block_of_older_weights() -> None:
    """RepViT's first models have a norm on each branch and none on the sum; fused, a mixer is a convolution."""
    arguments = {"embed_dim": (8, 12), "depth": (1, 1), "num_classes": 5}
    model = look_trained(timm.create_model("repvit_m1", **arguments)).eval()
    assert swap(copy.deepcopy(model), example=images(1)).change <= 1e-5
    model.fuse()
    assert swap(model, example=images(1)).change <= 1e-5


@pytest.mark.parametrize("name", ["convnext_atto", "test_efficientnet"])
def test_dilated_backbone(name: str) -> None:
    """Output stride 8 turns strides into dilations."""
    model = look_trained(timm.create_model(name, output_stride=8, num_classes=5)).eval()
    report = swap(model, stages=[2, 3, 4], example=images(1))
    assert {row.site.dilation for row in report.replacements} & {2, 4}
    assert report.change <= 1e-5
