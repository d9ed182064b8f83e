# SPDX-License-Identifier: Apache-2.0
"""The demo: a sparse detector learns generated scenes in minutes, and shows what it finds and whom it asks."""

from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import Tensor

from moe_vision.data import ShapeScenes
from moe_vision.diagnostics import RoutingMonitor
from moe_vision.inference import predict
from moe_vision.models import YOLOMaster, create_model, load_checkpoint
from moe_vision.train import Trainer, TrainSettings
from moe_vision.visualize import comparison_sheet, plot_routing, save_picture

IMAGE_SIZE = 160


def run_demo(
    out: str | Path = "moe-vision-demo", *, scenes: int = 512, epochs: int = 11, seed: int = 0
) -> dict[str, Any]:
    """Train on generated scenes, evaluate on others, and draw what was found and which experts the scenes chose.

    Args:
        out: Folder for the results; made if missing.
        scenes: Number of scenes to learn from.
        epochs: Passes over them.
        seed: Seed of scenes, weights and order.

    Returns:
        The metrics on the held-out scenes, as `moe_vision.train.evaluate` returns them, and ``files``: paths of the
        pictures, the log and the weights.

    Examples:
        >>> import tempfile
        >>> from moe_vision.demo import run_demo
        >>> with tempfile.TemporaryDirectory() as out:
        ...     sorted(path.name for path in run_demo(out, scenes=16, epochs=1)["files"])
        ['detections.jpg', 'last.safetensors', 'log.jsonl', 'routing.png', 'training.png']
    """
    out = Path(out)
    learnt, held_out = ShapeScenes(scenes, IMAGE_SIZE, seed=seed), ShapeScenes(128, IMAGE_SIZE, seed=seed + 1)
    settings = TrainSettings(
        epochs=epochs,
        image_size=IMAGE_SIZE,
        batch_size=8,
        lr=4e-3,  # more than the default: few steps on easy scenes
        mosaic=0.0,
        warmup_epochs=1,
        eval_every=2,
        num_workers=0,
        seed=seed,
    )
    set_seed(seed)
    model = create_model("yolo_master_n", num_classes=len(learnt.classes), class_names=learnt.classes)
    metrics = Trainer(model, learnt, held_out, out, settings).fit()
    trained = load_checkpoint(out / "last.safetensors")
    _draw_detections(trained, held_out, out / "detections.jpg")
    plot_routing(_routing_by_crowd(trained, held_out), out / "routing.png", title="objects in the scene")
    names = ("detections.jpg", "training.png", "routing.png", "log.jsonl", "last.safetensors")
    return {**metrics, "files": [out / name for name in names]}


def _draw_detections(model: YOLOMaster, scenes: ShapeScenes, path: Path) -> None:
    """Draw six scenes, from the emptiest to the most crowded, beside what was found in them."""
    samples: list[tuple[Tensor, dict[str, Tensor]]] = [scenes[index] for index in range(32)]
    samples.sort(key=lambda sample: len(sample[1]["labels"]))
    images, truths = zip(*samples[::6], strict=True)
    found = predict(model, list(images))
    save_picture(comparison_sheet(images, truths, found, model.class_names, size=320), path)


def _routing_by_crowd(model: YOLOMaster, scenes: ShapeScenes) -> dict[str, dict[str, list[float]]]:
    """Return which experts the scenes choose, in groups by their number of objects."""
    with RoutingMonitor(model) as monitor:
        for index in range(len(scenes)):
            image, target = scenes[index]
            monitor.announce([target])
            predict(model, image)
    layers = {name.split(".")[1]: summary.by_objects for name, summary in monitor.summary().items()}
    crowds = next(iter(layers.values()))
    return {crowd: {layer: groups[crowd].shares for layer, groups in layers.items()} for crowd in crowds}
