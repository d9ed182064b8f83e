# SPDX-License-Identifier: Apache-2.0
"""Time of an ES-MoE layer: sparse against dense, against its floor, and of a sparse training step against a dense one.

The floor is the router and the same two experts, called directly. In eval every pair of experts is forced in turn and
the ratios are averaged over the pairs. In training each image is routed by the router.

    python benchmarks/esmoe.py [--rounds 15]
"""

import argparse
from itertools import combinations
from typing import Any

import torch
from measure import interleaved_medians, write_result
from torch import Tensor

from moe_vision import ESMoE

SIZES = ((64, 160), (128, 80), (128, 40), (256, 20))
BATCHES = (1, 8)


def force_pair(layer: ESMoE, pair: tuple[int, int]) -> None:
    """Make the router choose the same two experts for every image."""
    with torch.no_grad():
        layer.router.fc2.weight.zero_()
        layer.router.fc2.bias.zero_()
        layer.router.fc2.bias[list(pair)] = 5.0


def eval_row(channels: int, size: int, batch: int, rounds: int) -> dict[str, Any]:
    layer = ESMoE(channels, num_experts=4, top_k=2).eval()
    x = torch.rand(batch, channels, size, size)

    def run(mode: str) -> Tensor:
        layer.dispatch = mode
        return layer(x)

    def floor(pair: tuple[int, int]) -> list[Tensor]:
        return [layer.router(x), *(layer.experts[index](x) for index in pair)]

    dense_ratios, floor_ratios = [], []
    pairs = list(combinations(range(4), 2))
    for pair in pairs:
        force_pair(layer, pair)
        calls = {"dense": lambda: run("dense"), "sparse": lambda: run("auto"), "floor": lambda p=pair: floor(p)}
        with torch.inference_mode():
            times = interleaved_medians(calls, rounds)
        dense_ratios.append(times["sparse"] / times["dense"])
        floor_ratios.append(times["sparse"] / times["floor"])
    mean_dense, mean_floor = sum(dense_ratios) / len(pairs), sum(floor_ratios) / len(pairs)
    return {"sparse/dense": round(mean_dense, 3), "sparse/floor": round(mean_floor, 3), "last_pair_ms": times}


def train_row(channels: int, size: int, batch: int, rounds: int) -> dict[str, Any]:
    layer = ESMoE(channels, num_experts=4, top_k=2).train()
    x = torch.rand(batch, channels, size, size, requires_grad=True)

    def step(mode: str) -> None:
        layer.dispatch = mode
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()

    times = interleaved_medians({"dense": lambda: step("dense"), "sparse": lambda: step("grouped")}, rounds)
    return {"train sparse/dense": round(times["sparse"] / times["dense"], 3), "train_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each kind (%(default)s)")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    rows = []
    for channels, size in SIZES:
        for batch in BATCHES:
            row = {"channels": channels, "size": size, "batch": batch, **eval_row(channels, size, batch, rounds)}
            row |= train_row(channels, size, batch, rounds)
            rows.append(row)
            print({key: value for key, value in row.items() if not isinstance(value, dict)}, flush=True)
    about = {"layer": "ESMoE, E 4, K 2, kernels 3 5 7 9, fp32", "ratios": "of medians; eval: mean over the 6 pairs"}
    print("written to", write_result("esmoe", rows, **about).name)


if __name__ == "__main__":
    main()
