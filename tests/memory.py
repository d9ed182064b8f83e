# SPDX-License-Identifier: Apache-2.0
"""How much memory tensors hold at once, counted where they are made and let go."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Memory(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, forward and backward, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in before:  # neither in place nor a view
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self._change(storage.nbytes())
        weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)


def peak_megabytes(function: Callable[[], object]) -> float:
    """Call a function and return the most megabytes (2^20 bytes) that tensors made by it held at the same time."""
    with _Memory() as memory:
        function()
    return memory.peak / 2**20
