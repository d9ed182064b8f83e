# SPDX-License-Identifier: Apache-2.0
"""Forwards that the norms do not count."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the norms, of whatever dimensions and synchronised or not, from counting a batch that is computed twice.

    Args:
        module: Any module in training.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.layers.frozen_statistics import frozen_statistics
        >>> norm = nn.BatchNorm2d(1)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.ones(2, 1, 4, 4))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
    """
    momenta = {norm: norm.momentum for norm in module.modules() if isinstance(norm, _BatchNorm)}
    counts = [count for name, count in module.named_buffers() if name.endswith("num_batches_tracked")]
    before = [count.clone() for count in counts]
    for norm in momenta:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
