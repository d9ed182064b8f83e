# SPDX-License-Identifier: Apache-2.0
"""``moe-vision predict``: detect, segment or classify images."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_vision.cli.options import load_network


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    command = commands.add_parser("predict", help="detect, segment or classify images; writes pictures and a JSON")
    command.add_argument("weights", type=Path, help="a checkpoint, or an ONNX file of one")
    command.add_argument("images", type=Path, nargs="+", help="images, or folders of images")
    command.add_argument("--out", type=Path, default=Path("runs/predict"), help="folder for the results (%(default)s)")
    command.add_argument("--score", type=float, default=0.25, help="lowest score to report (%(default)s)")
    command.add_argument("--iou", type=float, default=0.7, help="overlap above which a box is dropped (%(default)s)")
    command.add_argument("--max-detections", type=int, default=300, help="most detections an image (%(default)s)")
    return command  # type: ignore[no-any-return]


def run(options: argparse.Namespace) -> None:
    """Predict on every image, and write the JSON and the pictures."""
    from moe_vision.data import to_image
    from moe_vision.inference import predict
    from moe_vision.layers import fuse
    from moe_vision.models import YOLOMaster

    model = load_network(options.weights)
    if isinstance(model, YOLOMaster):
        model = fuse(model)
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


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the images in them."""
    return [file for path in paths for file in (images_in(path) if path.is_dir() else [path])]


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, not of its subfolders."""
    from moe_vision.data.images import IMAGE_SUFFIXES

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
