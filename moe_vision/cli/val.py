# SPDX-License-Identifier: Apache-2.0
"""``moe-vision val``: evaluate weights on a data set."""

import argparse
import json
from pathlib import Path
from typing import Any

from moe_vision.cli.options import add_data, count_cost, describe_cost, load_network, print_metrics


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    from moe_vision.layers.dispatch import DISPATCH_MODES

    command = commands.add_parser("val", help="evaluate weights on a data set")
    command.add_argument("weights", type=Path, help="a checkpoint, or an ONNX file of one")
    add_data(command)
    command.add_argument("--split", default="val", help="part of the data (%(default)s)")
    command.add_argument("--image-size", type=int, help="side of the square images in pixels (the checkpoint's)")
    command.add_argument("--batch-size", type=int, default=16, help="images a forward (%(default)s)")
    command.add_argument("--json", type=Path, help="file for the metrics and the cost (none)")
    command.add_argument("--out", type=Path, help="folder for pictures: curves, confusion matrix, predictions (none)")
    command.add_argument(
        "--dispatch", default="auto", choices=DISPATCH_MODES, help="executor of the experts (%(default)s)"
    )
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Evaluate a checkpoint, and print its metrics."""
    from moe_vision.data import open_dataset
    from moe_vision.diagnostics import measure_latency
    from moe_vision.layers.esmoe import set_dispatch
    from moe_vision.models import YOLOMaster
    from moe_vision.train import evaluate

    model = load_network(options.weights)
    if options.dispatch != "auto" and not isinstance(model, YOLOMaster):
        raise ValueError(f"dispatch must be auto for a file, whose form its export fixed, got {options.dispatch}")
    set_dispatch(model, options.dispatch)
    data = open_dataset(options.data, options.split, task=model.config.task, classes=model.class_names)
    print(data.summary())
    size = options.image_size or model.image_size
    cost = count_cost(model, size) if isinstance(model, YOLOMaster) else {}  # a file does not tell
    if cost:
        print(describe_cost(cost))
    milliseconds = measure_latency(model, (3, size, size))
    print(f"{milliseconds:.1f} ms for an image of {size} x {size}")
    metrics = evaluate(model, data, image_size=size, batch_size=options.batch_size, progress=True, pictures=options.out)
    print_metrics(metrics)
    if options.out is not None:
        print(f"Pictures drawn to {options.out}")
    if options.json is not None:
        options.json.write_text(json.dumps({**metrics, **cost, "milliseconds": milliseconds}, indent=2))
