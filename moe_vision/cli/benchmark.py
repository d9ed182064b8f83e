# SPDX-License-Identifier: Apache-2.0
"""``moe-vision benchmark``: how fast a network is on this machine."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_vision.cli.options import count_cost, describe_cost

if TYPE_CHECKING:  # the command line answers without waiting for torch
    from torch import nn

    from moe_vision.diagnostics import Latency
    from moe_vision.models import YOLOMaster


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("benchmark", help="time a network on this machine: as built, fused, every expert")
    command.add_argument("model", help="a checkpoint, or the name of a network, like yolo_master_n")
    command.add_argument("--image-size", type=int, help="side of the square images in pixels (the checkpoint's)")
    command.add_argument("--batch-size", type=int, default=1, help="images a forward (%(default)s)")
    command.add_argument("--threads", type=int, help="threads of the CPU (PyTorch's choice)")
    command.add_argument("--rounds", type=int, default=10, help="timed forwards of each kind (%(default)s)")
    command.add_argument("--json", type=Path, help="file for the figures (none)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Time the network, and print its cost and a row for each way to run it."""
    import torch

    from moe_vision.diagnostics import compare_latency
    from moe_vision.layers.checks import check_positive
    from moe_vision.models.yolo_master import check_image_size

    model = _open(options.model)
    size = options.image_size or model.image_size
    check_image_size(size)
    check_positive(batch_size=options.batch_size)
    if options.threads is not None:
        check_positive(threads=options.threads)
        torch.set_num_threads(options.threads)
    images = torch.rand(options.batch_size, 3, size, size)
    with torch.inference_mode():
        calls = {name: _call(way, images) for name, way in ways_to_run(model).items()}
        times = compare_latency(calls, rounds=options.rounds)
    figures = {
        "image_size": size,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
        **count_cost(model, size),
        "milliseconds": {name: time._asdict() for name, time in times.items()},
        "images_per_second": {name: 1e3 * options.batch_size / time.median for name, time in times.items()},
    }
    _print(figures, times)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2))


def _open(model: str) -> "YOLOMaster":
    """Load a checkpoint, or build a detector with random weights by its name."""
    from moe_vision.models import create_model, list_models, load_checkpoint

    if model in list_models():
        return create_model(model).eval()
    if not Path(model).is_file():
        raise ValueError(f"model must be a checkpoint or one of {', '.join(list_models())}, got {model}")
    return load_checkpoint(model)


def ways_to_run(model: "YOLOMaster") -> dict[str, "nn.Module"]:
    """Return the network in all ways to run it that are compared."""
    import copy

    from moe_vision import fuse
    from moe_vision.layers.esmoe import set_dispatch

    every = copy.deepcopy(model)
    set_dispatch(every, "dense")
    return {"as built": model, "fused": fuse(model), "every expert": every}


def _call(model: "nn.Module", images: Any) -> Callable[[], object]:
    return lambda: model(images)


def _print(figures: dict[str, Any], times: dict[str, "Latency"]) -> None:
    size = figures["image_size"]
    print(f"{describe_cost(figures)}; {figures['batch_size']} x {size} x {size}, {figures['threads']} threads")
    print(f"{'':<12} {'median, ms':>12} {'quartiles, ms':>20} {'images/s':>10}")
    for name, time in times.items():
        quartiles = f"{time.lower:.1f} - {time.upper:.1f}"
        print(f"{name:<12} {time.median:>12.1f} {quartiles:>20} {figures['images_per_second'][name]:>10.1f}")
