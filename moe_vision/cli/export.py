# SPDX-License-Identifier: Apache-2.0
"""``moe-vision export``: write a checkpoint as an ONNX file."""

import argparse
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("export", help="write an ONNX file that keeps every expert, and check it")
    command.add_argument("weights", type=Path, help="a checkpoint")
    command.add_argument("--out", type=Path, help="file to write; beside the weights if left out")
    command.add_argument("--format", choices=["onnx"], default="onnx", help="format of the file (%(default)s)")
    command.add_argument(
        "--sparse",
        choices=["index", "dense"],
        default="index",
        help="index: experts that an image does not select do not run; dense: all do, for GPUs, NPUs and converters "
        "(%(default)s)",
    )
    command.add_argument("--image-size", type=int, help="side of the images in pixels; that of the network if left out")
    command.add_argument("--fixed-size", action="store_true", help="take one image of that size alone")
    command.add_argument("--half", action="store_true", help="keep weights and features in fp16")
    command.add_argument(
        "--suppress", action="store_true", help="drop boxes that score low or repeat others in the file"
    )
    command.add_argument("--score", type=float, default=0.25, help="lowest score to keep (%(default)s)")
    command.add_argument("--iou", type=float, default=0.7, help="overlap above which a box is dropped (%(default)s)")
    command.add_argument(
        "--max-detections", type=int, default=300, help="most boxes of a class in an image (%(default)s)"
    )
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Export the network, and print what the check found."""
    from moe_vision.exporting import Suppression, export
    from moe_vision.models import load_checkpoint

    limits = Suppression(options.score, options.iou, options.max_detections) if options.suppress else None
    report = export(
        load_checkpoint(options.weights),
        options.weights.with_suffix(".onnx") if options.out is None else options.out,
        image_size=options.image_size,
        sparse=options.sparse,
        dynamic=not options.fixed_size,
        half=options.half,
        suppress=limits,
    )
    print(report)
