# SPDX-License-Identifier: Apache-2.0
"""How long a model takes for an image, and how that compares with others."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from moe_vision.layers.checks import check_positive


class Latency(NamedTuple):
    """How long a call takes, in milliseconds: the median of several, between their quartiles.

    Attributes:
        median: Half of the calls took longer.
        lower: A quarter of the calls was faster.
        upper: A quarter of the calls was slower.

    Examples:
        >>> from moe_vision.diagnostics import Latency
        >>> Latency(median=20.0, lower=19.0, upper=23.0).median
        20.0
    """

    median: float
    lower: float
    upper: float


def compare_latency(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time several calls in turn, round after round, so that a drift of the machine's speed meets all of them.

    Each is called once before, which is not counted. A call on a GPU is over when the GPU has finished.

    Args:
        calls: What to time, by a name of its own.
        rounds: Timed calls of each, at least 1.
        clock: What gives the time in seconds; `time.process_time` leaves out what other processes took of a CPU.

    Raises:
        ValueError: If ``rounds`` is less than 1.

    Examples:
        >>> import torch
        >>> from moe_vision.diagnostics import compare_latency
        >>> x = torch.rand(100, 100)
        >>> times = compare_latency({"product": lambda: x @ x, "sum": lambda: x + x}, rounds=3)
        >>> times["product"].lower <= times["product"].median <= times["product"].upper
        True
    """
    check_positive(rounds=rounds)
    for call in calls.values():
        _milliseconds(call, clock)
    times = [[_milliseconds(call, clock) for call in calls.values()] for _ in range(rounds)]
    quartiles = np.percentile(times, (50, 25, 75), axis=0).T.tolist()
    return {name: Latency(*values) for name, values in zip(calls, quartiles, strict=True)}


@torch.inference_mode()
def measure_latency(model: nn.Module, input_shape: tuple[int, int, int], *, rounds: int = 10) -> float:
    """Return the median time of a forward with one image, in milliseconds.

    The model stays in its mode and where it is. The first forward is not counted.

    Args:
        model: Any module that takes a batch of images.
        input_shape: Channels, height and width of the image; its pixels are random.
        rounds: Forwards that are timed, at least 1.

    Raises:
        ValueError: If ``rounds`` is less than 1.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.diagnostics import measure_latency
        >>> measure_latency(nn.Conv2d(3, 8, 3), (3, 32, 32)) > 0
        True
    """
    parameter = next(model.parameters(), torch.empty(0, device="cpu"))
    image = torch.rand(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    return compare_latency({"model": lambda: model(image)}, rounds=rounds)["model"].median


def _milliseconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return 1e3 * (clock() - start)
