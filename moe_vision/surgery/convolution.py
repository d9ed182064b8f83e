# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions of other networks, and blocks that amount to one."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision.layers.fusion import fold_norm
from moe_vision.surgery.grid import SAME

# timm's block goes by its name, so that a model that is not timm's does not wait for timm.
REPARAMETERISED = "RepVggDw"


def as_depthwise(module: nn.Module) -> nn.Conv2d | None:
    """Return the depthwise convolution that a module is in eval, before its last norm; None if it is none.

    RepViT's token mixer, the sum of a 3 x 3 convolution with norm, a 1 x 1 convolution and the input, is one; the norm
    that it applies to the sum is left out, see `norm_of`.

    Args:
        module: Any module.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.surgery.convolution import as_depthwise
        >>> as_depthwise(nn.Conv2d(8, 8, 3, groups=4)) is None
        True
    """
    if type(module).__name__ == REPARAMETERISED:
        return _sum_of_branches(module)
    return cast(nn.Conv2d, module) if _is_depthwise(module) else None


def norm_of(module: nn.Module) -> nn.Module | None:
    """Return the norm that a module applies after the convolution that `as_depthwise` returns; None if there is none.

    Args:
        module: Any module.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.surgery.convolution import norm_of
        >>> norm_of(nn.Conv2d(8, 8, 3, groups=8)) is None
        True
    """
    norm = module.bn if type(module).__name__ == REPARAMETERISED else None
    return None if isinstance(norm, nn.Identity) else cast(nn.Module | None, norm)


def _is_depthwise(module: nn.Module) -> bool:
    if not (type(module) is nn.Conv2d or type(module).__name__ in SAME):
        return False  # subclasses may do something else with their weights
    conv = cast(nn.Conv2d, module)
    pairs = (conv.kernel_size, conv.stride, conv.dilation, (0, 0) if isinstance(conv.padding, str) else conv.padding)
    size = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and all(height == width for height, width in pairs)
        and size > 1
        and size % 2 == 1
        and conv.padding_mode == "zeros"
        and "weight" in dict(conv.named_parameters(recurse=False))  # not computed from others
    )


@torch.no_grad()
def _sum_of_branches(mixer: nn.Module) -> nn.Conv2d:
    """Add up the branches of RepViT's token mixer to one convolution with bias."""
    large, small = mixer.get_submodule("conv"), mixer.get_submodule("conv1")
    total = _folded(large)
    point = _folded(small) if isinstance(small, nn.Sequential) else cast(nn.Conv2d, small)
    total.weight += F.pad(point.weight + 1, [total.kernel_size[0] // 2] * 4)  # 1 is the input itself
    total.bias = nn.Parameter(cast(Tensor, total.bias) + cast(Tensor, point.bias))
    return total.requires_grad_(any(parameter.requires_grad for parameter in mixer.parameters()))


def _folded(conv_norm: nn.Module) -> nn.Conv2d:
    """Return a new convolution that does what timm's convolution with norm does in eval."""
    return fold_norm(cast(nn.Conv2d, conv_norm.c), cast(nn.Module, conv_norm.bn))[0]
