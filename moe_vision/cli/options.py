# SPDX-License-Identifier: Apache-2.0
"""What several commands share: the option for the data, the network, what it costs, and how metrics are printed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line answers without waiting for torch
    from torch import nn

    from moe_vision.models import ExportedNetwork, YOLOMaster

COUNTS = {"class_images": "images", "class_objects": "objects"}
OF_OBJECTS = {"map": "mAP 50:95", "map50": "mAP 50", "precision": "precision", "recall": "recall"}
# After which metric which table by class comes: titles of columns by the name of the metric.
BY_CLASS = {
    "map50": {f"class_{name}": title for name, title in OF_OBJECTS.items()},
    "mask_map50": {f"mask_class_{name}": title for name, title in OF_OBJECTS.items()},
    "top5": {"class_top1": "top-1", "class_top5": "top-5"},
}


def add_data(command: argparse.ArgumentParser) -> None:
    """Add the option for a data set."""
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="data set of Pascal VOC, COCO, YOLO or instance-index PNG; to classify, of folders or a list",
    )


def load_network(path: Path) -> "YOLOMaster | ExportedNetwork":
    """Load a checkpoint, or a network that was exported to ONNX."""
    from moe_vision.models import ExportedNetwork, load_checkpoint

    return ExportedNetwork(path) if path.suffix == ".onnx" else load_checkpoint(path)


def count_cost(model: "nn.Module", size: int) -> dict[str, int]:
    """Return the parameters, and the operations for an image with sides of ``size`` pixels; all and active."""
    from moe_vision.diagnostics import count_flops, count_parameters

    parameters, flops = count_parameters(model), count_flops(model, (3, size, size))
    return {
        "parameters": parameters.total,
        "active_parameters": parameters.active,
        "flops": flops.total,
        "active_flops": flops.active,
    }


def describe_cost(cost: dict[str, Any]) -> str:
    """Say in half a line what `count_cost` counted."""
    return (
        f"parameters {cost['parameters'] / 1e6:.2f} M, {cost['active_parameters'] / 1e6:.2f} M active; "
        f"{cost['flops'] / 1e9:.2f} GFLOPs, {cost['active_flops'] / 1e9:.2f} active"
    )


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print what `moe_vision.train.evaluate` returned."""
    from moe_vision.visualize.metric_names import METRIC_NAMES

    for name, title in METRIC_NAMES.items():
        if name in metrics:
            print(f"{title:<20} {metrics[name]:.4f}")
            _print_classes(metrics, BY_CLASS.get(name, {}))
    for layer, shares in metrics["experts"].items():
        print(f"  {layer:<20} experts {' '.join(f'{share:.0%}' for share in shares)}")


def _print_classes(metrics: dict[str, Any], titles: dict[str, str]) -> None:
    """Print a row a class of the metrics that are known; precision and recall are those of the best F1."""
    columns = {title: metrics[name] for name, title in {**COUNTS, **titles}.items() if titles and name in metrics}
    labels = list(next(iter(columns.values()), {}))
    width = max([20, *map(len, labels)])
    if labels:
        print(f"  {'class':<{width}} {'  '.join(f'{title:>9}' for title in columns)}")
    for label in labels:
        print(f"  {label:<{width}} {'  '.join(f'{_cell(column[label]):>9}' for column in columns.values())}")


def _cell(value: float) -> str:
    """Write a count, or a share of what there is."""
    if isinstance(value, int):
        return str(value)
    return "-" if value < 0 else f"{value:.4f}"
