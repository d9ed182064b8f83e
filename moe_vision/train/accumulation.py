# SPDX-License-Identifier: Apache-2.0
"""Several batches a step: how they are put together, and which experts their images choose."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moe_vision.layers.frozen_statistics import frozen_statistics
from moe_vision.layers.routing import Routing
from moe_vision.losses.balance import routing_records

T = TypeVar("T")


def windows(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` batches; the last one may be shorter.

    Examples:
        >>> from moe_vision.train.accumulation import windows
        >>> list(windows("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


@torch.no_grad()
def preview_routing(
    model: nn.Module, forward: Callable[[Tensor], Any], batches: Sequence[Tensor]
) -> list[dict[str, Routing]]:
    """Find out which experts each batch will choose, by a forward without gradient that leaves no trace.

    The balance loss of a batch needs it: it is about the images of a whole step, those to come included. Norms do not
    count these forwards, and random numbers (of dropout, say) are drawn again when the batches are trained on.

    Args:
        model: The network, in training mode.
        forward: Run it, perhaps wrapped to be trained by several processes.
        batches: Images of each batch.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.train.accumulation import preview_routing
        >>> layer = ESMoE(8, num_experts=4)
        >>> first, second = preview_routing(layer, layer, torch.rand(2, 3, 8, 6, 6))
        >>> first[""].probs.shape
        torch.Size([3, 4])
    """
    records = []
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type != "cpu"}
    with frozen_statistics(model), torch.random.fork_rng(devices=devices):
        for images in batches:
            forward(images)
            records.append(routing_records(model))
    return records
