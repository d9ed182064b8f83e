# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step of the n detector, with experts and without, with gradient checkpointing and not.

A step is what the trainer does with a batch: forward, loss, backward, clipping, optimizer; loading is not part of it.
``auto`` runs every expert for every image, ``grouped`` those that an image selects; ``none`` is the network without
experts. Images select any two experts at random, since routers that have learnt nothing send all to the same two.
Peak memory is what tensors hold at once besides weights and images, the gradients included.

    python benchmarks/training.py [--rounds 9] [--size 320] [--batch 4 16]
"""

import argparse
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from measure import interleaved_medians, write_result
from torch import Tensor, nn

from moe_vision import create_model
from moe_vision.data import DetectionPipeline, ShapeScenes
from moe_vision.data.loader import collate
from moe_vision.layers.esmoe import esmoe_layers, set_dispatch
from moe_vision.models import YOLOMaster
from moe_vision.tasks import detect_loss
from moe_vision.train import TrainSettings
from moe_vision.train.preparation import create_optimizer
from tests.memory import peak_megabytes

NETWORKS = {"none": {"placement": "none"}, "auto": {}, "grouped": {}}
CHECKPOINTING = (False, True)


def select_at_random(router: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Hook of a router: lift two experts of each image; checkpointing draws the same once more."""
    pairs = torch.tensor(list(combinations(range(logits.shape[1]), 2)))
    chosen = pairs[torch.randint(len(pairs), (len(logits),))]
    return logits + torch.zeros_like(logits).scatter(1, chosen, 5.0)


def make_network(name: str, settings: TrainSettings) -> YOLOMaster:
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=4, **NETWORKS[name]).train()
    set_dispatch(model, settings.dispatch)
    model.set_grad_checkpointing(settings.grad_checkpointing)
    for layer in esmoe_layers(model).values():
        layer.router.register_forward_hook(select_at_random)
    return model.to(memory_format=torch.channels_last)


def make_batch(batch: int, size: int) -> tuple[Tensor, list[dict[str, Any]]]:
    pipeline = DetectionPipeline(ShapeScenes(batch, size), size, augment=True)
    images, targets = collate([pipeline[index] for index in range(batch)])
    return images.contiguous(memory_format=torch.channels_last), targets


def make_step(name: str, batch: int, size: int, saving: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a whole step, and forward and backward alone."""
    dispatch = "grouped" if name == "grouped" else "auto"
    settings = TrainSettings(image_size=size, dispatch=dispatch, grad_checkpointing=saving, lr=1e-6)
    model, (images, targets) = make_network(name, settings), make_batch(batch, size)
    optimizer = create_optimizer(model, settings)

    def backward() -> None:
        optimizer.zero_grad()
        torch.stack(list(detect_loss(model, model(images), targets).values())).sum().backward()

    def step() -> None:
        backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()

    return step, backward


def row(batch: int, size: int, rounds: int) -> dict[str, Any]:
    names = {
        f"{name}, checkpointing" if saving else name: (name, saving) for saving in CHECKPOINTING for name in NETWORKS
    }
    steps = {label: make_step(name, batch, size, saving) for label, (name, saving) in names.items()}
    times = interleaved_medians({label: step for label, (step, _) in steps.items()}, rounds)
    peaks = {label: peak_megabytes(backward) for label, (_, backward) in steps.items()}
    return {
        "batch": batch,
        "size": size,
        "ms_per_image": {label: round(time / batch, 2) for label, time in times.items()},
        "time/none": {label: round(time / times["none"], 3) for label, time in times.items()},
        "peak_mib": {label: round(peak, 1) for label, peak in peaks.items()},
        "peak/none": {label: round(peak / peaks["none"], 3) for label, peak in peaks.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each kind (%(default)s)")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16], help="images a step (%(default)s)")
    options = parser.parse_args()
    rows = []
    for batch in options.batch:
        rows.append(row(batch, options.size, options.rounds))
        print(rows[-1], flush=True)
    about = {"network": "yolo_master_n, detect, paper, fp32, channels_last", "times": "medians of interleaved steps"}
    print("written to", write_result("training", rows, **about).name)


if __name__ == "__main__":
    main()
