# SPDX-License-Identifier: Apache-2.0
"""Executors: ways to compute one and the same mixture sum_i w_i expert_i(x).

They differ in which experts run and in what the hardware sees, never in the result beyond rounding.

| executor  | experts that run               | shapes  | host transfers | good for                               |
|-----------|--------------------------------|---------|----------------|----------------------------------------|
| dense     | all, on all images             | fixed   | 0              | training, compiling, exporting         |
| grouped   | the selected, a batch each     | by data | 1              | batches of small maps; sparse training |
| per_image | the selected, an image at once | by data | 1              | large maps, single images on a CPU     |
| static    | the selected, folded           | fixed   | 0              | GPUs, CUDA graphs; linear experts      |

Axes: B images, E experts, K selected experts, C channels.
"""

from collections.abc import Callable, Iterable
from typing import cast, get_args

import torch
from torch import Tensor

from moe_vision._types import DispatchMode
from moe_vision.layers.branches import branched
from moe_vision.layers.checks import check_choice
from moe_vision.layers.experts import DepthwiseExperts
from moe_vision.layers.pointwise_experts import PointwiseExperts
from moe_vision.layers.routing import Routing

DISPATCH_MODES: tuple[str, ...] = get_args(DispatchMode)

# Elements of an image's feature map from which an image at a time is faster, since its features stay in the cache;
# below it the calls cost more than they save. From benchmarks/results/executors.json (2 cores).
PER_IMAGE_MIN_ELEMENTS = 64 * 80 * 80

Experts = DepthwiseExperts | PointwiseExperts
Executor = Callable[[Tensor, Routing, Experts], Tensor]


def dense(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Run every expert on every image and mask with the weights.

    Args:
        x: Feature map (B, C, H, W).
        routing: What the gate decided for the B images.
        experts: The E experts.

    Shape:
        - Output: (B, C_out, H', W'), in the type that the experts return

    Examples:
        >>> import torch
        >>> from moe_vision.layers import DepthwiseExperts, TopKGate, dispatch
        >>> experts, gate = DepthwiseExperts(8).eval(), TopKGate(top_k=2).eval()
        >>> x, routing = torch.rand(3, 8, 6, 6), gate(torch.randn(3, 4))
        >>> torch.allclose(dispatch.dense(x, routing, experts), dispatch.grouped(x, routing, experts), atol=1e-6)
        True
    """
    return _mix(x, routing.weights, experts, range(len(experts)))


def grouped(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Run each selected expert once, on the images that selected it; see `dense` for arguments.

    In training an expert that no image selected runs on an empty batch, so that every parameter has a gradient
    and distributed training needs no search for unused ones.
    """
    if x.shape[0] == 0:
        return dense(x, routing, experts)
    selected = _selected(routing)
    if not experts.training and all(chosen == selected[0] for chosen in selected):
        return _mix(x, routing.weights, experts, sorted(selected[0]))
    # Images are cut apart and joined, not indexed: the gradient of that needs no zeros for the images left out, and
    # unlike index_select it keeps channels_last.
    images = x.chunk(x.shape[0])
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in images]
    idle = []
    for index, expert in enumerate(experts):
        rows = [row for row, chosen in enumerate(selected) if index in chosen]
        if rows:
            batch = expert(torch.cat([images[row] for row in rows]))
            for row, features in zip(rows, batch.chunk(len(rows)), strict=True):
                parts[row].append((features, routing.weights[row : row + 1, index]))
        elif experts.training:
            idle.append(expert(x[:0]))
    return torch.cat([*(_weighted_sum(of_image, experts.overwritable) for of_image in parts), *idle])


