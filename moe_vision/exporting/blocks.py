# SPDX-License-Identifier: Apache-2.0
"""The blocks with experts in a module: how they are exported, and how their routing is read and forced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from moe_vision.layers import ESMoE, TopPGate
from moe_vision.layers.esmoe import esmoe_layers

SparseForm = Literal["index", "dense"]


def form_of(block: ESMoE, sparse: SparseForm) -> SparseForm:
    """Return the form that a block is exported in: branches gain nothing where every expert runs."""
    some = block.gate.top_k < len(block.experts) or isinstance(block.gate, TopPGate)
    return "index" if sparse == "index" and some else "dense"


def set_forms(module: nn.Module, sparse: SparseForm) -> None:
    """Choose the executor of every block for the export."""
    for block in esmoe_layers(module).values():
        block.dispatch = "per_image" if form_of(block, sparse) == "index" else "dense"


@contextmanager
def recorded_logits(module: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect name and logits (B, E) of each block that runs, in order."""
    record: list[tuple[str, Tensor]] = []
    hooks = [
        block.router.register_forward_hook(lambda _m, _i, logits, name=name: record.append((name, logits)))
        for name, block in esmoe_layers(module).items()
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def forced_logits(module: nn.Module, logits: Sequence[Tensor]) -> Iterator[None]:
    """Let the blocks, in the order in which they run, decide by the logits given."""
    remaining = iter(logits)

    def replace(_module: nn.Module, _inputs: Any, own: Tensor) -> Tensor:
        return next(remaining).to(own)

    hooks = [block.router.register_forward_hook(replace) for block in esmoe_layers(module).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
