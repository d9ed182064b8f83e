# SPDX-License-Identifier: Apache-2.0
"""What the experts of a model do, and what they cost."""

from moe_vision.diagnostics.alarms import Alarm, find_alarms
from moe_vision.diagnostics.cost import Cost, count_expert_flops, count_flops, count_parameters
from moe_vision.diagnostics.executed import measure_flops
from moe_vision.diagnostics.latency import Latency, compare_latency, measure_latency
from moe_vision.diagnostics.monitor import RoutingMonitor
from moe_vision.diagnostics.summary import GroupRouting, RoutingSummary

__all__ = [
    "Alarm",
    "Cost",
    "GroupRouting",
    "Latency",
    "RoutingMonitor",
    "RoutingSummary",
    "compare_latency",
    "count_expert_flops",
    "count_flops",
    "count_parameters",
    "find_alarms",
    "measure_flops",
    "measure_latency",
]
