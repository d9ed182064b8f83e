# SPDX-License-Identifier: Apache-2.0
"""Build a network without memory for its weights, to learn their shapes before anything is allocated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Let every module that is built here have weights with a shape and without values.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.layers.without_memory import without_memory
        >>> with without_memory():
        ...     nn.Linear(10**6, 10**6).weight.shape  # would take 4 TB
        torch.Size([1000000, 1000000])
    """
    with torch.device("meta"), _NoValues():
        yield


class _NoValues(TorchFunctionMode):
    """Pass over what fills weights: for values without memory PyTorch loads its compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else arguments["tensor"]
        if func is torch.arange and len(args) == 1:
            return torch.empty(args[0], **arguments)
        return func(*args, **arguments)
