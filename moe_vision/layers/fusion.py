# SPDX-License-Identifier: Apache-2.0
"""Fusing for deployment: BatchNorm with frozen statistics is part of the convolution before it.

Blocks take part by timm's protocol: ``timm.utils.reparameterize_model`` and `fuse` call ``reparameterize()`` of each
block, or ``fuse()`` or ``switch_to_deploy()`` of blocks of other packages.
"""

import copy
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ConvT = TypeVar("ConvT", bound=nn.Module)

# In the order of timm.
PROTOCOL = ("fuse", "reparameterize", "switch_to_deploy")


def fuse(model: ModuleT) -> ModuleT:
    """Copy a model for deployment: the same function in eval, with less to compute.

    Norms that have running statistics become part of the convolutions before them: in our blocks, in those of other
    packages that have ``fuse()``, ``reparameterize()`` or ``switch_to_deploy()`` as timm's have, and in any
    `torch.nn.Sequential`. Weights lie in channels_last. The copy is in eval and its parameters need no gradient;
    ``train()`` does not bring the norms back. ``timm.utils.reparameterize_model`` does the same to our blocks.

    Args:
        model: Any module; it is left as it is.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE, fuse
        >>> layer, x = ESMoE(16).eval(), torch.rand(2, 16, 20, 20)
        >>> fused = fuse(layer)
        >>> torch.allclose(fused(x), layer(x), atol=1e-5)
        True
        >>> fused.experts[0].norm
        Identity()
    """
    with torch.no_grad():
        fused = _fused(copy.deepcopy(model).eval())
    # What blocks of other packages have made anew is in training and wants gradients.
    return cast(ModuleT, fused.eval().requires_grad_(False).to(memory_format=torch.channels_last))


def fold_norm(conv: ConvT, norm: nn.Module) -> tuple[ConvT, nn.Module]:
    """Return a convolution that does what both do in eval, and an identity; or both as they are.

    Args:
        conv: A convolution; a `torch.nn.Conv2d` folds.
        norm: What follows it; a BatchNorm with running statistics folds.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import fold_norm
        >>> fold_norm(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))
        (Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1)), Identity())
        >>> isinstance(fold_norm(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))[1], nn.GroupNorm)
        True
    """
    if not _is_plain(conv) or not has_frozen_statistics(norm):
        return conv, norm
    folded = cast(nn.Conv2d, copy.deepcopy(conv))  # another norm may share the convolution
    weight, bias = folded_weights(folded, norm)
    folded.weight = nn.Parameter(weight.detach(), folded.weight.requires_grad)
    folded.bias = nn.Parameter(bias.detach(), folded.weight.requires_grad)
    return cast(ConvT, folded), nn.Identity()


def fold_sequence(sequence: nn.Module) -> None:
    """Fold each norm of a sequence into the convolution that comes directly before it.

    Args:
        sequence: A `torch.nn.Sequential`.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import fold_sequence
        >>> sequence = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        >>> fold_sequence(sequence)
        >>> sequence[1]
        Identity()
    """
    for before, after in pairwise(list(sequence._modules)):  # named_children() leaves out repeated ones
        conv, norm = fold_norm(getattr(sequence, before), getattr(sequence, after))
        setattr(sequence, before, conv)
        setattr(sequence, after, norm)


def folded_weights(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that includes the norm; they carry its gradient.

    Args:
        conv: A convolution.
        norm: The norm after it, for which `has_frozen_statistics` holds.

    Shape:
        - Output: weight as that of ``conv``, bias (C_out,); in its type, computed in fp32 at least

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import folded_weights
        >>> weight, bias = folded_weights(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        >>> weight.shape, bias.shape
        (torch.Size([8, 3, 1, 1]), torch.Size([8]))
    """
    scale, bias = _scale_and_shift(cast(nn.BatchNorm2d, norm))
    if conv.bias is not None:
        bias = bias + conv.bias.to(scale.dtype) * scale
    weight = conv.weight.to(scale.dtype) * scale[:, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def has_frozen_statistics(norm: nn.Module) -> bool:
    """Tell whether a norm is a fixed scale and shift in eval: a BatchNorm with running statistics.

    Args:
        norm: Any module. One that activates besides, as timm's ``BatchNormAct2d``, is more than that.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import has_frozen_statistics
        >>> has_frozen_statistics(nn.BatchNorm2d(8)), has_frozen_statistics(nn.GroupNorm(2, 8))
        (True, False)
    """
    forwards = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
    return type(norm).forward in forwards and cast(Any, norm).running_mean is not None


def in_place(act: nn.Module) -> nn.Module:
    """Return a copy of an activation that overwrites its input, or itself if it can't.

    Args:
        act: The activation of features that nobody else reads.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import in_place
        >>> in_place(nn.SiLU()), in_place(nn.GELU())
        (SiLU(inplace=True), GELU(approximate='none'))
    """
    if not hasattr(act, "inplace"):
        return act
    act = copy.copy(act)  # an activation without parameters may serve in several places
    act.inplace = cast(Any, True)
    return act


class ScaleShift(nn.Module):
    """What a BatchNorm with running statistics is in eval, a scale and a shift a channel, written over its input.

    Args:
        norm: A norm for which `has_frozen_statistics` holds.

    Shape:
        - Input: (B, C, H, W)
        - Output: as the input, in its memory

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from moe_vision.layers.fusion import ScaleShift
        >>> ScaleShift(nn.BatchNorm2d(1, eps=0.0))(torch.full((1, 1, 1, 2), 3.0))
        tensor([[[[3., 3.]]]], grad_fn=<AddBackward0>)
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(cast(nn.BatchNorm2d, norm))
        dtype = cast(Tensor, norm.running_mean).dtype
        self.scale = nn.Parameter(scale.detach().to(dtype)[:, None, None])
        self.shift = nn.Parameter(shift.detach().to(dtype)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted features."""
        return x.mul_(self.scale).add_(self.shift)


def _fused(module: nn.Module) -> nn.Module:
    """Fuse a module and those inside it; blocks of some packages return another in their place."""
    method = _protocol_method(module)
    if method is not None:
        module = method() or module
    elif type(module).forward is nn.Sequential.forward:
        fold_sequence(module)
    for name, child in list(module.named_children()):
        setattr(module, name, _fused(child))
    return module


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a norm multiplies each channel by and adds then, in fp32 at least; they carry its gradient."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    precise = torch.promote_types(mean.dtype, torch.float32)
    scale = (variance.to(precise) + norm.eps).rsqrt()
    if not norm.affine:
        return scale, -mean.to(precise) * scale
    scale = scale * norm.weight.to(precise)
    return scale, norm.bias.to(precise) - mean.to(precise) * scale


def _protocol_method(module: nn.Module) -> Callable[[], nn.Module | None] | None:
    """Return the block's own way to fuse, if it has one."""
    for name in PROTOCOL:
        if callable(getattr(type(module), name, None)):
            method = getattr(module, name)
            parameters = inspect.signature(method).parameters.values()
            if all(parameter.default is not parameter.empty for parameter in parameters):
                return cast(Callable[[], nn.Module | None], method)  # else it is a name for something else
    return None


def _is_plain(conv: nn.Module) -> bool:
    """Tell whether a convolution is torch's own, its weight a parameter and not computed from others."""
    return type(conv) is nn.Conv2d and "weight" in dict(conv.named_parameters(recurse=False))
