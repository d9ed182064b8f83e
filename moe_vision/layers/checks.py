# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments and shapes that the layers share; they never look at a tensor's values."""

from collections.abc import Collection, Sequence

from torch import Tensor


def check_feature_map(x: Tensor, in_channels: int) -> None:
    """Raise ValueError unless ``x`` is a batch of feature maps with ``in_channels`` channels."""
    if x.ndim != 4:
        raise ValueError(f"input must have shape (B, C, H, W), got {x.ndim} dimensions: {tuple(x.shape)}")
    if x.shape[1] != in_channels:
        raise ValueError(f"input must have in_channels={in_channels} channels, got {x.shape[1]}: {tuple(x.shape)}")


def check_positive(**sizes: int) -> None:
    """Raise ValueError for the first of the named sizes that is not at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_top_k(top_k: int, num_experts: int, name: str = "top_k") -> None:
    """Raise ValueError unless ``top_k`` experts, so many as ``name`` says, can be selected among ``num_experts``."""
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"{name} must be in [1, num_experts={num_experts}], got {top_k}")


def check_kernel_sizes(kernel_sizes: Sequence[int]) -> None:
    """Raise ValueError unless there is at least one kernel size and all are odd and positive."""
    if not kernel_sizes:
        raise ValueError("kernel_sizes must name at least one kernel size, got none")
    for size in kernel_sizes:
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_sizes must be odd and positive, got {size} in {tuple(kernel_sizes)}")
