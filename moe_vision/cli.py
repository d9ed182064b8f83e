# SPDX-License-Identifier: Apache-2.0
"""The command line, ``moe-vision``: each command is a thin layer over what Python has under the same name."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

# Extra to install for a module that may be missing.
EXTRAS = {
    "accelerate": "train",
    "faster_coco_eval": "train",
    "tqdm": "train",
    "contourpy": "visualize",
    "matplotlib": "visualize",
}
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for bad input, 130 when interrupted."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; pip install 'moe-vision[{EXTRAS[error.name]}]'")
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="moe-vision", description="Sparse Mixture-of-Experts vision models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_val(commands)
    _add_predict(commands)
    _add_convert(commands)
    return parser


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="train on generated scenes and show the detections, in minutes")
    command.add_argument("--out", type=Path, default=Path("moe-vision-demo"), help="folder for the results")
    command.add_argument("--seed", type=int, default=0, help="seed of scenes and weights")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from moe_vision.demo import run_demo

    start = time.perf_counter()
    result = run_demo(options.out, seed=options.seed)
    print(f"\nOn held-out scenes: mAP 50 {result['map50']:.3f}, mAP 50:95 {result['map']:.3f}")
    print(f"Done in {time.perf_counter() - start:.0f} s. Written:")
    for path in result["files"]:
        print(f"  {path}")


def _add_train(commands: Any) -> None:
    from moe_vision.models.config import PLACEMENTS
    from moe_vision.train.settings import TrainSettings

    command = commands.add_parser("train", help="train a network on a data set")
    _add_data(command)
    command.add_argument("--train-split", default="train", help="lists of images to learn from, joined by +")
    command.add_argument("--val-split", default="val", help="lists of images to evaluate on, joined by +")
    command.add_argument("--task", default="detect", choices=["detect"], help="what the network predicts")
    command.add_argument("--model", default="yolo_master_n", help="name of the network")
    command.add_argument("--variant", default="paper", help="variant of the architecture")
    command.add_argument("--placement", default="backbone", choices=PLACEMENTS, help="where the ES-MoE blocks are")
    command.add_argument("--backbone", default="yolo_master", help="yolo_master, or a timm model under neck and head")
    command.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="start from the weights that timm has for its model, or from those of a file",
    )
    command.add_argument("--out", type=Path, default=Path("runs/train"), help="folder for weights and log")
    command.add_argument("--resume", action="store_true", help="go on with the run in --out, if it was interrupted")
    for setting in fields(TrainSettings):
        option = "--" + setting.name.replace("_", "-")
        command.add_argument(
            option,
            type=type(setting.default),
            default=setting.default,
            help=f"{setting.metadata['help']} (%(default)s)",
        )
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from accelerate.utils import set_seed

    from moe_vision.data import VOCDetection
    from moe_vision.models import create_model
    from moe_vision.train import Trainer, TrainSettings

    settings = TrainSettings(**{setting.name: getattr(options, setting.name) for setting in fields(TrainSettings)})
    learnt = VOCDetection(options.data, options.train_split)
    held_out = VOCDetection(options.data, options.val_split, classes=learnt.classes)
    print(f"train: {learnt.summary()}\nval:   {held_out.summary()}")
    set_seed(settings.seed)
    model = create_model(
        options.model,
        task=options.task,
        num_classes=len(learnt.classes),
        variant=options.variant,
        class_names=learnt.classes,
        image_size=options.image_size,
        placement=options.placement,
        backbone=options.backbone,
        pretrained=options.pretrained,
    )
    metrics = Trainer(model, learnt, held_out, options.out, settings, resume=options.resume).fit()
    if not metrics:  # another process evaluates and writes
        return
    _print_metrics(metrics)
    print(f"Written to {options.out}: last.safetensors, best.safetensors, log.jsonl, settings.json")


def _add_val(commands: Any) -> None:
    from moe_vision.layers.dispatch import DISPATCH_MODES

    command = commands.add_parser("val", help="evaluate weights on a data set")
    command.add_argument("weights", type=Path, help="a checkpoint")
    _add_data(command)
    command.add_argument("--split", default="val", help="lists of images, joined by +")
    command.add_argument("--image-size", type=int, help="side of the square images in pixels (the checkpoint's)")
    command.add_argument("--batch-size", type=int, default=16, help="images a forward (%(default)s)")
    command.add_argument("--dispatch", default="auto", choices=DISPATCH_MODES, help="executor of the experts")
    command.set_defaults(run=_val)


def _val(options: argparse.Namespace) -> None:
    from moe_vision.data import VOCDetection
    from moe_vision.layers import ESMoE
    from moe_vision.models import load_checkpoint
    from moe_vision.train import evaluate

    model = load_checkpoint(options.weights)
    for module in model.modules():
        if isinstance(module, ESMoE):
            module.dispatch = options.dispatch
    data = VOCDetection(options.data, options.split, classes=model.class_names)
    print(data.summary())
    size = options.image_size or model.image_size
    _print_metrics(evaluate(model, data, image_size=size, batch_size=options.batch_size, progress=True))


def _add_predict(commands: Any) -> None:
    command = commands.add_parser("predict", help="detect, segment or classify images; writes pictures and a JSON")
    command.add_argument("weights", type=Path, help="a checkpoint")
    command.add_argument("images", type=Path, nargs="+", help="images, or folders of images")
    command.add_argument("--out", type=Path, default=Path("runs/predict"), help="folder for the results")
    command.add_argument("--score", type=float, default=0.25, help="lowest score to report (%(default)s)")
    command.add_argument("--iou", type=float, default=0.7, help="overlap above which a box is dropped (%(default)s)")
    command.add_argument("--max-detections", type=int, default=300, help="most detections an image (%(default)s)")
    command.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    from moe_vision.data import to_image
    from moe_vision.inference import predict
    from moe_vision.models import load_checkpoint

    model = load_checkpoint(options.weights)
    options.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    skipped = 0
    for path in _expand(options.images):
        try:
            image = to_image(path)
        except (ValueError, OSError) as error:
            skipped += 1
            logging.warning("%s; skipped", error)
            continue
        limits = {"score": options.score, "iou": options.iou, "max_detections": options.max_detections}
        found = predict(model, image, **limits)[0]
        name = f"{len(records):04d}-{path.stem}.jpg"  # numbered, since two folders may hold the same name
        records.append({"image": str(path), **_record(found, image, model.class_names, options.out, name)})
    if not records:
        raise ValueError(f"images must hold at least one that can be read, got {skipped} that can't")
    kind = "classes" if model.config.task == "classify" else "detections"
    (options.out / f"{kind}.json").write_text(json.dumps(records, indent=2))
    count = sum(len(record[kind]) for record in records)
    print(f"{count} {kind} in {len(records)} images, {skipped} skipped; written to {options.out}")


def _record(found: dict[str, Any], image: Any, names: Sequence[str], out: Path, picture: str) -> dict[str, Any]:
    """Return what the JSON says of an image; where boxes were found, draw them into a picture."""
    if "boxes" not in found:
        return {"classes": _describe_classes(found, names)}
    from moe_vision.visualize import draw_detections, save_picture

    detections = _describe(found, names)
    save_picture(draw_detections(image, found, names), out / picture)
    return {"picture": picture, "detections": detections}


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert", help="turn a released file of weights into a checkpoint; runs no code of it"
    )
    command.add_argument("source", type=Path, help="a released .pt, or a state_dict in .pt or .safetensors")
    command.add_argument("out", type=Path, help="checkpoint to write, ending in .safetensors")
    command.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    from moe_vision.models import load_official, save_checkpoint

    model, report = load_official(options.source)
    save_checkpoint(model, options.out)
    print(f"{report}\nWritten to {options.out}")


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, required=True, help="Pascal VOC folder with Annotations, JPEGImages and ImageSets/Main"
    )


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the images in them."""
    return [file for path in paths for file in (_images_in(path) if path.is_dir() else [path])]


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _describe(found: dict[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    records: list[dict[str, Any]] = [
        {"class": class_names[label], "score": round(score, 4), "box": [round(side, 2) for side in box]}
        for label, score, box in rows
    ]
    if "masks" in found:
        from moe_vision.tasks import mask_polygons

        for record, mask in zip(records, found["masks"], strict=True):
            record["polygons"] = [polygon.flatten().tolist() for polygon in mask_polygons(mask)]
    return records


def _describe_classes(found: dict[str, Any], class_names: Sequence[str], most: int = 5) -> list[dict[str, Any]]:
    scores, labels = found["scores"].topk(min(most, len(class_names)))
    rows = zip(labels.tolist(), scores.tolist(), strict=True)
    return [{"class": class_names[label], "score": round(score, 4)} for label, score in rows]


def _print_metrics(metrics: dict[str, Any]) -> None:
    print(f"mAP 50:95  {metrics['map']:.4f}\nmAP 50     {metrics['map50']:.4f}")
    for name, value in metrics["class_map"].items():
        print(f"  {name:<20} {value:.4f}")
    for layer, shares in metrics["experts"].items():
        print(f"  {layer:<20} experts {' '.join(f'{share:.0%}' for share in shares)}")


def _fail(message: str) -> int:
    print(f"moe-vision: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
