# SPDX-License-Identifier: Apache-2.0
"""Accuracy of exported files: mAP of trained weights in eager and of their ONNX files, on the same held-out images.

    python benchmarks/onnx_accuracy.py WEIGHTS --data BCCD [--forms fp32 fp16 int8] [--image-size 320]

The data: github.com/Shenggan/BCCD_Dataset (MIT). int8 is calibrated on 100 training images. Each finished
form is a row of benchmarks/results/onnx_accuracy.json, in place of an earlier row of it.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import merge_row

from moe_vision import export
from moe_vision.data import open_dataset
from moe_vision.exporting import calibration_images
from moe_vision.exporting.calibration import evenly_spread
from moe_vision.models import ExportedNetwork, YOLOMaster, load_checkpoint
from moe_vision.train import evaluate

ALLOWED = {"fp32": 0.001, "fp16": 0.005, "int8": 0.02}  # drop of mAP
CALIBRATION_IMAGES = 100


def make_file(form: str, model: YOLOMaster, train: Any, size: int, path: Path) -> None:
    images = evenly_spread(train, CALIBRATION_IMAGES)
    calibration = calibration_images(images, "detect", size) if form == "int8" else None
    export(model, path, image_size=size, half=form == "fp16", calibration=calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a checkpoint of a detector")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set, in VOC format")
    parser.add_argument("--forms", nargs="+", choices=ALLOWED, default=list(ALLOWED), help="forms (all)")
    parser.add_argument("--image-size", type=int, default=320, help="side of the images in pixels (%(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model, size = load_checkpoint(options.weights), options.image_size
    train, held_out = (
        open_dataset(options.data, split, task="detect", classes=model.class_names) for split in ("train", "val+test")
    )
    eager = evaluate(model, held_out, image_size=size)
    print(f"eager: {eager['map']:.4f} {eager['map50']:.4f}", flush=True)
    for form in options.forms:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{form}.onnx")
            make_file(form, model, train, size, path)
            megabytes = path.stat().st_size / 1e6
            found = evaluate(ExportedNetwork(path), held_out, image_size=size)
        row = {
            "form": form,
            "images": len(held_out),
            "image_size": size,
            "megabytes": round(megabytes, 2),
            "map": {"eager": round(eager["map"], 4), "file": round(found["map"], 4)},
            "map50": {"eager": round(eager["map50"], 4), "file": round(found["map50"], 4)},
            "drop": round(eager["map"] - found["map"], 4),
            "allowed": ALLOWED[form],
            "onnxruntime": version("onnxruntime"),
        }
        print(row, "->", merge_row("onnx_accuracy", row, key=("form",)).name, flush=True)


if __name__ == "__main__":
    main()
