# SPDX-License-Identifier: Apache-2.0
"""Swapping ES-MoE into timm's models, and any other, without losing what they know."""

from moe_vision.surgery.files import load_swapped, save_swapped
from moe_vision.surgery.recipe import SwapRecipe
from moe_vision.surgery.report import Replacement, Size, SwapReport
from moe_vision.surgery.shared_zero import SharedZero
from moe_vision.surgery.sites import Site, find_sites, is_depthwise
from moe_vision.surgery.swap import swap, unswap
from moe_vision.surgery.upcycle import DepthwiseESMoE

__all__ = [
    "DepthwiseESMoE",
    "Replacement",
    "SharedZero",
    "Site",
    "Size",
    "SwapRecipe",
    "SwapReport",
    "find_sites",
    "is_depthwise",
    "load_swapped",
    "save_swapped",
    "swap",
    "unswap",
]
