# SPDX-License-Identifier: Apache-2.0
"""Removing experts that contribute little."""

from moe_vision.pruning.pruner import prune
from moe_vision.pruning.report import PruneReport, Removal

__all__ = ["PruneReport", "Removal", "prune"]
