# SPDX-License-Identifier: Apache-2.0
"""Pictures and plots; the plots need the extra ``visualize``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_vision.visualize.inspection import Inspection, inspect_routing
from moe_vision.visualize.pictures import comparison_sheet, draw_detections, sample_sheet, save_picture
from moe_vision.visualize.routing_page import routing_page

if TYPE_CHECKING:
    from moe_vision.visualize.evaluation_plots import plot_confusion, plot_precision_recall
    from moe_vision.visualize.plots import plot_expert_usage, plot_routing, plot_training

__all__ = [
    "Inspection",
    "comparison_sheet",
    "draw_detections",
    "inspect_routing",
    "plot_confusion",
    "plot_expert_usage",
    "plot_precision_recall",
    "plot_routing",
    "plot_training",
    "routing_page",
    "sample_sheet",
    "save_picture",
]

# Pictures need no matplotlib; what does is loaded when it is used.
_LAZY = {
    "plot_confusion": "evaluation_plots",
    "plot_expert_usage": "plots",
    "plot_precision_recall": "evaluation_plots",
    "plot_routing": "plots",
    "plot_training": "plots",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_vision.visualize' has no attribute {name!r}")
    return getattr(import_module(f"moe_vision.visualize.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
