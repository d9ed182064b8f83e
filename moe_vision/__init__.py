# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Experts layers for convolutional vision models, and the YOLO-Master networks made of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_vision._timm_registration import register_with_timm

if TYPE_CHECKING:
    from moe_vision.exporting import export
    from moe_vision.inference import predict
    from moe_vision.layers import (
        BiasedTopKGate,
        DepthwiseExperts,
        DynamicRouter,
        ESMoE,
        Routing,
        TopKGate,
        TopPGate,
        fuse,
        hard_top_k,
        soft_top_k,
    )
    from moe_vision.losses import (
        auxiliary_loss,
        expert_budget_loss,
        load_balancing_loss,
        router_z_loss,
        update_selection_bias,
    )
    from moe_vision.models import create_model, list_models, load_official
    from moe_vision.pruning import prune
    from moe_vision.surgery import find_sites, load_swapped, swap, unswap

__version__ = "0.1.0"

__all__ = [
    "BiasedTopKGate",
    "DepthwiseExperts",
    "DynamicRouter",
    "ESMoE",
    "Routing",
    "TopKGate",
    "TopPGate",
    "auxiliary_loss",
    "create_model",
    "expert_budget_loss",
    "export",
    "find_sites",
    "fuse",
    "hard_top_k",
    "list_models",
    "load_balancing_loss",
    "load_official",
    "load_swapped",
    "predict",
    "prune",
    "router_z_loss",
    "soft_top_k",
    "swap",
    "unswap",
    "update_selection_bias",
]

# Where the names are. Each is loaded when it is used: layers without torchvision and timm, which take seconds to
# import, and `moe_vision.runtime` without torch.
_LAZY = {
    "BiasedTopKGate": "layers",
    "DepthwiseExperts": "layers",
    "DynamicRouter": "layers",
    "ESMoE": "layers",
    "Routing": "layers",
    "TopKGate": "layers",
    "TopPGate": "layers",
    "auxiliary_loss": "losses",
    "create_model": "models",
    "expert_budget_loss": "losses",
    "export": "exporting",
    "find_sites": "surgery",
    "fuse": "layers",
    "hard_top_k": "layers",
    "list_models": "models",
    "load_balancing_loss": "losses",
    "load_official": "models",
    "load_swapped": "surgery",
    "predict": "inference",
    "prune": "pruning",
    "router_z_loss": "losses",
    "soft_top_k": "layers",
    "swap": "surgery",
    "unswap": "surgery",
    "update_selection_bias": "losses",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY.values():  # `import moe_vision` is enough for `moe_vision.layers`
        return import_module(f"moe_vision.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_vision' has no attribute {name!r}")
    return getattr(import_module(f"moe_vision.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_timm()
