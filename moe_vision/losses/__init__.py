# SPDX-License-Identifier: Apache-2.0
"""Losses: balance of the experts, and what the tasks need."""

from moe_vision.losses.balance import auxiliary_loss, load_balancing_loss, router_z_loss
from moe_vision.losses.budget import expert_budget_loss
from moe_vision.losses.selection_bias import update_selection_bias

__all__ = ["auxiliary_loss", "expert_budget_loss", "load_balancing_loss", "router_z_loss", "update_selection_bias"]
