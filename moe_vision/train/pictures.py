# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run and of its evaluation.

No picture stops a run that has trained for hours: what can be drawn is, and of the rest a warning tells why not.
"""

import json
import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from faster_coco_eval.core import mask as mask_functions
from torch import Tensor

from moe_vision import visualize
from moe_vision.data import ClassificationSource, DetectionSource
from moe_vision.train.confusion import IOU, SCORE, confusion_of_images, confusion_of_objects
from moe_vision.train.metrics import precision_curves
from moe_vision.visualize import comparison_sheet, save_picture

SHOWN = 8  # images on a sheet of predictions

Objects = list[dict[str, Any]]


def draw_run(out: Path) -> None:
    """Draw from the log of a run ``training.png``, its losses and metrics, and ``experts.png``, their usage.

    Args:
        out: Folder of the run, with its ``log.jsonl``.

    Examples:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from moe_vision.train.pictures import draw_run
        >>> line = {"epoch": 1, "loss": {"box": 5.0}, "experts": {"stage2": [0.4, 0.6]}}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = Path(out, "log.jsonl").write_text(json.dumps(line))
        ...     draw_run(Path(out))
        ...     sorted(path.name for path in Path(out).glob("*.png"))
        ['experts.png', 'training.png']
    """
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    _plot(out / "training.png", lambda path: visualize.plot_training(log, path))
    if log[-1]["experts"]:
        _plot(out / "experts.png", lambda path: visualize.plot_expert_usage(log, path))


def draw_detection(source: DetectionSource, truths: Objects, found: Objects, out: Path, *, masks: bool) -> None:
    """Draw ``precision-recall.png``, ``confusion.png`` and ``predictions.jpg``, some images with truth and detections.

    Args:
        source: The images and the names of the classes.
        truths: For each image ``boxes``, ``labels`` and, for masks, ``rles``, as for
            `moe_vision.train.metrics.coco_metrics`.
        found: For each image the same and ``scores``.
        out: Folder for the pictures; made if missing.
        masks: Tell objects apart by their masks, not their boxes.
    """
    names = source.classes

    def precision_recall(path: Path) -> None:
        curves = {"boxes": precision_curves(truths, found, names)}
        if masks:
            curves["masks"] = precision_curves(truths, found, names, masks=True)
        visualize.plot_precision_recall(curves, path)

    def confusion(path: Path) -> None:
        counts = confusion_of_objects(truths, found, len(names), masks=masks)
        title = f"{'masks' if masks else 'boxes'} of a score of {SCORE} or more, matched at an IoU of {IOU}"
        visualize.plot_confusion(counts, [*names, "background"], path, title=title)

    def predictions(path: Path) -> None:
        shown = _evenly(len(source))
        images = [source[index][0].as_subclass(Tensor) for index in shown]
        known, detected = ([_drawable(objects[index]) for index in shown] for objects in (truths, found))
        save_picture(comparison_sheet(images, known, detected, names, size=320), path)

    _plot(out / "precision-recall.png", precision_recall)
    _plot(out / "confusion.png", confusion)
    _attempt(out / "predictions.jpg", predictions)


def draw_classification(source: ClassificationSource, scores: Tensor, labels: Tensor, out: Path) -> None:
    """Draw ``confusion.png`` and ``predictions.jpg``, some images with the right and the predicted class.

    Args:
        source: The images and the names of the classes.
        scores: Logits of the classes.
        labels: The right classes, int64.
        out: Folder for the pictures; made if missing.

    Shape:
        - scores: (N, num_classes)
        - labels: (N,)
    """

    def predictions(path: Path) -> None:
        shown = _evenly(len(source))
        images = [source[index][0].as_subclass(Tensor) for index in shown]
        best = scores[shown].softmax(dim=1).max(dim=1)
        truths = [_framed(image, {"labels": label}) for image, label in zip(images, labels[shown], strict=True)]
        found = [
            _framed(image, {"labels": label, "scores": score})
            for image, score, label in zip(images, *best, strict=True)
        ]
        save_picture(comparison_sheet(images, truths, found, source.classes, size=320), path)

    def confusion(path: Path) -> None:
        visualize.plot_confusion(confusion_of_images(scores, labels), source.classes, path, title="images")

    _plot(out / "confusion.png", confusion)
    _attempt(out / "predictions.jpg", predictions)


def _attempt(path: Path, draw: Callable[[Path], None]) -> None:
    """Draw a picture, or say why it can't be, and leave none of an earlier run in its place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        draw(path)
    except Exception as error:
        logging.warning("%s was not drawn: %s", path.name, error)


def _plot(path: Path, draw: Callable[[Path], None]) -> None:
    if _has_matplotlib():
        _attempt(path, draw)


@cache
def _has_matplotlib() -> bool:
    """Say once what is missing."""
    found = find_spec("matplotlib") is not None
    if not found:
        logging.warning("no plots, which need matplotlib; pip install 'moe-vision[visualize]'")
    return found


def _evenly(count: int) -> list[int]:
    shown = min(SHOWN, count)
    return [place * count // shown for place in range(shown)]


def _drawable(objects: dict[str, Any]) -> dict[str, Tensor]:
    """Return the objects to show, with masks in place of run lengths."""
    kept = objects["scores"] >= SCORE if "scores" in objects else torch.ones(len(objects["labels"]), dtype=torch.bool)
    drawable: dict[str, Tensor] = {
        name: objects[name][kept] for name in ("boxes", "labels", "scores") if name in objects
    }
    rles = [rle for rle, keep in zip(objects.get("rles", []), kept.tolist(), strict=False) if keep]
    if rles:
        drawable["masks"] = torch.from_numpy(mask_functions.decode(rles)).permute(2, 0, 1).bool()
    return drawable


def _framed(image: Tensor, of_image: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make of what is known of an image an object that fills it."""
    height, width = image.shape[-2:]
    box = torch.tensor([[0.0, 0.0, width - 1.0, height - 1.0]])
    return {"boxes": box, **{name: value[None] for name, value in of_image.items()}}
