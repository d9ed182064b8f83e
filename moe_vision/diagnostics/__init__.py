# SPDX-License-Identifier: Apache-2.0
"""What the experts of a model do, and what they cost."""

from moe_vision.diagnostics.cost import Cost, count_flops, count_parameters
from moe_vision.diagnostics.executed import measure_flops
from moe_vision.diagnostics.latency import Latency, compare_latency, measure_latency
from moe_vision.diagnostics.usage import ExpertUsage

__all__ = [
    "Cost",
    "ExpertUsage",
    "Latency",
    "compare_latency",
    "count_flops",
    "count_parameters",
    "measure_flops",
    "measure_latency",
]
