# SPDX-License-Identifier: Apache-2.0
"""Routing is decided in fp32, whatever precision the rest of a network runs in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations on the device of ``x`` keep their precision."""
    kind = x.device.type
    if kind == "meta":  # it has no autocast, and shapes and FLOPs are found out on it
        return nullcontext()
    # torch.export fails on such a region beside branches; where autocast is off there is nothing to keep out.
    if torch.compiler.is_exporting() and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
