# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Experts layers for convolutional networks; they need torch and einops alone."""

from moe_vision.layers.biased_gate import BiasedTopKGate
from moe_vision.layers.esmoe import ESMoE
from moe_vision.layers.experts import DepthwiseExpert, DepthwiseExperts, SeparableExpert
from moe_vision.layers.fusion import fuse
from moe_vision.layers.gating import TopKGate, hard_top_k, soft_top_k
from moe_vision.layers.keep_experts import keep_experts
from moe_vision.layers.pointwise_experts import PointwiseExpert, PointwiseExperts
from moe_vision.layers.pointwise_moe import PointwiseMoE
from moe_vision.layers.pooled_router import PooledRouter
from moe_vision.layers.routing import DynamicRouter, Routing
from moe_vision.layers.top_p import TopPGate

__all__ = [
    "BiasedTopKGate",
    "DepthwiseExpert",
    "DepthwiseExperts",
    "DynamicRouter",
    "ESMoE",
    "PointwiseExpert",
    "PointwiseExperts",
    "PointwiseMoE",
    "PooledRouter",
    "Routing",
    "SeparableExpert",
    "TopKGate",
    "TopPGate",
    "fuse",
    "hard_top_k",
    "keep_experts",
    "soft_top_k",
]
