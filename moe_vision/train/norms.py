# SPDX-License-Identifier: Apache-2.0
"""Norms whose statistics are those of the images of all processes, as if one process had the whole batch."""

from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn


def synchronize_norms(model: nn.Module, device: torch.device) -> None:
    """Give a model norms that average over all processes of a run; on GPUs they are torch's.

    Parameters and buffers, and their names, stay what they are. In eval mode nothing is synchronised.

    Args:
        model: The network, changed in place; not a norm itself.
        device: Where it will train.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.train.norms import synchronize_norms
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        >>> synchronize_norms(model, torch.device("cpu"))
        >>> list(model.state_dict())[2:]
        ['1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    if device.type != "cpu":
        convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for norm in model.modules():  # torch's refuse tensors on the CPU
        if isinstance(norm, nn.BatchNorm2d):
            norm.__class__ = _CPUNormAct if isinstance(norm, BatchNormAct2d) else _CPUNorm


class _CPUNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalize(self, input) if self.training and dist.is_initialized() else super().forward(input)


class _CPUNormAct(BatchNormAct2d):
    """The same for timm's norm with activation."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.act(self.drop(_normalize(self, x))))


def _normalize(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    y, mean, variance, count = _Standardize.apply(x, norm.eps)
    if norm.track_running_stats:
        _track(norm, mean, variance * count / (count - 1).clamp(min=1))
    if norm.affine:
        y = _by_channel(norm.weight, y) * y + _by_channel(norm.bias, y)
    return cast(Tensor, y.to(x.dtype))


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, unbiased_variance: Tensor) -> None:
    running_mean, running_variance, batches = norm.buffers(recurse=False)
    batches.add_(1)
    momentum = 1 / int(batches) if norm.momentum is None else norm.momentum
    running_mean.lerp_(mean, momentum)
    running_variance.lerp_(unbiased_variance, momentum)


class _Standardize(torch.autograd.Function):
    """Subtract the mean of each channel and divide by its standard deviation, over the values of all processes.

    Return also that mean and (biased) variance, and how many values there are. A process may have no image.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        own_count = x.new_full((1,), x.numel() // x.shape[1])
        *sums, count = _all_reduce(torch.cat([_sum(x), own_count]))
        mean = torch.stack(sums) / count
        centred = x - _by_channel(mean, x)
        variance = _all_reduce(_sum(centred.square())) / count
        inverse = (variance + eps).rsqrt()
        y = centred * _by_channel(inverse, x)
        ctx.save_for_backward(y, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, inverse, count = ctx.saved_tensors
        grad = grads[0]
        mean_grad, mean_product = _all_reduce(torch.stack([_sum(grad), _sum(grad * y)])) / count
        grad = grad - _by_channel(mean_grad, y) - y * _by_channel(mean_product, y)
        return _by_channel(inverse, y) * grad, None


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


def _sum(x: Tensor) -> Tensor:
    """Sum each channel, (C,)."""
    return x.sum(dim=[0, *range(2, x.ndim)])


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2))
