# SPDX-License-Identifier: Apache-2.0
"""``moe-vision train``: train a network on a data set."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from moe_vision.cli.options import add_data, print_metrics


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    from moe_vision.models.config import PLACEMENTS, TASKS
    from moe_vision.train.settings import OF_TASK, TrainSettings

    command = commands.add_parser("train", help="train a network on a data set")
    add_data(command)
    command.add_argument("--train-split", default="train", help="part of the data to learn from (%(default)s)")
    command.add_argument("--val-split", default="val", help="part of the data to evaluate on (%(default)s)")
    command.add_argument("--task", default="detect", choices=TASKS, help="what the network predicts (%(default)s)")
    command.add_argument(
        "--model", default="yolo_master_n", help="name of the network: yolo_master_n, s, m, l or x (%(default)s)"
    )
    command.add_argument(
        "--variant", default="paper", help="variant of the architecture: paper, esmoe or v0_1 (%(default)s)"
    )
    command.add_argument(
        "--placement", default="backbone", choices=PLACEMENTS, help="where the ES-MoE blocks are (%(default)s)"
    )
    command.add_argument(
        "--backbone", default="yolo_master", help="yolo_master, or a timm model under neck and head (%(default)s)"
    )
    command.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="start from the weights that timm has for its model, or from those of a file",
    )
    command.add_argument(
        "--out", type=Path, default=Path("runs/train"), help="folder for weights and log (%(default)s)"
    )
    command.add_argument("--resume", action="store_true", help="go on with the run in --out, if it was interrupted")
    for setting in fields(TrainSettings):
        others = [
            f"; {of_task[setting.name]} to {task}" for task, of_task in OF_TASK.items() if setting.name in of_task
        ]
        kind = type(setting.default)
        command.add_argument(
            "--" + setting.name.replace("_", "-"),
            **({"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}),
            help=f"{setting.metadata['help']} ({setting.default}{''.join(others)})",
        )
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Train a network, and print its metrics."""
    from accelerate.utils import set_seed

    from moe_vision.data import open_dataset
    from moe_vision.models import create_model
    from moe_vision.train import Trainer, TrainSettings

    given = {setting.name: getattr(options, setting.name) for setting in fields(TrainSettings)}
    settings = TrainSettings.for_task(
        options.task, **{name: value for name, value in given.items() if value is not None}
    )
    learnt = open_dataset(options.data, options.train_split, task=options.task)
    held_out = open_dataset(options.data, options.val_split, task=options.task, classes=learnt.classes)
    print(f"train: {learnt.summary()}\nval:   {held_out.summary()}")
    set_seed(settings.seed)
    model = create_model(
        options.model,
        task=options.task,
        num_classes=len(learnt.classes),
        variant=options.variant,
        class_names=learnt.classes,
        image_size=settings.image_size,
        placement=options.placement,
        backbone=options.backbone,
        pretrained=options.pretrained,
    )
    trainer = Trainer(model, learnt, held_out, options.out, settings, resume=options.resume)
    try:
        metrics = trainer.fit()
    except KeyboardInterrupt:
        print(f"\nInterrupted; --resume goes on after the last whole epoch of {options.out}", file=sys.stderr)
        raise
    if not metrics:  # another process evaluates and writes
        return
    print_metrics(metrics)
    files = sorted(path.name for path in options.out.iterdir() if path.is_file())
    print(f"Written to {options.out}: {', '.join(files)}")
