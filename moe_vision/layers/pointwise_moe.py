# SPDX-License-Identifier: Apache-2.0
"""The block of the YOLO-Master networks v0.1: convolutional router, pointwise experts, a shared expert.

It differs from `ESMoE` in its parts alone: gate, executors, record and losses are the same. Facts of the released
networks; the paper (arXiv 2512.23273) does not describe it. Axes: B images, E experts, K selected experts, C channels.
"""

from threading import local

from torch import nn

from moe_vision._types import DispatchMode, LayerFactory, SoftMode
from moe_vision.layers.checks import check_choice, check_positive, check_top_k
from moe_vision.layers.dispatch import DISPATCH_MODES
from moe_vision.layers.esmoe import ESMoE
from moe_vision.layers.gating import TopKGate
from moe_vision.layers.pointwise_experts import PointwiseExperts
from moe_vision.layers.pooled_router import PooledRouter


class PointwiseMoE(ESMoE):
    """The MoE block of the networks v0.1: Y = shared(x) + sum_i w_i expert_i(x), without a norm at the end.

    An `ESMoE` with other parts: `PooledRouter`, `moe_vision.layers.PointwiseExperts` and a pointwise shared expert.

    Args:
        channels: Channels of input and output.
        num_experts: Number of experts E.
        top_k: Number of experts K an image selects, in [1, E].
        soft: Weights in training, see `moe_vision.soft_top_k`.
        dispatch: Executor of the mixture, see `ESMoE`.
        norm_layer: Factory of norms, called with the number of channels.

    Shape:
        - Input: (B, channels, H, W)
        - Output: as the input

    Raises:
        ValueError: If an argument is out of its range, or the input is not (B, channels, H, W).

    Examples:
        >>> import torch
        >>> from moe_vision.layers import PointwiseMoE
        >>> PointwiseMoE(16, num_experts=8)(torch.rand(2, 16, 20, 20)).shape
        torch.Size([2, 16, 20, 20])
    """

    def __init__(
        self,
        channels: int,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        soft: SoftMode = "masked",
        dispatch: DispatchMode = "auto",
        norm_layer: LayerFactory = nn.BatchNorm2d,
    ) -> None:
        nn.Module.__init__(self)  # other parts than those of ESMoE
        check_positive(channels=channels, num_experts=num_experts)
        check_top_k(top_k, num_experts)
        check_choice("dispatch", dispatch, DISPATCH_MODES)
        self.in_channels = self.out_channels = channels
        self.dispatch = dispatch
        self.residual = False
        self._record = local()

        self.router = PooledRouter(channels, num_experts, norm_layer=norm_layer)
        self.gate = TopKGate(top_k, soft)
        self.experts = PointwiseExperts(channels, num_experts, norm_layer=norm_layer)
        conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.shared_expert = nn.Sequential(conv, norm_layer(channels), nn.SiLU())
        self.norm = nn.Identity()
        self.act = nn.Identity()
        for module in (*self.experts.modules(), conv):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
