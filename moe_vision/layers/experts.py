# SPDX-License-Identifier: Apache-2.0
"""The experts: convolutions that differ in kernel size.

Two kinds, never to be confused. A *separable* expert is the paper's: depthwise, pointwise, norm, activation. A
*depthwise* expert is a linear depthwise convolution, so that several of them merge into one by adding their kernels.
Axes: B images, E experts, K selected experts, C channels.
"""

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision._types import ExpertInit, ExpertKind, LayerFactory
from moe_vision.layers.checks import check_choice, check_kernel_sizes, check_positive
from moe_vision.layers.fusion import fold_norm, folded_weights, has_frozen_statistics, in_place

EXPERT_KINDS: tuple[str, ...] = get_args(ExpertKind)
EXPERT_INITS: tuple[str, ...] = get_args(ExpertInit)


class SeparableExpert(nn.Module):
    """Depthwise k x k, pointwise 1 x 1, norm, activation (section 3.3 of arXiv 2512.23273).

    There is no norm and no activation between the two convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side k of the depthwise kernel, odd.
        stride: Stride of the depthwise convolution.
        dilation: Dilation of the depthwise convolution.
        act_layer: Factory of the activation.
        norm_layer: Factory of the norm, called with the number of channels.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, ceil(H / stride), ceil(W / stride))

    Examples:
        >>> import torch
        >>> from moe_vision.layers import SeparableExpert
        >>> SeparableExpert(8, 16, kernel_size=5)(torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 16, 12, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        act_layer: LayerFactory = nn.SiLU,
        norm_layer: LayerFactory = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv_dw = _depthwise(in_channels, kernel_size, stride, dilation, bias=False, **dd)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False, **dd)
        self.norm = norm_layer(out_channels, **dd)
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of one expert for a feature map."""
        return cast(Tensor, self.act(self.norm(self.conv_pw(self.conv_dw(x)))))

    def reparameterize(self) -> None:
        """Fold the norm into the pointwise convolution, see `moe_vision.fuse`."""
        self.conv_pw, self.norm = fold_norm(self.conv_pw, self.norm)
        self.act = in_place(self.act)


class DepthwiseExpert(nn.Module):
    """A linear expert: one depthwise k x k convolution and nothing else.

    Args:
        channels: Channels of input and output.
        kernel_size: Side k of the kernel, odd.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        bias: Add a bias a channel.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Shape:
        - Input: (B, channels, H, W)
        - Output: (B, channels, ceil(H / stride), ceil(W / stride))

    Examples:
        >>> import torch
        >>> from moe_vision.layers import DepthwiseExpert
        >>> DepthwiseExpert(8, kernel_size=5, stride=2)(torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 8, 6, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv_dw = _depthwise(channels, kernel_size, stride, dilation, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved feature map."""
        return cast(Tensor, self.conv_dw(x))


