# SPDX-License-Identifier: Apache-2.0
"""``moe-vision inspect``: see which images go to which experts."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_vision.cli.options import add_data

if TYPE_CHECKING:  # the command line answers without waiting for torch
    from moe_vision.visualize import Inspection


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("inspect", help="see which images go to which experts; writes a page and a JSON")
    command.add_argument("weights", type=Path, help="a checkpoint")
    add_data(command)
    command.add_argument("--split", default="val", help="part of the data (%(default)s)")
    command.add_argument(
        "--out", type=Path, default=Path("runs/inspect"), help="folder for the page and the JSON (%(default)s)"
    )
    command.add_argument("--image-size", type=int, help="side of the square images in pixels (the checkpoint's)")
    command.add_argument("--batch-size", type=int, default=16, help="images a forward (%(default)s)")
    command.add_argument("--favourites", type=int, default=6, help="images to show for each expert (%(default)s)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Watch the routing of a checkpoint on a data set, print a table, and write page and JSON."""
    from moe_vision.data import open_dataset
    from moe_vision.models import load_checkpoint
    from moe_vision.visualize import inspect_routing, routing_page

    model = load_checkpoint(options.weights)
    data = open_dataset(options.data, options.split, task=model.config.task, classes=model.class_names)
    print(data.summary())
    found = inspect_routing(
        model,
        data,
        image_size=options.image_size,
        batch_size=options.batch_size,
        num_favourites=options.favourites,
    )
    _print(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "routing.json").write_text(json.dumps(found.as_dict(), indent=2))
    subtitle = f"{options.weights}, {options.data} ({options.split}): {data.summary()}"
    page = routing_page(found, data, title=f"Routing of {options.weights.stem}", subtitle=subtitle)
    (options.out / "routing.html").write_text(page, encoding="utf-8")
    print(f"Written to {options.out}: routing.html, routing.json")


def _print(found: "Inspection") -> None:
    print(f"{'':<22} {'experts':>8} {'information':>12} {'possible':>9} {'entropy':>8}  share of selections")
    for name, layer in found.layers.items():
        figures = f"{layer.information:>12.3f} {layer.information_limit:>9.3f} {layer.entropy:>8.3f}"
        shares = " ".join(f"{share:.0%}" for share in layer.shares)
        print(f"{name:<22} {layer.experts_per_image:>8.2f} {figures}  {shares}")
    low, high = min(found.flops) / 1e9, max(found.flops) / 1e9
    print(
        f"operations of an image: {low:.3f} to {high:.3f} GFLOPs, mean {sum(found.flops) / len(found.flops) / 1e9:.3f}"
    )
    for alarm in found.alarms:
        print(f"alarm: {alarm}")
