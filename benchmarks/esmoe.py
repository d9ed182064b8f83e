# SPDX-License-Identifier: Apache-2.0
"""Time and memory of an ES-MoE layer: sparse against dense and against its floor, in eval and in a training step.

The floor is the router and the same two experts, called directly. In eval every pair of experts is forced in turn and
the ratios are averaged over the pairs. In training each image is routed by the router. Peak memory is what tensors hold
at once besides weights and input, with the last pair; what a kernel takes for itself does not show.

    python benchmarks/esmoe.py [--rounds 15] [--size 160 80 40 20]

Each row is added to the results when it is measured, so that sizes can be measured one by one.
"""

import argparse
from collections.abc import Callable
from itertools import combinations, product
from statistics import mean
from typing import Any

import torch
from measure import interleaved_medians, merge_row
from torch import Tensor

from moe_vision import ESMoE, fuse
from tests.memory import peak_megabytes

CHANNELS = {160: 64, 80: 128, 40: 128, 20: 256}  # by the side of the feature map
BATCHES = (1, 8)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KINDS = ("built", "fused")
KEY = ("size", "batch", "format", "layer")


def force_pair(layer: ESMoE, pair: tuple[int, int]) -> None:
    """Make the router choose the same two experts for every image."""
    with torch.no_grad():
        layer.router.fc2.weight.zero_()
        layer.router.fc2.bias.zero_()
        layer.router.fc2.bias[list(pair)] = 5.0


def eval_calls(layer: ESMoE, x: Tensor, pair: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Return what is compared when every image selects this pair."""

    def run(mode: str) -> Tensor:
        layer.dispatch = mode
        return layer(x)

    def floor() -> list[Tensor]:
        return [layer.router(x), *(layer.experts[index](x) for index in pair)]

    return {"dense": lambda: run("dense"), "sparse": lambda: run("auto"), "floor": floor}


@torch.inference_mode()
def eval_row(layer: ESMoE, x: Tensor, rounds: int) -> dict[str, Any]:
    """Return the ratios of times in eval, averaged over the pairs, and the peak memory."""
    times = []
    for pair in combinations(range(4), 2):
        force_pair(layer, pair)
        calls = eval_calls(layer, x, pair)
        times.append(interleaved_medians(calls, rounds))
    return {
        "sparse/dense": round(mean(time["sparse"] / time["dense"] for time in times), 3),
        "sparse/floor": round(mean(time["sparse"] / time["floor"] for time in times), 3),
        "ms": {name: round(mean(time[name] for time in times), 3) for name in calls},
        "peak_mb": {name: round(peak_megabytes(call), 2) for name, call in calls.items()},
    }


def train_row(layer: ESMoE, x: Tensor, rounds: int) -> dict[str, Any]:
    """Return the ratio of times of forward with backward, and the peak memory."""
    layer, x = layer.train(), x.requires_grad_()

    def step(mode: str) -> None:
        layer.dispatch = mode
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).sum().backward()

    calls = {"dense": lambda: step("dense"), "sparse": lambda: step("grouped")}
    times = interleaved_medians(calls, rounds)
    return {
        "train sparse/dense": round(times["sparse"] / times["dense"], 3),
        "train_ms": {name: round(time, 3) for name, time in times.items()},
        "train_peak_mb": {name: round(peak_megabytes(call), 2) for name, call in calls.items()},
    }


def row(size: int, batch: int, memory_format: str, kind: str, rounds: int) -> dict[str, Any]:
    layer = ESMoE(CHANNELS[size], num_experts=4, top_k=2).eval()
    layer = (fuse(layer) if kind == "fused" else layer).to(memory_format=FORMATS[memory_format])
    x = torch.rand(batch, CHANNELS[size], size, size).to(memory_format=FORMATS[memory_format])
    about = {"channels": CHANNELS[size], "size": size, "batch": batch, "format": memory_format, "layer": kind}
    figures = eval_row(layer, x, rounds)
    if kind == "built":
        figures |= train_row(ESMoE(CHANNELS[size]).to(memory_format=FORMATS[memory_format]), x, rounds)
    return {**about, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each kind (%(default)s)")
    parser.add_argument("--size", type=int, nargs="+", default=list(CHANNELS), choices=CHANNELS, help="feature maps")
    options = parser.parse_args()
    torch.manual_seed(0)
    for case in product(options.size, BATCHES, FORMATS, KINDS):
        measured = row(*case, options.rounds)
        path = merge_row("esmoe", measured, key=KEY)
        print({key: value for key, value in measured.items() if not isinstance(value, dict)}, flush=True)
    print("written to", path.name)


if __name__ == "__main__":
    main()
