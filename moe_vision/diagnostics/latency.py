# SPDX-License-Identifier: Apache-2.0
"""How long a model takes for an image."""

import statistics
import time

import torch
from torch import nn


@torch.inference_mode()
def measure_latency(model: nn.Module, input_shape: tuple[int, int, int], *, rounds: int = 10) -> float:
    """Return the median time of a forward with one image, in milliseconds.

    The model stays in its mode and where it is. The first forward is not counted.

    Args:
        model: Any module that takes a batch of images.
        input_shape: Channels, height and width of the image; its pixels are random.
        rounds: Forwards that are timed.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.diagnostics import measure_latency
        >>> measure_latency(nn.Conv2d(3, 8, 3), (3, 32, 32)) > 0
        True
    """
    parameter = next(model.parameters())
    image = torch.rand(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])
