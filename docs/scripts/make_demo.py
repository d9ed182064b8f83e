# SPDX-License-Identifier: Apache-2.0
"""Make what the demo page shows: the detector in a file, what the page must know of it, and three sample pictures.

    python docs/scripts/make_demo.py WEIGHTS --data BCCD

WEIGHTS is a detector that `benchmarks/accuracy.py` trained on BCCD, github.com/Shenggan/BCCD_Dataset (MIT). The samples
are those of its held-out pictures that hold the fewest, a middling number and the most annotated cells.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from moe_vision import export
from moe_vision.data import open_dataset
from moe_vision.models import load_checkpoint
from moe_vision.runtime import Runner

FOLDER = Path(__file__).parents[1] / "assets" / "demo"
IMAGE_SIZE = 320
LIMITS = {"score": 0.25, "iou": 0.7}


def describe(path: Path) -> dict[str, Any]:
    """Return what the page must know of a file: a browser does not see its metadata."""
    about = Runner(path).metadata
    return {
        "class_names": about["class_names"],
        "image_size": about["image_size"],
        "letterbox": round(255 * about["input"]["letterbox"]),
        "kernel_sizes": about["config"]["kernel_sizes"],
        "top_k": about["config"]["top_k"],
        **LIMITS,
    }


def save_samples(dataset: Any) -> None:
    """Save the pictures with the fewest, a middling number and the most boxes."""
    order = sorted(range(len(dataset)), key=lambda index: len(dataset[index][1]["boxes"]))
    for name, index in {"few": order[0], "some": order[len(order) // 2], "many": order[-1]}.items():
        pixels = dataset[index][0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(FOLDER / f"{name}.jpg", quality=80, optimize=True)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a checkpoint of a detector")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set, in VOC format")
    options = parser.parse_args()
    model = load_checkpoint(options.weights)
    path = FOLDER / "cells.onnx"
    print(export(model, path, image_size=IMAGE_SIZE, half=True, routing=True))
    (FOLDER / "cells.json").write_text(json.dumps(describe(path), indent=2) + "\n")
    save_samples(open_dataset(options.data, "val+test", task="detect", classes=model.class_names))


if __name__ == "__main__":
    main()
