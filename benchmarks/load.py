# SPDX-License-Identifier: Apache-2.0
"""One model under load: threads that share it, and memory over many forwards, train steps and exports.

PyTorch keeps something of each export until the process ends: ``plain_exports`` measures it on a module that has
nothing of ours, and ``exports_in_processes`` how to write many files all the same.

Adds a row to benchmarks/results/load.json, and ends with an error where a result is wrong or memory grows::

    python benchmarks/load.py threads --count 200
    python benchmarks/load.py forwards --count 10000
    python benchmarks/load.py steps --count 1000
    python benchmarks/load.py exports --count 100
    python benchmarks/load.py plain_exports --count 100
    python benchmarks/load.py exports_in_processes --count 100
"""

import argparse
import gc
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import merge_row
from torch import Tensor, nn
from torch.export import Dim

from moe_vision import ESMoE, auxiliary_loss, create_model, export
from moe_vision.layers.esmoe import esmoe_layers
from tests.trained import trained

THREADS = 8
SAMPLES = 20  # of the memory, evenly spread
WARM = 4  # of them come before the first that counts: caches fill
MOST_PERCENT = 2.0  # that memory may grow by afterwards


def small_model() -> nn.Module:
    """Return both kinds of expert, with a router that tells images apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), ESMoE(16), ESMoE(16, expert="depthwise"), ESMoE(16, shared_expert=True)
    )
    for layer in esmoe_layers(model).values():
        nn.init.normal_(layer.router.fc2.weight, std=3.0)
    return model


def images(chance: random.Random) -> Tensor:
    """Return a batch of one of eight shapes; PyTorch's kernels keep something for each shape that they meet."""
    return torch.rand(chance.choice((1, 4)), 3, *chance.choice(((9, 33), (20, 20), (33, 17), (40, 40))))


def threads(count: int, seed: int) -> dict[str, Any]:
    """Run forwards in threads, each on its own images, and compare outputs and records with those of one thread."""
    torch.manual_seed(seed)
    model = trained(create_model("yolo_master_n", num_classes=3))
    layers = list(esmoe_layers(model).values())
    for layer in layers:
        nn.init.normal_(layer.router.fc2.weight, std=3.0)
    batches = [torch.rand(1 + place % 3, 3, 32 * (1 + place % 2), 32 * (1 + place % 4)) for place in range(THREADS)]

    @torch.no_grad()
    def forward(place: int) -> list[Tensor]:
        output = model(batches[place])
        return [*output, *(value for layer in layers for value in layer.routing)]

    expected = [forward(place) for place in range(THREADS)]

    def check(place: int) -> int:
        results = (forward(place) for _ in range(count // THREADS))
        return sum(not all(map(torch.equal, result, expected[place])) for result in results)

    with ThreadPoolExecutor(THREADS) as pool:
        wrong = sum(pool.map(check, range(THREADS)))
    routes = {tuple(map(tuple, result[-1].tolist())) for result in expected}
    return {"threads": THREADS, "wrong": wrong, "different_routes": len(routes)}


def forwards(count: int, seed: int) -> dict[str, Any]:
    """Run forwards in eval, of batches of eight shapes."""
    model, chance = small_model().eval(), random.Random(seed)

    @torch.no_grad()
    def forward() -> None:
        model(images(chance))

    return memory_of(forward, count)


def steps(count: int, seed: int) -> dict[str, Any]:
    """Train, with the balance loss, on batches of eight shapes."""
    model, chance = small_model().train(), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        (model(images(chance)).square().mean() + auxiliary_loss(model)).backward()
        optimizer.step()

    return memory_of(step, count)


def exports(count: int, seed: int) -> dict[str, Any]:
    """Write a layer as ONNX, which runs and compares it, too."""
    with tempfile.TemporaryDirectory() as folder:
        return memory_of(lambda: write_layer(folder), count)


def write_layer(folder: str) -> float:
    """Write a layer as ONNX; return the memory that is held afterwards."""
    export(ESMoE(8, num_experts=3).eval(), Path(folder, "layer.onnx"), example=torch.rand(2, 8, 12, 12))
    return resident_mebibytes()


class Branches(nn.Module):
    """Three convolutions, each in a branch that data decides on, as the experts of a layer are."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        for conv in self.convs:
            images = images + torch.cond(images.mean() > 0, conv, torch.clone, (images,))
        return images


def plain_exports(count: int, seed: int) -> dict[str, Any]:
    """Write a module that has nothing of ours as ONNX, by PyTorch alone."""
    model, example = Branches().eval(), (torch.rand(2, 8, 12, 12),)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plain.onnx")
        return memory_of(
            lambda: torch.onnx.export(model, example, file, dynamo=True, verbose=False, dynamic_shapes=sizes), count
        )


def exports_in_processes(count: int, seed: int) -> dict[str, Any]:
    """Write a layer as ONNX in twenty processes, one after the other; a sample is the most that one held."""
    each, spawn = count // SAMPLES, multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, spawn.Pool(1, maxtasksperchild=each) as pool:
        held = pool.map(write_layer, [folder] * SAMPLES * each, chunksize=1)
    return growth([max(held[start : start + each]) for start in range(0, len(held), each)])


def memory_of(call: Callable[[], object], count: int) -> dict[str, Any]:
    """Call again and again; return how the memory held in between grows."""
    sizes = []
    for _ in range(SAMPLES):
        for _ in range(count // SAMPLES):
            call()
        sizes.append(resident_mebibytes())
        print(f"{sizes[-1]:.1f} MiB", flush=True)
    return growth(sizes)


def growth(sizes: list[float]) -> dict[str, Any]:
    """Return the memory held after the warm-up, the most later, and the growth in percent."""
    warm, end = sizes[WARM - 1], max(sizes[WARM:])
    return {"warm_mib": round(warm, 1), "most_mib": round(end, 1), "growth_percent": round(100 * (end / warm - 1), 2)}


def resident_mebibytes() -> float:
    """Return how much memory this process holds, by Linux, when garbage is collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    loads = {load.__name__: load for load in (threads, forwards, steps, exports, plain_exports, exports_in_processes)}
    parser.add_argument("load", choices=loads, help="what the model goes through")
    parser.add_argument("--count", type=int, default=1000, help="how often (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of images and sizes (%(default)s)")
    options = parser.parse_args()
    if options.count < SAMPLES:
        parser.error(f"--count must be at least {SAMPLES}, got {options.count}")
    torch.set_num_threads(1)
    row = {"load": options.load, "count": options.count, **loads[options.load](options.count, options.seed)}
    print(row)
    print("written to", merge_row("load", row, key=("load",)).name)
    if row.get("wrong"):
        sys.exit("results are wrong")
    if row.get("growth_percent", 0) > MOST_PERCENT:
        sys.exit(f"memory grows by more than {MOST_PERCENT} %")


if __name__ == "__main__":
    main()
