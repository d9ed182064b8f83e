# SPDX-License-Identifier: Apache-2.0
"""Names for types that several floors share."""

from collections.abc import Callable
from typing import Literal

from torch import nn

LayerFactory = Callable[..., nn.Module]
SoftMode = Literal["masked", "relaxed", "straight_through"]
ExpertKind = Literal["separable", "depthwise"]
ExpertInit = Literal["independent", "shared"]
DispatchMode = Literal["auto", "dense", "grouped", "per_image", "static"]
BalanceKind = Literal["switch", "mse", "cv2", "information"]
