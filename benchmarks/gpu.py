# SPDX-License-Identifier: Apache-2.0
"""Time on a GPU: an ES-MoE block with each executor, the network and its dense twin; from Python, and as CUDA graphs.

A graph replays its kernels without the host, so it shows what the GPU does; only executors that ask for no value on
the host (`dense`, `static`) can be captured. All are fused. The images of a batch select all pairs of experts in turn.
Each case is a row of benchmarks/results/gpu.json.

    python benchmarks/gpu.py [--rounds 20]
"""

import argparse
from collections.abc import Callable
from itertools import combinations, cycle, islice, product
from typing import Any

import torch
from measure import quartiles, write_result
from torch import Tensor, nn

from moe_vision import ESMoE, create_model, fuse
from moe_vision.diagnostics import compare_latency
from moe_vision.layers.esmoe import esmoe_layers, set_dispatch

BLOCKS = {80: 64, 40: 128, 20: 256, 10: 512}  # height and width, channels
BATCHES = (1, 16)
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
EXECUTORS = ("dense", "static", "grouped")
CAPTURED = ("dense", "static", "none")
Row = dict[str, Any]


def select_pairs(model: nn.Module, batch: int) -> None:
    """Let the images of a batch select pairs of experts in turn, without a transfer to the GPU in the forward."""
    pairs = torch.tensor(list(islice(cycle(combinations(range(4), 2)), batch)))
    logits = torch.zeros(batch, 4).scatter(1, pairs, 5.0).cuda()
    for layer in esmoe_layers(model).values():
        layer.router.register_forward_hook(lambda *_: logits)


def capture(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Record the forward as a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph.replay


def time_models(models: dict[str, nn.Module], x: Tensor, rounds: int) -> Row:
    """Time all models in turn, and those that can be captured also as graphs."""
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        calls[name] = lambda model=model: model(x)
        if name in CAPTURED:
            calls[f"{name}, graph"] = capture(model, x)
    return quartiles(compare_latency(calls, rounds=rounds))


def time_block(size: int, batch: int, dtype: str, rounds: int) -> Row:
    models: dict[str, nn.Module] = {}
    for name in EXECUTORS:
        layer = ESMoE(BLOCKS[size], num_experts=4, top_k=2, dispatch=name).eval()
        models[name] = fuse(layer).cuda().to(TYPES[dtype], memory_format=torch.channels_last)
        select_pairs(models[name], batch)
    x = torch.rand(batch, BLOCKS[size], size, size, device="cuda", dtype=TYPES[dtype])
    about = {"what": "block", "channels": BLOCKS[size], "size": size, "batch": batch, "type": dtype}
    return {**about, "ms": time_models(models, x.contiguous(memory_format=torch.channels_last), rounds)}


def time_network(batch: int, dtype: str, rounds: int) -> Row:
    models: dict[str, nn.Module] = {}
    for name in (*EXECUTORS, "none"):
        changes = {"placement": "none"} if name == "none" else {}
        model = fuse(create_model("yolo_master_n", num_classes=80, **changes).eval())
        if name != "none":
            set_dispatch(model, name)
        models[name] = model.cuda().to(TYPES[dtype], memory_format=torch.channels_last)
        select_pairs(models[name], batch)
    x = torch.rand(batch, 3, 640, 640, device="cuda", dtype=TYPES[dtype])
    about = {"what": "yolo_master_n", "size": 640, "batch": batch, "type": dtype}
    return {**about, "ms": time_models(models, x.contiguous(memory_format=torch.channels_last), rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each (%(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for batch, dtype in product(BATCHES, TYPES):
            rows.append(time_network(batch, dtype, options.rounds))
            rows += [time_block(size, batch, dtype, options.rounds) for size in BLOCKS]
            write_result("gpu", rows)
    for row in rows:
        print({**row, "ms": {name: time["median"] for name, time in row["ms"].items()}})


if __name__ == "__main__":
    main()
