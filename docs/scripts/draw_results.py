# SPDX-License-Identifier: Apache-2.0
"""Draw what a network finds on held-out pictures, and which experts they choose.

    python docs/scripts/draw_results.py cells WEIGHTS --data BCCD --split val+test
    python docs/scripts/draw_results.py nuclei WEIGHTS --data NUCLEI --split val

writes docs/assets/cells-found.jpg, cells-routing.svg and so on. WEIGHTS are those of `benchmarks/accuracy.py`, which
says where the data come from. The pictures are evenly spread over all, ordered by how many objects were annotated.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor
from torch.nn import Module
from torchvision.io import write_jpeg
from torchvision.transforms.functional import pad

from moe_vision import predict
from moe_vision.data import open_dataset
from moe_vision.diagnostics import RoutingMonitor
from moe_vision.models import load_checkpoint
from moe_vision.visualize import comparison_sheet, plot_routing

ASSETS = Path(__file__).parents[1] / "assets"
PICTURES = 3
SCORE = 0.4

Sample = tuple[Tensor, dict[str, Any]]


def draw_found(model: Module, samples: list[Sample], path: Path) -> None:
    """Draw pairs from the emptiest picture to the most crowded: what was annotated, and what was found."""
    samples = sorted(samples, key=lambda sample: len(sample[1]["labels"]))
    shown = [samples[place * (len(samples) - 1) // (PICTURES - 1)] for place in range(PICTURES)]
    rows = []
    for image, truth in shown:
        row = comparison_sheet([image], [truth], predict(model, image, score=SCORE), model.class_names, size=320)
        empty = (row == 255).all(dim=2).all(dim=0)  # where pictures are not as high as they are wide
        rows.append(pad(row[:, ~empty], [0, 2], fill=255))
    write_jpeg(torch.cat(rows, dim=1), str(path), quality=80)


def draw_routing(model: Module, samples: list[Sample], path: Path) -> None:
    """Plot which experts the pictures choose, in groups by their number of objects."""
    with RoutingMonitor(model) as monitor:
        for image, target in samples:
            monitor.announce([target])
            predict(model, image)
    layers = {name.split(".")[1]: summary.by_objects for name, summary in monitor.summary().items()}
    sizes = {crowd: group.images for crowd, group in next(iter(layers.values())).items()}
    shares = {
        f"{crowd} ({size})": {layer: groups[crowd].shares for layer, groups in layers.items()}
        for crowd, size in sizes.items()
    }
    matplotlib.rcParams.update({"svg.hashsalt": "moe_vision", "svg.fonttype": "none"})
    plot_routing(shares, path, title="objects (pictures)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what the names of the files begin with")
    parser.add_argument("weights", type=Path, help="a checkpoint of a network that detects or segments")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", required=True, help="part of the data set")
    options = parser.parse_args()
    model = load_checkpoint(options.weights)
    dataset = open_dataset(options.data, options.split, task=model.config.task, classes=model.class_names)
    samples = [dataset[index] for index in range(len(dataset))]
    draw_found(model, samples, ASSETS / f"{options.name}-found.jpg")
    draw_routing(model, samples, ASSETS / f"{options.name}-routing.svg")


if __name__ == "__main__":
    main()
