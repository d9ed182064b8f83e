# SPDX-License-Identifier: Apache-2.0
"""What the experts of a model do, and what they cost."""

from moe_vision.diagnostics.cost import Cost, count_flops, count_parameters
from moe_vision.diagnostics.latency import measure_latency
from moe_vision.diagnostics.usage import ExpertUsage

__all__ = ["Cost", "ExpertUsage", "count_flops", "count_parameters", "measure_latency"]
