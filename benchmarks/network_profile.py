# SPDX-License-Identifier: Apache-2.0
"""Where the n detector spends its milliseconds: part by part, and each ES-MoE block against its floor.

The floor of a block is its router and the two experts that the image selects, called directly on the same features.
Images select all pairs of experts in turn. Batch of 1, 640 x 640, fp32.

    python benchmarks/network_profile.py [--rounds 24] [--threads 2]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from measure import merge_row, select_every_pair
from torch import Tensor, nn

from moe_vision import ESMoE, create_model, fuse
from moe_vision.diagnostics import compare_latency

KEY = ("layer", "threads")
REST = "decoding, and between"


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a detector in the order in which they run, stages cut into theirs."""
    parts = {"stem": model.backbone.stem}
    for stage, part in product(("stage2", "stage3", "stage4", "stage5"), ("downsample", "blocks", "moe")):
        parts[f"{stage} {part}"] = model.backbone.get_submodule(f"{stage}.{part}")
    parts |= {f"neck {name}": part for name, part in model.neck.named_children()}
    return {**parts, "head": model.head}


class Profile:
    """The milliseconds of each part in every forward, and the features that last came to it."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in parts}
        self.inputs: dict[str, Tensor] = {}
        self._start = 0.0
        for name, part in parts.items():
            part.register_forward_pre_hook(partial(self._enter, name))
            part.register_forward_hook(partial(self._leave, name))

    def _enter(self, name: str, part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs[name] = inputs[0]
        self._start = time.perf_counter()

    def _leave(self, name: str, part: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        self.times[name].append(1e3 * (time.perf_counter() - self._start))


def floor(layer: ESMoE, x: Tensor) -> list[Tensor]:
    """Call the router, past the hook on it, and the experts that the image selected in the block's last forward."""
    assert layer.routing is not None
    return [layer.router.forward(x), *(layer.experts[index](x) for index in layer.routing.indices[0].tolist())]


def floor_figures(layer: ESMoE, x: Tensor, rounds: int) -> dict[str, float]:
    calls: dict[str, Callable[[], object]] = {"block": lambda: layer(x), "floor": lambda: floor(layer, x)}
    times = compare_latency(calls, rounds=rounds)
    ratio = times["block"].median / times["floor"].median
    return {"floor_ms": round(times["floor"].median, 2), "block/floor": round(ratio, 3)}


@torch.inference_mode()
def row(model: nn.Module, kind: str, threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    select_every_pair(model)
    image, parts = torch.rand(1, 3, 640, 640), parts_of(model)
    profile = Profile(parts)
    total = compare_latency({"all": lambda: model(image)}, rounds=rounds)["all"].median
    milliseconds = {name: median(times[1:]) for name, times in profile.times.items()}
    milliseconds[REST] = total - sum(milliseconds.values())
    rows = []
    for name, value in milliseconds.items():
        rows.append({"part": name, "ms": round(value, 2), "share": round(value / total, 4)})
        if isinstance(layer := parts.get(name), ESMoE):
            rows[-1] |= floor_figures(layer, profile.inputs[name], rounds)
    return {"layer": kind, "threads": threads, "total_ms": round(total, 2), "parts": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24, help="timed forwards (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    for threads, kind in product(options.threads, ("built", "fused")):
        model = create_model("yolo_master_n").eval()
        measured = row(fuse(model) if kind == "fused" else model, kind, threads, options.rounds)
        path = merge_row("network_profile", measured, key=KEY)
        print(kind, threads, measured["total_ms"])
        for part in measured["parts"]:
            print("   ", *part.values(), flush=True)
    print("written to", path.name)


if __name__ == "__main__":
    main()
