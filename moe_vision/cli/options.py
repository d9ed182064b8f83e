# SPDX-License-Identifier: Apache-2.0
"""What several commands share: the option for the data, and how metrics are printed."""

import argparse
from pathlib import Path
from typing import Any

# The metrics to print, with the table by class after some of them.
TITLES = {
    "map": "mAP 50:95",
    "map50": "mAP 50",
    "mask_map": "mask mAP 50:95",
    "mask_map50": "mask mAP 50",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}
BY_CLASS = {"map50": "class_map", "mask_map50": "mask_class_map", "top5": "class_top1"}


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the option for a data set."""
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="data set of Pascal VOC, COCO, YOLO or instance-index PNG; to classify, of folders or a list",
    )


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print what `moe_vision.train.evaluate` returned."""
    for name, title in TITLES.items():
        if name in metrics:
            print(f"{title:<20} {metrics[name]:.4f}")
            for label, value in metrics.get(BY_CLASS.get(name, ""), {}).items():
                print(f"  {label:<20} {value:.4f}")
    for layer, shares in metrics["experts"].items():
        print(f"  {layer:<20} experts {' '.join(f'{share:.0%}' for share in shares)}")