class DepthwiseExperts(nn.ModuleList):
    """A list of experts, one for each kernel size; ``experts[i]`` is the i-th alone.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, ``in_channels`` if None.
        kernel_sizes: Odd kernel sizes, one an expert.
        stride: Stride of every expert.
        dilation: Dilation of every depthwise kernel.
        kind: ``separable`` (the paper's) or ``depthwise`` (linear, merges; out_channels = in_channels).
        bias: Add a bias a channel; for ``depthwise`` alone.
        init: How they start: ``independent``, or ``shared``: all as one pointwise layer, their depthwise kernels
            the identity, so that they are one function until training tells them apart.
        act_layer: Factory of a separable expert's activation.
        norm_layer: Factory of a separable expert's norm.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Attributes:
        overwritable: Whether executors may write over the features; set by `moe_vision.fuse`.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: every expert's features, (B, E, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError: If a size is below 1, a kernel size is even or none is given, ``kind`` is unknown, or an
            argument does not go with ``kind``.

    Examples:
        >>> import torch
        >>> from moe_vision import DepthwiseExperts
        >>> experts = DepthwiseExperts(8, kernel_sizes=(3, 5, 7))
        >>> experts(torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 3, 8, 12, 10])
        >>> experts[1](torch.rand(2, 8, 12, 10)).shape
        torch.Size([2, 8, 12, 10])
    """

    overwritable = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        stride: int = 1,
        dilation: int = 1,
        kind: ExpertKind = "separable",
        bias: bool = False,
        init: ExpertInit = "independent",
        act_layer: LayerFactory = nn.SiLU,
        norm_layer: LayerFactory = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_positive(in_channels=in_channels, out_channels=out_channels, stride=stride, dilation=dilation)
        check_kernel_sizes(kernel_sizes)
        check_choice("expert", kind, EXPERT_KINDS)
        check_choice("init", init, EXPERT_INITS)
        if kind == "depthwise" and out_channels != in_channels:
            raise ValueError(
                f"out_channels must equal in_channels={in_channels} for depthwise experts, got {out_channels}; "
                "separable experts can change the number of channels"
            )
        if kind == "separable" and bias:
            raise ValueError("bias must be False for separable experts, whose norm has one, got True")
        self.kind: ExpertKind = kind
        self.kernel_sizes = tuple(kernel_sizes)
        self.stride = stride
        self.dilation = dilation
        shared: dict[str, Any] = {"stride": stride, "dilation": dilation, "device": device, "dtype": dtype}
        for size in self.kernel_sizes:
            if kind == "depthwise":
                self.append(DepthwiseExpert(in_channels, size, bias=bias, **shared))
            else:
                layers: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer}
                self.append(SeparableExpert(in_channels, out_channels, size, **layers, **shared))
        if init == "shared":
            self._share_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of every expert, stacked to (B, E, C, H, W)."""
        return torch.stack([expert(x) for expert in self], dim=1)

    def merged(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the mixture of linear experts at the cost of one: each image is convolved with its mixed kernel.

        By linearity sum_i w_i (kernel_i * x) = (sum_i w_i kernel_i) * x, the argument of CondConv
        (arXiv 1904.04971). For ``depthwise`` experts alone; the batch is folded into the groups.
        """
        batch, channels = x.shape[:2]
        experts = cast(list[DepthwiseExpert], list(self))
        weights = weights.to(x.dtype)
        kernels = self._kernels().to(x.dtype)
        mixed = (weights @ kernels.flatten(1)).view(batch * channels, *kernels.shape[2:])
        bias = None
        if experts[0].conv_dw.bias is not None:
            biases = torch.stack([cast(Tensor, expert.conv_dw.bias) for expert in experts])
            bias = (weights @ biases.to(x.dtype)).flatten()
        y = self._convolve(x.reshape(1, batch * channels, *x.shape[2:]), mixed, bias)
        return y.view(batch, channels, *y.shape[2:])

    def gathered(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the features of the selected separable experts, (B, K, C, H, W), without a host transfer.

        The kernels of the selected experts are gathered, padded to the largest size, and applied with images and
        experts folded into the groups, so that all shapes are fixed. Statistics of the norm must be frozen.
        """
        batch, num_selected = indices.shape
        experts = cast(list[SeparableExpert], list(self))
        kernels = self._kernels().to(x.dtype)[indices].flatten(0, 2)
        folded = x.unsqueeze(1).expand(-1, num_selected, -1, -1, -1).reshape(1, -1, *x.shape[2:])
        depthwise = self._convolve(folded, kernels)
        height, width = depthwise.shape[2:]
        y = depthwise.view(batch, num_selected, -1, height * width)
        y = gathered_pointwise(y, self._pointwise_layers(), indices)
        return cast(Tensor, experts[0].act(y.view(*y.shape[:-1], height, width)))

    def can_gather(self) -> bool:
        """Tell whether `gathered` applies: separable experts whose norms have running statistics or are folded."""
        return self.kind == "separable" and all(can_freeze(*layer) for layer in self._pointwise_layers())

    def _pointwise_layers(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        return [(expert.conv_pw, expert.norm) for expert in cast(list[SeparableExpert], list(self))]

    def _share_weights(self) -> None:
        """Give every expert the weights of the first, and as its depthwise kernel the identity, whatever its size."""
        shared = self[0].state_dict()
        for expert in cast(list[SeparableExpert | DepthwiseExpert], list(self)):
            identity = nn.init.dirac_(expert.conv_dw.weight, groups=expert.conv_dw.groups)
            expert.load_state_dict({**shared, "conv_dw.weight": identity})

    def _kernels(self) -> Tensor:
        """Stack the depthwise kernels to (E, C, 1, k, k), padded with zeros to the largest k; the padding is exact."""
        largest = max(self.kernel_sizes)
        kernels = [expert.conv_dw.weight for expert in cast("list[SeparableExpert | DepthwiseExpert]", list(self))]
        margins = [(largest - size) // 2 for size in self.kernel_sizes]
        padded = [F.pad(k, [m] * 4) if m else k for k, m in zip(kernels, margins, strict=True)]
        return torch.stack(padded)

    def _convolve(self, x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = self.dilation * (max(self.kernel_sizes) // 2)
        return F.conv2d(x, kernels, bias, self.stride, padding, self.dilation, groups=kernels.shape[0])


def _depthwise(
    channels: int,
    kernel_size: int,
    stride: int,
    dilation: int,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    return nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=bias, **dd)


def gathered_pointwise(x: Tensor, layers: Sequence[tuple[nn.Conv2d, nn.Module]], indices: Tensor) -> Tensor:
    """Apply to (B, 1 or K, C, N) the 1 x 1 convolution and the frozen norm that each of the K selected experts has."""
    folded = [_frozen_layer(conv, norm) for conv, norm in layers]
    weights, biases = (torch.stack(values).to(x.dtype) for values in zip(*folded, strict=True))
    y = weights[:, :, :, 0, 0][indices] @ x
    return y + biases[indices].unsqueeze(-1).to(y.dtype)  # autocast may have lowered the type of y


def can_freeze(conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Tell whether a convolution and its norm are one affine map in eval, be the norm folded already or not."""
    return (isinstance(norm, nn.Identity) and conv.bias is not None) or has_frozen_statistics(norm)


def _frozen_layer(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its norm, be it folded already or not."""
    if not can_freeze(conv, norm):
        raise ValueError(
            "dispatch must not be 'static' unless norm_layer is BatchNorm2d with running statistics, "
            f"got {type(norm).__name__}; use 'dense'"
        )
    if isinstance(norm, nn.Identity):
        return conv.weight, cast(Tensor, conv.bias)
    return folded_weights(conv, norm)
