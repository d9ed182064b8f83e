# SPDX-License-Identifier: Apache-2.0
"""The executor `per_image` as a graph for export: a loop over the images with a branch for each expert.

A Python branch on data would be frozen in the graph, and copying each expert's rows costs more than the sparsity
saves on large maps. In ONNX the loop is a Scan, which hands out images without a copy, and each branch an If that
holds the expert's weights. Axes: B images, E experts, C channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from moe_vision.layers.experts import DepthwiseExperts, SeparableExpert
from moe_vision.layers.pointwise_experts import PointwiseExperts
from moe_vision.layers.routing import Routing


def branched(x: Tensor, routing: Routing, experts: DepthwiseExperts | PointwiseExperts) -> Tensor:
    """Run the selected experts of one image after the other, as a graph; see `dispatch.dense` for arguments.

    Shape:
        - Output: (B, C_out, H', W')
    """

    def step(carry: Tensor, image: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, weights = image
        return carry.clone(), _mixture(features.unsqueeze(0), weights, experts).squeeze(0)

    nothing = x.new_zeros(1)  # a scan must carry something from image to image
    return cast(Tensor, scan(step, nothing, (x, routing.weights.to(x.dtype)))[1])


def _mixture(x: Tensor, weights: Tensor, experts: DepthwiseExperts | PointwiseExperts) -> Tensor:
    """Return the mixture of one image (1, C, H, W) with its weights (E,)."""

    def start(x: Tensor, weight: Tensor) -> Tensor:
        return cast(Tensor, experts[0](x) * weight)

    def start_empty(x: Tensor, weight: Tensor) -> Tensor:
        return _no_features(x, experts)

    y = torch.cond(weights[0] != 0, start, start_empty, (x, weights[0]))
    for index in range(1, len(experts)):

        def add(x: Tensor, y: Tensor, weight: Tensor, index: int = index) -> Tensor:
            return cast(Tensor, y + experts[index](x) * weight)

        def keep(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            return y.clone()

        y = torch.cond(weights[index] != 0, add, keep, (x, y, weights[index]))
    return cast(Tensor, y)


def _no_features(x: Tensor, experts: DepthwiseExperts | PointwiseExperts) -> Tensor:
    """Return zeros in the shape of an expert's features.

    No expert runs for it, which would stay in the graph, and the sizes come from an operator that divides by the
    stride as a convolution does: the tracer must see that both branches have the same.
    """
    first = experts[0]
    channels = first.conv_pw.out_channels if isinstance(first, SeparableExpert) else x.shape[1]
    stride = experts.stride if isinstance(experts, DepthwiseExperts) else 1
    one_channel = F.avg_pool2d(x[:, :1], kernel_size=1, stride=stride)
    return torch.zeros_like(one_channel).expand(-1, channels, -1, -1).contiguous()
