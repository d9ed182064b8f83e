# SPDX-License-Identifier: Apache-2.0
"""What the experts of a model do."""

from moe_vision.diagnostics.usage import ExpertUsage

__all__ = ["ExpertUsage"]