def per_image(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Run the selected experts of one image after the other, without copies; see `dense` for arguments.

    In training it does what `grouped` does, since a norm must see a batch. Exported, it is a loop with branches.
    """
    if torch.compiler.is_exporting() and not experts.training:
        return branched(x, routing, experts)
    if experts.training or x.shape[0] == 0:
        return grouped(x, routing, experts)
    mixtures = [
        _mix(x[row : row + 1], routing.weights[row : row + 1], experts, sorted(chosen))
        for row, chosen in enumerate(_selected(routing))
    ]
    return mixtures[0] if len(mixtures) == 1 else torch.cat(mixtures)


def static(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Run the selected experts with shapes that do not depend on the data; see `dense` for arguments.

    Linear experts are merged into one convolution an image. Others are gathered, which needs the frozen
    statistics of BatchNorm2d: in training it does what `dense` does.

    Raises:
        ValueError: If the norm of gathered experts is not a BatchNorm2d with running statistics.
    """
    if x.shape[0] == 0:
        return dense(x, routing, experts)
    if isinstance(experts, DepthwiseExperts) and experts.kind == "depthwise":
        return experts.merged(x, routing.weights)
    if experts.training:
        return dense(x, routing, experts)
    features = experts.gathered(x, routing.indices)
    weights = routing.weights.gather(1, routing.indices).to(features.dtype)
    return (features * weights[:, :, None, None, None]).sum(dim=1)


EXECUTORS: dict[str, Executor] = {"dense": dense, "grouped": grouped, "per_image": per_image, "static": static}


def mixture(x: Tensor, routing: Routing, experts: Experts, mode: DispatchMode = "auto") -> Tensor:
    """Compute the mixture of the experts, with the executor named or the best one for the case.

    ``auto`` runs everything in training, since the norms of the experts then see every image, and while the graph
    is compiled or exported, since a branch on data would be frozen. Otherwise the unselected experts do not run.

    Args:
        x: Feature map (B, C, H, W).
        routing: What the gate decided for the B images.
        experts: The E experts.
        mode: ``auto`` or the name of an executor.

    Shape:
        - Output: (B, C_out, H', W')

    Raises:
        ValueError: If ``mode`` is unknown.

    Examples:
        >>> import torch
        >>> from moe_vision.layers import DepthwiseExperts, TopKGate, dispatch
        >>> routing = TopKGate(top_k=2).eval()(torch.randn(3, 4))
        >>> dispatch.mixture(torch.rand(3, 8, 6, 6), routing, DepthwiseExperts(8).eval()).shape
        torch.Size([3, 8, 6, 6])
    """
    check_choice("dispatch", mode, DISPATCH_MODES)
    executor = _choose(x, routing, experts) if mode == "auto" else EXECUTORS[mode]
    return executor(x, routing, experts)


def _choose(x: Tensor, routing: Routing, experts: Experts) -> Executor:
    if experts.training or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return dense
    if experts.kind == "depthwise":
        return static
    selects_all = routing.indices.shape[1] == len(experts)  # but the weights of some may be 0, see TopPGate
    if x.is_cuda:  # nothing that waits for the host; see benchmarks/results/gpu.json
        return dense if selects_all or not experts.can_gather() else static
    if selects_all:
        return grouped
    return per_image if x.shape[0] == 1 or x.shape[1:].numel() >= PER_IMAGE_MIN_ELEMENTS else grouped


def _selected(routing: Routing) -> list[set[int]]:
    """Return the experts that each image gives a weight; the one transfer to the host."""
    return [{index for index, used in enumerate(row) if used} for row in routing.weights.ne(0).tolist()]


def _mix(x: Tensor, weights: Tensor, experts: Experts, chosen: Iterable[int]) -> Tensor:
    """Mix the chosen experts, in ascending order so that every executor rounds alike, for all images of the batch."""
    return _weighted_sum(((experts[index](x), weights[:, index]) for index in chosen), experts.overwritable)


def _weighted_sum(parts: Iterable[tuple[Tensor, Tensor]], overwritable: bool) -> Tensor:
    """Add features (B, C, H, W) times weights (B,), in the type of the features (autocast may have lowered it)."""
    y: Tensor | None = None
    for features, weights in parts:
        weights = weights.to(features.dtype)[:, None, None, None]
        if y is not None:
            y = y.addcmul_(features, weights)  # in place: the sum is nobody else's yet
        elif overwritable and not features.requires_grad:
            y = features.mul_(weights)
        else:
            y = features * weights
        del features  # or its memory would not be there for the next expert
    return cast(Tensor, y)
