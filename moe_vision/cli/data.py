# SPDX-License-Identifier: Apache-2.0
"""``moe-vision data``: check a data set before training on it."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    from moe_vision.models.config import TASKS

    command = commands.add_parser("data", help="check a data set: counts, sizes, class balance, every problem found")
    command.add_argument("data", type=Path, help="folder or file of the data set")
    command.add_argument("--task", default="detect", choices=TASKS, help="what it is for (%(default)s)")
    command.add_argument("--split", default="train", help="part of the data (%(default)s)")
    command.add_argument("--out", type=Path, help="folder for a JSON and a sheet of samples with their labels (none)")
    command.add_argument("--samples", type=int, default=12, help="samples on the sheet (%(default)s)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Print what is in the data, and write it and a sheet of samples if asked to."""
    from moe_vision.data import describe, format_description, open_dataset

    data = open_dataset(options.data, options.split, task=options.task)
    found = describe(data)
    print(format_description(found))
    if options.out is None:
        return
    from moe_vision.visualize import sample_sheet, save_picture

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "data.json").write_text(json.dumps(found, indent=2))
    save_picture(sample_sheet(data, options.samples), options.out / "samples.jpg")
    print(f"Written to {options.out}: data.json, samples.jpg")
