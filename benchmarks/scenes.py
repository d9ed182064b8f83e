# SPDX-License-Identifier: Apache-2.0
"""Computation that follows the scene: images that decide how many experts they need, against a fixed number.

Networks learn generated scenes, from one object to about twenty, and are examined on others. Fixed cells give every
image K = 1, 2, 3 or 4 of 4 experts; the cells "top-p TARGET" let each image select the fewest experts whose
probabilities reach p, with a mean of TARGET held by the budget loss. The cells "information" and "loss-free" balance
K = 2 by other means than our default loss: the mutual information, and a bias on the selection. Each run is a row of
benchmarks/results/scenes.json: accuracy, experts and operations an image, and the rank correlation (Spearman) of
experts used and number of objects. When all cells of a seed have learnt, they are timed in turn on the same images,
one at a time.

    python benchmarks/scenes.py [--cells "top-p 2.0" "fixed 2"] [--seeds 0 1 2] [--scenes 1024] [--epochs 20]
    python benchmarks/scenes.py --data BCCD --image-size 256 --epochs 15

The second learns photographs in place of generated scenes, with the trainer's own recipe; its rows are in
scenes-FOLDER.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from measure import RESULTS, merge_row
from torch import Tensor

from moe_vision import create_model, fuse
from moe_vision.data import DetectionPipeline, ShapeScenes, build_loader, open_dataset
from moe_vision.data.readers.detection_reader import DetectionReader
from moe_vision.diagnostics import RoutingMonitor, compare_latency, count_expert_flops
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.models import YOLOMaster, load_checkpoint
from moe_vision.train import Trainer, TrainSettings, evaluate

Scenes = ShapeScenes | DetectionReader
P = 0.7
NETWORKS: dict[str, dict[str, Any]] = {
    **{f"fixed {k}": {"top_k": k} for k in (1, 2, 3, 4)},
    **{f"top-p {target}": {"top_k": 4, "top_p": P} for target in (1.5, 2.0, 3.0)},
    "information": {"top_k": 2},
    "loss-free": {"top_k": 2, "selection_bias": True},
}
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"top-p {target}": {"budget_experts": target} for target in (1.5, 2.0, 3.0)},
    "information": {"balance_kind": "information"},
    "loss-free": {"balance": 0.0},
}
RECIPE_OF_SCENES: dict[str, Any] = {"batch_size": 8, "lr": 4e-3, "mosaic": 0.0, "warmup_epochs": 1}
RECIPE_OF_PHOTOGRAPHS: dict[str, Any] = {"close_mosaic": 3}


def run_cell(cell: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    learnt, held_out = open_data(seed, options)
    settings = TrainSettings(
        epochs=options.epochs,
        eval_every=options.epochs,
        image_size=options.image_size,
        budget=options.budget,
        num_workers=0,
        seed=seed,
        **(RECIPE_OF_PHOTOGRAPHS if options.data else RECIPE_OF_SCENES),
        **SETTINGS.get(cell, {}),
    )
    set_seed(seed)
    classes = learnt.classes
    model = create_model("yolo_master_n", num_classes=len(classes), class_names=classes, **NETWORKS[cell])
    Trainer(model, learnt, None, weights_of(cell, seed, options).parent, settings).fit()
    model = load_checkpoint(weights_of(cell, seed, options))
    metrics = evaluate(model, held_out, image_size=options.image_size)
    return {
        "cell": cell,
        "seed": seed,
        "scenes": len(learnt),
        "epochs": options.epochs,
        "budget": options.budget,
        **{name: round(metrics[name], 4) for name in ("map", "map50")},
        **examine(model, held_out, options.image_size),
    }


def open_data(seed: int, options: argparse.Namespace) -> tuple[Scenes, Scenes]:
    """Return what is learnt, and what is held out."""
    if options.data:
        learnt, held_out = (open_dataset(options.data, split, task="detect") for split in ("train", "val+test"))
        return learnt, held_out
    return (
        ShapeScenes(options.scenes, options.image_size, seed=seed),
        ShapeScenes(options.held_out, options.image_size, seed=1000),
    )


@torch.no_grad()
def examine(model: YOLOMaster, scenes: Scenes, image_size: int) -> dict[str, Any]:
    """Return experts and operations an image, and how they go with the number of objects."""
    blocks = esmoe_layers(model)
    rest, costs = count_expert_flops(model, (3, image_size, image_size))
    used: dict[str, list[Tensor]] = {name: [] for name in blocks}
    flops: list[Tensor] = []
    objects: list[int] = []
    with RoutingMonitor(model) as monitor:
        for images, targets in build_loader(DetectionPipeline(scenes, image_size), 16):
            monitor.announce(targets)
            model(images)
            objects += [len(target["labels"]) for target in targets]
            selected = {name: block.routing.selected.float() for name, block in blocks.items()}
            for name, mask in selected.items():
                used[name].append(mask.sum(dim=1))
            flops.append(sum(mask @ torch.tensor(costs[name]).float() for name, mask in selected.items()))
    counts = {name: torch.cat(parts) for name, parts in used.items()}
    total = torch.stack(list(counts.values())).sum(dim=0)
    summaries = monitor.summary()
    return {
        "experts": round(total.mean().item() / len(blocks), 3),
        "gflops": round((rest + torch.cat(flops).mean().item()) / 1e9, 4),
        "spearman": spearman(total.tolist(), objects),
        "spearman_by_block": {name: spearman(values.tolist(), objects) for name, values in counts.items()},
        "experts_by_block": {name: round(layer.experts_per_image, 3) for name, layer in summaries.items()},
        "information": {name: round(layer.information, 3) for name, layer in summaries.items()},
        "experts_by_objects": {
            group: round(float(np.mean([layer.by_objects[group].experts_per_image for layer in summaries.values()])), 3)
            for group in next(iter(summaries.values())).by_objects
        },
    }


def spearman(a: list[float], b: list[int]) -> float | None:
    """Return the correlation of the ranks, where equals share their mean rank; None if all values are equal."""
    ranks = [mean_ranks(np.asarray(values)) for values in (a, b)]
    if min(rank.std() for rank in ranks) == 0:
        return None
    return round(float(np.corrcoef(*ranks)[0, 1]), 3)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def time_cells(cells: list[str], seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the median milliseconds an image of each cell, fused, over the same held-out images in turn."""
    scenes = DetectionPipeline(open_data(seed, options)[1], options.image_size)
    images = [scenes[index][0][None] for index in range(min(32, len(scenes)))]

    def call(model: torch.nn.Module) -> Callable[[], object]:
        return lambda: [model(image) for image in images]

    calls = {cell: call(fuse(load_checkpoint(weights_of(cell, seed, options)))) for cell in cells}
    with torch.inference_mode():
        times = compare_latency(calls, rounds=options.rounds)
    return {cell: round(time.median / len(images), 3) for cell, time in times.items()}


