# SPDX-License-Identifier: Apache-2.0
"""Pictures and plots; the plots need the extra ``visualize``."""

from typing import TYPE_CHECKING, Any

from moe_vision.visualize.pictures import comparison_sheet, draw_detections, save_picture

if TYPE_CHECKING:
    from moe_vision.visualize.plots import plot_routing, plot_training

__all__ = ["comparison_sheet", "draw_detections", "plot_routing", "plot_training", "save_picture"]


def __getattr__(name: str) -> Any:
    # Pictures need no matplotlib; what does is loaded when it is used.
    if name not in ("plot_routing", "plot_training"):
        raise AttributeError(f"module 'moe_vision.visualize' has no attribute {name!r}")
    from moe_vision.visualize import plots

    return getattr(plots, name)
