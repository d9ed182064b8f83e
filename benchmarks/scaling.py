# SPDX-License-Identifier: Apache-2.0
"""How the time of an ES-MoE layer in eval grows: with its experts E, the selected experts K, the batch, the map's side.

All experts have kernels of 3 x 3. By default the kernel grows with the number of the expert, and with it the cost; to
show what routing among more experts costs, and nothing else, it is held fixed. Images select all sets of K experts in
turn. The points of a sweep are timed in turn, so that their ratios hold.

    python benchmarks/scaling.py [--rounds 51]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import quartiles, select_every_pair, write_result
from torch import Tensor

from moe_vision import ESMoE
from moe_vision.diagnostics import compare_latency

CHANNELS = 128
BASE = {"experts": 4, "top_k": 2, "batch": 1, "side": 40}
# What is varied, from which point the growth counts, and what else differs from the base.
SWEEPS: tuple[tuple[str, tuple[int, ...], int, dict[str, int]], ...] = (
    ("experts", (2, 4, 6, 8, 12, 16), 4, {}),
    ("experts", (2, 4, 6, 8, 12, 16), 4, {"batch": 8}),
    ("top_k", (1, 2, 3, 4, 6, 8), 1, {"experts": 8}),
    ("top_k", (1, 2, 3, 4, 6, 8), 1, {"experts": 8, "batch": 8}),
    ("batch", (1, 2, 4, 8, 16, 32, 64), 1, {}),
    ("side", (10, 20, 40, 80, 160), 10, {}),
)
EXECUTORS = {"sparse": "auto", "dense": "dense"}


def call(point: dict[str, int], dispatch: str) -> Callable[[], Tensor]:
    experts, top_k = point["experts"], point["top_k"]
    layer = ESMoE(CHANNELS, num_experts=experts, top_k=top_k, kernel_sizes=[3] * experts, dispatch=dispatch).eval()
    select_every_pair(layer)
    x = torch.rand(point["batch"], CHANNELS, point["side"], point["side"])
    return lambda: layer(x)


@torch.inference_mode()
def sweep(varied: str, values: tuple[int, ...], first: int, changes: dict[str, int], rounds: int) -> dict[str, Any]:
    """Time every point of a sweep; `growth` is the time relative to that of the point from which growth counts."""
    fixed = {**BASE, **changes}
    calls = {(value, name): call({**fixed, varied: value}, EXECUTORS[name]) for value in values for name in EXECUTORS}
    times = compare_latency(calls, rounds=rounds)
    points = []
    for value in values:
        growth = {name: round(times[value, name].median / times[first, name].median, 3) for name in EXECUTORS}
        milliseconds = quartiles({name: times[value, name] for name in EXECUTORS})
        points.append({varied: value, "growth": growth, "ms": milliseconds})
    return {"varied": varied, "fixed": {name: fixed[name] for name in BASE if name != varied}, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=51, help="timed calls of each kind (%(default)s)")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    rows = []
    for case in SWEEPS:
        rows.append(sweep(*case, rounds))
        print(rows[-1]["varied"], rows[-1]["fixed"])
        for point in rows[-1]["points"]:
            print("   ", point[rows[-1]["varied"]], point["growth"], flush=True)
    about = f"ESMoE, {CHANNELS} channels, kernels of 3 in every expert, fp32, contiguous"
    print("written to", write_result("scaling", rows, layer=about).name)


if __name__ == "__main__":
    main()
