# SPDX-License-Identifier: Apache-2.0
"""Time of whole networks in eval: sparse, with every expert, and the dense twin; as built and fused; beside peers.

The twin is the network without experts. Random images select all pairs of experts in turn. A peer is a network of
another package that was installed by hand, fused as that package does; it takes part where task and scale are its own.

    python benchmarks/network.py [--task detect] [--scale n] [--batch 1] [--threads 2] [--peer yolo12n] [--rounds 12]

Each row is added to the results when it is measured, so that rows can be measured one by one.
"""

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import peers
import torch
from measure import merge_row, quartiles, select_every_pair
from torch import Tensor, nn

from moe_vision import create_model, fuse
from moe_vision.diagnostics import Latency, compare_latency
from moe_vision.layers.esmoe import set_dispatch
from moe_vision.models.config import TASKS

KEY = ("task", "scale", "batch", "threads")
KINDS = ("sparse", "every expert", "twin")
CLASSES = {"detect": 80, "segment": 80, "classify": 1000}
RATIOS = {
    "sparse/every expert": ("sparse, built", "every expert, built"),
    "sparse/twin": ("sparse, built", "twin, built"),
    "fused sparse/every expert": ("sparse, fused", "every expert, fused"),
    "fused sparse/twin": ("sparse, fused", "twin, fused"),
    "fused/built": ("sparse, fused", "sparse, built"),
}


def network(kind: str, task: str, scale: str) -> nn.Module:
    """Build a network of ours; weights are random, and no matter to its time."""
    changes = {"placement": "none"} if kind == "twin" else {}
    model = create_model(f"yolo_master_{scale}", task=task, num_classes=CLASSES[task], **changes).eval()
    if kind == "every expert":
        set_dispatch(model, "dense")
    return model


def candidates(task: str, scale: str, names: list[str]) -> dict[str, nn.Module]:
    """Return all that is compared, by its name in the results."""
    models: dict[str, nn.Module] = {}
    for kind in KINDS:
        model = network(kind, task, scale)
        models[f"{kind}, fused"] = fuse(model)
        models[f"{kind}, built"] = model
    models["sparse, built, channels_last"] = network("sparse", task, scale).to(memory_format=torch.channels_last)
    models["sparse, fused, contiguous"] = fuse(network("sparse", task, scale)).to(memory_format=torch.contiguous_format)
    for name in names:
        models[f"{name}, fused"] = peers.fused(name)
        models[f"{name}, fused, channels_last"] = peers.fused(name).to(memory_format=torch.channels_last)
    for model in models.values():
        select_every_pair(model)
    return models


def row(task: str, scale: str, batch: int, threads: int, names: list[str], rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    names = [name for name in names if peers.is_peer(name, task, scale)]
    models = candidates(task, scale, names)
    size = models["twin, built"].image_size
    times = time_models(models, torch.rand(batch, 3, size, size), rounds)
    about: dict[str, Any] = {"task": task, "scale": scale, "batch": batch, "threads": threads, "image_size": size}
    if names:
        about["peers"] = peers.package_version()
    pairs = {**RATIOS, **{f"fused/{name}": ("sparse, fused", f"{name}, fused") for name in names}}
    return {**about, **figures(times, pairs, batch)}


@torch.inference_mode()
def time_models(models: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, Latency]:
    """Time the models on the same images; whatever memory format they prefer, the images come contiguous."""

    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(images)

    return compare_latency({name: call(model) for name, model in models.items()}, rounds=rounds)


def figures(times: dict[str, Latency], pairs: dict[str, tuple[str, str]], batch: int) -> dict[str, Any]:
    """Return times, rates and the ratios of medians."""
    return {
        "ratios": {name: round(times[ours].median / times[other].median, 3) for name, (ours, other) in pairs.items()},
        "ms": quartiles(times),
        "images_per_second": {name: round(1e3 * batch / time.median, 2) for name, time in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--scale", nargs="+", default=["n", "s", "m"], choices=list("nsmlx"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images a forward")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU")
    parser.add_argument("--peer", nargs="+", default=[], help="networks of a package installed by hand, like yolo12n")
    parser.add_argument(
        "--rounds", type=int, default=12, help="timed forwards of each; the 6 pairs twice (%(default)s)"
    )
    options = parser.parse_args()
    for case in product(options.task, options.scale, options.batch, options.threads):
        measured = row(*case, options.peer, options.rounds)
        path = merge_row("network", measured, key=KEY)
        print(case, measured["ratios"], {name: time["median"] for name, time in measured["ms"].items()}, flush=True)
    print("written to", path.name)


if __name__ == "__main__":
    main()
