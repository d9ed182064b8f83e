# SPDX-License-Identifier: Apache-2.0
"""Losses of a batch that is spread over the ranks of torch.distributed.

DistributedDataParallel averages the gradients of R ranks. So a rank's loss is R times its part of the whole batch's
loss: the mean over the ranks, of the values as of the gradients, is then the whole batch's.
"""

from collections.abc import Sequence

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


def global_mean(values: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Average (B, D) over the images of all ranks, and of other batches, to (D,), for gradients that are averaged too.

    The value is the mean over all images. Of n parts (the batches of a step on all ranks) the gradient of one with B
    images is scaled by n B / sum B, which the mean over the parts turns into the whole step's.

    Args:
        values: Of the images of this batch.
        others: Of those of the other batches of a step, on this rank.

    Examples:
        >>> import torch
        >>> from moe_vision.losses.ranks import global_mean
        >>> global_mean(torch.tensor([[1.0], [3.0]]), [])
        tensor([2.])
    """
    batch = values.shape[0]
    local = values.sum(dim=0) / max(batch, 1)
    spread = spread_over_ranks(values)
    if not (spread or others):
        return local
    whole = torch.stack([_sum_and_count(part) for part in (values.detach(), *others)]).sum(dim=0)
    if spread:
        dist.all_reduce(whole)
    total = whole[-1].clamp(min=1)
    parts = (1 + len(others)) * (dist.get_world_size() if spread else 1)
    return whole[:-1] / total + parts * batch / total * (local - local.detach())


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.cat([values.sum(dim=0), values.new_full((1,), values.shape[0])])
