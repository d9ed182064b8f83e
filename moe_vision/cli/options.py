# SPDX-License-Identifier: Apache-2.0
"""What several commands share: the option for the data, and how metrics are printed."""

import argparse
from pathlib import Path
from typing import Any

# After which metric the table by class comes.
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
    from moe_vision.visualize.metric_names import METRIC_NAMES

    for name, title in METRIC_NAMES.items():
        if name in metrics:
            print(f"{title:<20} {metrics[name]:.4f}")
            for label, value in metrics.get(BY_CLASS.get(name, ""), {}).items():
                print(f"  {label:<20} {value:.4f}")
    for layer, shares in metrics["experts"].items():
        print(f"  {layer:<20} experts {' '.join(f'{share:.0%}' for share in shares)}")
