# SPDX-License-Identifier: Apache-2.0
"""Time of the executors of one mixture over map sizes and batches: where `auto` should choose which on a CPU.

Each image selects two of four experts at random. Router, gate and output norm are left out.

    python benchmarks/executors.py [--rounds 5]
"""

import argparse
from itertools import product
from typing import Any

import torch
from measure import interleaved_medians, write_result

from moe_vision import DepthwiseExperts, Routing
from moe_vision.layers import dispatch

SIZES = ((64, 160), (128, 80), (64, 80), (128, 40), (512, 20), (64, 40), (256, 20))
BATCHES = (1, 2, 4, 8, 16)
MEMORY_FORMATS = ("channels_last", "contiguous_format")


def random_routing(batch: int) -> Routing:
    indices = torch.stack([torch.randperm(4)[:2] for _ in range(batch)])
    weights = torch.zeros(batch, 4).scatter(1, indices, 0.5)
    return Routing(weights, weights, weights, indices)


def row(channels: int, size: int, batch: int, memory_format: str, rounds: int) -> dict[str, Any]:
    layout = getattr(torch, memory_format)
    experts = DepthwiseExperts(channels).eval().to(memory_format=layout)
    x = torch.rand(batch, channels, size, size).to(memory_format=layout)
    routing = random_routing(batch)
    calls = {name: lambda run=run: run(x, routing, experts) for name, run in dispatch.EXECUTORS.items()}
    with torch.inference_mode():
        times = interleaved_medians(calls, rounds)
    about: dict[str, Any] = {"memory_format": memory_format, "channels": channels, "size": size, "batch": batch}
    about["elements"] = channels * size**2
    ratio = round(times["per_image"] / times["grouped"], 3)
    return {**about, "ms": {name: round(time, 3) for name, time in times.items()}, "per_image/grouped": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each kind (%(default)s)")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    rows = []
    for memory_format, (channels, size), batch in product(MEMORY_FORMATS, SIZES, BATCHES):
        rows.append(row(channels, size, batch, memory_format, rounds))
        print(rows[-1], flush=True)
    print("written to", write_result("executors", rows, experts="E 4, K 2, kernels 3 5 7 9, fp32").name)


if __name__ == "__main__":
    main()
