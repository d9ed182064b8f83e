# SPDX-License-Identifier: Apache-2.0
"""Losses of a batch that is spread over the ranks of torch.distributed.

DistributedDataParallel averages the gradients of R ranks. So a rank's loss is R times its part of the whole batch's
loss: the mean over the ranks, of the values as of the gradients, is then the whole batch's.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def spread_over_ranks(values: Tensor) -> bool:
    """Tell whether values belong to a step that several ranks make together.

    Without a gradient (validation, where ranks may not all take part) the ranks are not to be asked.

    Args:
        values: What a loss is made of, with its gradient.

    Examples:
        >>> import torch
        >>> from moe_vision.losses.ranks import spread_over_ranks
        >>> spread_over_ranks(torch.ones(1, requires_grad=True))
        False
    """
    return values.requires_grad and dist.is_available() and dist.is_initialized()


def rank_divisor(amount: Tensor, values: Tensor) -> Tensor:
    """Return what a rank divides a sum over its images by: the amount of the whole batch, at least 1, over R.

    Args:
        amount: What the rank's images contribute to the divisor of the whole batch.
        values: What the sum is made of, with its gradient.

    Shape:
        - amount: a scalar
        - Output: a scalar

    Examples:
        >>> import torch
        >>> from moe_vision.losses.ranks import rank_divisor
        >>> rank_divisor(torch.tensor(0.25), torch.ones(1, requires_grad=True))
        tensor(1.)
    """
    if not spread_over_ranks(values):
        return amount.clamp(min=1)
    whole = amount.detach().to(torch.float32, copy=True)  # of one type on all ranks, also on one without images
    dist.all_reduce(whole)
    return whole.clamp(min=1) / dist.get_world_size()
