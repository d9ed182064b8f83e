# SPDX-License-Identifier: Apache-2.0
"""Tasks: what a network is trained on, its loss, and what its output means."""

from moe_vision.tasks.detect import check_targets, detect_loss, postprocess

__all__ = ["check_targets", "detect_loss", "postprocess"]
