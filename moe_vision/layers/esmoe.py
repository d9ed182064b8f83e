# SPDX-License-Identifier: Apache-2.0
"""ESMoE: router, gate, experts and norm in one layer."""

from collections.abc import Sequence
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe_vision._types import DispatchMode, ExpertInit, ExpertKind, LayerFactory, SoftMode
from moe_vision.layers.checks import check_choice, check_feature_map, check_positive, check_top_k
from moe_vision.layers.dispatch import DISPATCH_MODES, Experts, mixture
from moe_vision.layers.experts import DepthwiseExperts
from moe_vision.layers.fusion import ScaleShift, fold_sequence, has_frozen_statistics, in_place
from moe_vision.layers.gating import TopKGate
from moe_vision.layers.routing import DynamicRouter, Routing
from moe_vision.layers.top_p import TopPGate


class ESMoE(nn.Module):
    """Efficient Sparse Mixture of Experts: each image is convolved by the K of E experts that its router chooses.

    Y = act(norm(sum_i w_i expert_i(x))), eq. 2 of arXiv 2512.23273, with weights w from soft top-k in training
    (eqs 7-8) and hard top-k in inference (eq. 9), which are the same function. The decision is one for the whole
    image; in eval an image's output does not depend on the rest of its batch, and unselected experts do not run.

    Train with `moe_vision.auxiliary_loss` added to the task's loss, or the router may settle on few experts.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels of the output, ``in_channels`` if None.
        num_experts: Number of experts E.
        top_k: Number of experts K an image selects, in [1, E].
        kernel_sizes: Odd kernel sizes, one an expert; 3, 5, 7, ... if None.
        stride: Stride of every expert.
        dilation: Dilation of every expert's depthwise kernel.
        reduction: Divisor of the router's hidden width.
        expert: ``separable`` (the paper's: depthwise, pointwise, norm, activation) or ``depthwise`` (linear, for
            swapping into other networks; in eval the chosen kernels merge into one convolution).
        soft: Weights in training: ``masked``, ``relaxed`` or ``straight_through``, see `soft_top_k`.
        dispatch: Executor of the mixture: ``auto``, ``dense``, ``grouped``, ``per_image`` or ``static``; in training
            with another ``soft`` than ``masked`` every expert takes part, and it is ``dense``.
        shared_expert: Add a pointwise convolution, norm and activation that runs for every image.
        residual: Add the input to the output; needs stride 1 and equal channels.
        bias: Give depthwise experts a bias.
        init: ``independent``, or ``shared``: all experts start as one function, so that it does not matter at first
            which of them an image selects, and the rest of a network trained from scratch learns undisturbed.
        output_norm: Apply norm and activation to the mixture; if None, for separable experts alone, so that
            depthwise experts leave the layer linear in its input.
        act_layer: Factory of activations, called without arguments.
        norm_layer: Factory of norms, called with the number of channels (and device and dtype).
        device: Where the parameters live.
        dtype: Type of the parameters.

    Attributes:
        router: The `DynamicRouter`; ``layer.router(x)`` are the logits.
        gate: The `TopKGate`; assign a `TopPGate` to let each image decide how many experts it needs.
        experts: The `DepthwiseExperts`; ``layer.experts[i]`` is one of them.
        routing: The `Routing` of the last forward in this thread, or None. It is part of that forward's graph,
            assigned and never accumulated, is not recorded while exporting, and stays out of copies, pickles and the
            state_dict.

    Shape:
        - Input: (B, in_channels, H, W)
        - Output: (B, out_channels, ceil(H / stride), ceil(W / stride))

    Raises:
        ValueError: If an argument is out of its range or does not go with another, or the input is not
            (B, in_channels, H, W).

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE, auxiliary_loss
        >>> layer = ESMoE(16, num_experts=4, top_k=2)
        >>> y = layer(torch.rand(2, 16, 20, 20))
        >>> y.shape, layer.routing.indices.shape
        (torch.Size([2, 16, 20, 20]), torch.Size([2, 2]))
        >>> loss = y.square().mean() + auxiliary_loss(layer)
        >>> loss.backward()
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_experts: int = 4,
        top_k: int = 2,
        kernel_sizes: Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        reduction: int = 8,
        expert: ExpertKind = "separable",
        soft: SoftMode = "masked",
        dispatch: DispatchMode = "auto",
        shared_expert: bool = False,
        residual: bool = False,
        bias: bool = False,
        init: ExpertInit = "independent",
        output_norm: bool | None = None,
        act_layer: LayerFactory = nn.SiLU,
        norm_layer: LayerFactory = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_positive(in_channels=in_channels, out_channels=out_channels, num_experts=num_experts, stride=stride)
        check_top_k(top_k, num_experts)
        check_choice("dispatch", dispatch, DISPATCH_MODES)
        kernel_sizes = [3 + 2 * i for i in range(num_experts)] if kernel_sizes is None else list(kernel_sizes)
        if len(kernel_sizes) != num_experts:
            raise ValueError(
                f"kernel_sizes must name num_experts={num_experts} sizes, got {len(kernel_sizes)}: {kernel_sizes}"
            )
        if residual and (stride != 1 or out_channels != in_channels):
            raise ValueError(
                "residual must be False unless stride is 1 and out_channels equals in_channels, "
                f"got stride={stride}, in_channels={in_channels}, out_channels={out_channels}"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        layers: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer}
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dispatch: DispatchMode = dispatch
        self.residual = residual
        self._record = local()

        self.router: nn.Module = DynamicRouter(in_channels, num_experts, reduction=reduction, **dd)
        self.gate: TopKGate | TopPGate = TopKGate(top_k, soft)
        self.experts: Experts = DepthwiseExperts(
            in_channels,
            out_channels,
            kernel_sizes=kernel_sizes,
            stride=stride,
            dilation=dilation,
            kind=expert,
            bias=bias,
            init=init,
            **layers,
            **dd,
        )
        self.shared_expert = _shared_expert(in_channels, out_channels, stride, layers, dd) if shared_expert else None
        output_norm = expert == "separable" if output_norm is None else output_norm
        self.norm: nn.Module = norm_layer(out_channels, **dd) if output_norm else nn.Identity()
        self.act: nn.Module = act_layer() if output_norm else nn.Identity()
        if (offset := getattr(self.norm, "bias", None)) is not None:
            # Around 1 an activation is nearly linear. Around 0 this one, the second after that of the experts, would
            # take half of what is left, and networks learn far slower.
            nn.init.ones_(offset)

    @property
    def routing(self) -> Routing | None:
        """What the last forward in this thread decided, or None."""
        return getattr(self._record, "routing", None)

    @routing.setter
    def routing(self, routing: Routing | None) -> None:
        self._record.routing = routing

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixture of the experts that each image selects."""
        check_feature_map(x, self.in_channels)
        routing = self.gate(self.router(x))
        if torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting():  # PyTorch 2.9 says both
            self.routing = routing
        y = mixture(x, routing, self.experts, "dense" if self.gate.all_take_part else self.dispatch)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        y = self.norm(y)  # the mixture is let go before the activation needs memory
        y = self.act(y)
        return cast(Tensor, x + y if self.residual else y)

    def reparameterize(self) -> None:
        """Fold the norm of the shared expert, and let the rest overwrite what it takes, see `moe_vision.fuse`."""
        if self.shared_expert is not None:
            fold_sequence(self.shared_expert)
        self.experts.overwritable = True
        if has_frozen_statistics(self.norm):
            self.norm = ScaleShift(self.norm)
        self.act = in_place(self.act)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the record of the last forward out of copies and pickles: tensors of a graph can't be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_record"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without a record."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._record = local()


def esmoe_layers(model: nn.Module) -> dict[str, ESMoE]:
    """Return every `ESMoE` of a model by its name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ESMoE)}


def set_dispatch(model: nn.Module, dispatch: DispatchMode) -> None:
    """Choose the executor of every `ESMoE` of a model."""
    for layer in esmoe_layers(model).values():
        layer.dispatch = dispatch


def _shared_expert(
    in_channels: int, out_channels: int, stride: int, layers: dict[str, Any], dd: dict[str, Any]
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **dd)
    return nn.Sequential(conv, layers["norm_layer"](out_channels, **dd), layers["act_layer"]())
