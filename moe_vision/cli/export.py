# SPDX-License-Identifier: Apache-2.0
"""``moe-vision export``: write a checkpoint as a file for other runtimes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_vision.cli.predict import images_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from moe_vision.models import YOLOMaster

CALIBRATION_IMAGES = 100
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("export", help="write a file that keeps every expert, and check it")
    command.add_argument("weights", type=Path, help="a checkpoint")
    command.add_argument("--out", type=Path, help="file to write (beside the weights)")
    command.add_argument("--format", choices=ENDINGS, default="onnx", help="format of the file (%(default)s)")
    command.add_argument(
        "--sparse",
        choices=["index", "dense"],
        default="index",
        help="index: experts that an image does not select do not run; dense: all do, for GPUs, NPUs and converters "
        "(%(default)s)",
    )
    command.add_argument("--image-size", type=int, help="side of the images in pixels (the checkpoint's)")
    command.add_argument("--fixed-size", action="store_true", help="take one image of that size alone")
    command.add_argument("--half", action="store_true", help="keep weights and features in fp16")
    command.add_argument("--int8", action="store_true", help="quantise to int8, with ranges measured on --data")
    command.add_argument(
        "--data",
        type=Path,
        help="for --int8: a folder of images, or a data set, whose part train is measured and val compared (none)",
    )
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
    """Export the network, and print what the check found and what int8 costs."""
    from moe_vision.exporting import Suppression, export
    from moe_vision.models import load_checkpoint

    if options.int8 == (options.data is None):
        raise ValueError("data must be given with --int8, and with it alone")
    model, path = load_checkpoint(options.weights), _path(options)
    report = export(
        model,
        path,
        image_size=options.image_size,
        sparse=options.sparse,
        dynamic=not options.fixed_size,
        half=options.half,
        calibration=_calibration(options, model) if options.int8 else None,
        suppress=Suppression(options.score, options.iou, options.max_detections) if options.suppress else None,
    )
    print(report)
    labelled = options.int8 and not images_in(options.data)
    if labelled and not options.suppress:  # with suppression the file drops boxes that count
        _compare(options, model, path)


def _path(options: argparse.Namespace) -> Path:
    ending = ENDINGS[options.format]
    path: Path = options.weights.with_suffix(ending) if options.out is None else options.out
    if path.suffix != ending:
        raise ValueError(f"out must end in {ending} for --format {options.format}, got {path.name}")
    return path


def _calibration(options: argparse.Namespace, model: "YOLOMaster") -> "Iterator[Tensor]":
    """Return images to measure ranges on: of a folder, or of a data set."""
    from moe_vision.data import open_dataset
    from moe_vision.exporting import calibration_images
    from moe_vision.exporting.calibration import evenly_spread

    task, images = model.config.task, list[Any](images_in(options.data))
    if not images:
        data = open_dataset(options.data, "train", task=task, classes=model.class_names)
        images = list(evenly_spread(data, CALIBRATION_IMAGES))
    return calibration_images(images[:CALIBRATION_IMAGES], task, options.image_size or model.image_size)


def _compare(options: argparse.Namespace, model: "YOLOMaster", path: Path) -> None:
    """Print the accuracy of the weights and of the file."""
    from moe_vision.data import open_dataset
    from moe_vision.models import ExportedNetwork
    from moe_vision.train import evaluate
    from moe_vision.visualize.metric_names import METRIC_NAMES

    data = open_dataset(options.data, "val", task=model.config.task, classes=model.class_names)
    size = options.image_size or model.image_size
    before, after = (evaluate(network, data, image_size=size) for network in (model, ExportedNetwork(path)))
    print(f"{'':<20} weights    int8")
    for name, title in METRIC_NAMES.items():
        if name in before:
            print(f"{title:<20} {before[name]:>7.4f} {after[name]:>7.4f}")
