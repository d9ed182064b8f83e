# SPDX-License-Identifier: Apache-2.0
"""These tests compare networks, and must see their residual branches."""

from tests.trained import _open_branches  # noqa: F401
