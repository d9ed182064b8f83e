# SPDX-License-Identifier: Apache-2.0
"""``moe-vision prune``: remove the experts that contribute least."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_vision.cli.options import add_data

if TYPE_CHECKING:  # the command line answers without waiting for torch
    from moe_vision.models import YOLOMaster


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("prune", help="remove the experts that contribute least, while accuracy holds")
    command.add_argument("weights", type=Path, help="a checkpoint")
    add_data(command)
    command.add_argument("--out", type=Path, help="checkpoint to write (beside the weights)")
    command.add_argument("--keep", type=int, help="experts that a block keeps at least (as many as images use)")
    command.add_argument(
        "--max-drop", type=float, default=0.02, help="most that mAP 50:95, or top-1, may fall by (%(default)s)"
    )
    command.add_argument("--split", default="train", help="part of the data to calibrate on (%(default)s)")
    command.add_argument("--val-split", default="val", help="part of the data to measure accuracy on (%(default)s)")
    command.add_argument("--images", type=int, default=64, help="images to calibrate on (%(default)s)")
    command.add_argument("--image-size", type=int, help="side of the square images in pixels (the checkpoint's)")
    command.add_argument("--batch-size", type=int, default=16, help="images a forward (%(default)s)")
    command.add_argument("--json", type=Path, help="file for the report (none)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Prune a checkpoint, print the report, and write what is left unless that is all."""
    from torch.utils.data import DataLoader, Subset

    from moe_vision.data import collate, open_dataset
    from moe_vision.layers.checks import check_positive
    from moe_vision.models import load_checkpoint, save_checkpoint
    from moe_vision.pruning import prune
    from moe_vision.train import evaluate
    from moe_vision.train.recipes import RECIPES

    check_positive(images=options.images, batch_size=options.batch_size)
    model = load_checkpoint(options.weights)
    size, recipe = options.image_size or model.image_size, RECIPES[model.config.task]
    seen, held_out = (
        open_dataset(options.data, split, task=recipe.task, classes=model.class_names)
        for split in (options.split, options.val_split)
    )
    print(f"calibrate: {seen.summary()}\nmeasure:   {held_out.summary()}")
    # Evenly spread, since neighbours may be alike.
    indices = range(0, len(seen), max(1, len(seen) // options.images))[: options.images]
    loader = DataLoader(Subset(recipe.dataset(seen, size), indices), options.batch_size, collate_fn=collate)

    def accuracy(candidate: "YOLOMaster") -> float:
        metrics = evaluate(candidate, held_out, image_size=size, batch_size=options.batch_size, progress=True)
        return float(metrics[recipe.metric])

    pruned, report = prune(model, loader, keep=options.keep, max_drop=options.max_drop, evaluate=accuracy)
    print(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_dict(), indent=2))
    if report.removed:
        out = options.out or options.weights.with_name(f"{options.weights.stem}-pruned.safetensors")
        save_checkpoint(pruned, out)
        print(f"Written to {out}")