def weights_of(cell: str, seed: int, options: argparse.Namespace) -> Path:
    return Path(options.out / f"{results_name(options)}-{cell.replace(' ', '-')}-{seed}" / "last.safetensors")


def results_name(options: argparse.Namespace) -> str:
    return f"scenes-{options.data.name}" if options.data else "scenes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", metavar="CELL", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run each (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder with a detection data set, in place of generated scenes")
    parser.add_argument("--image-size", type=int, default=160, help="pixels a side (%(default)s)")
    parser.add_argument("--scenes", type=int, default=1024, help="scenes to learn from (%(default)s)")
    parser.add_argument("--held-out", type=int, default=256, help="scenes to be examined on (%(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the scenes (%(default)s)")
    parser.add_argument("--budget", type=float, default=0.1, help="weight of the budget loss (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"), help="folder for weights and logs")
    options = parser.parse_args()
    name = results_name(options)
    for seed in options.seeds:
        for cell in options.cells:
            row = run_cell(cell, seed, options)
            merge_row(name, row, key=("cell", "seed"))
            print(row, flush=True)
        times = time_cells(options.cells, seed, options)
        rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
        for row in rows:
            if row["seed"] == seed and row["cell"] in times:
                merge_row(name, {**row, "milliseconds": times[row["cell"]]}, key=("cell", "seed"))
        print(times, flush=True)


if __name__ == "__main__":
    main()
