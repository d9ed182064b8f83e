# SPDX-License-Identifier: Apache-2.0
"""Which settings a task uses: they reach its samples, and the others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.train import Trainer, TrainSettings
from moe_vision.train.recipes import CLASSES, OBJECTS, RECIPES
from tests.data.painted import PaintedSource


class Noise:
    """Five images to classify: a last batch of one, if batches are of two."""

    classes = ("even", "odd")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 70, 80), generator=generator, dtype=torch.uint8)
        return image, {"label": index % 2, "image_id": index}


@pytest.mark.parametrize(
    ("task", "name", "value", "default"),
    [
        ("detect", "auto_augment", "rand", "trivial"),
        ("detect", "erasing", 0.0, 0.25),
        ("segment", "cutmix", 0.5, 0.0),
        ("classify", "mosaic", 0.5, 1.0),
        ("classify", "close_mosaic", 3, 10),
        ("classify", "copy_paste", 0.1, 0.0),
        ("classify", "rotate", 5.0, 0.0),
        ("classify", "shear", 5.0, 0.0),
    ],
)
def test_a_setting_without_meaning_is_refused(task: str, name: str, value: Any, default: Any) -> None:
    source = Noise() if task == "classify" else PaintedSource(masked=True)
    RECIPES[task].pipeline(source, TrainSettings(image_size=64))
    message = f"{name} must be left at {default} to {task}, which has no use for it, got {value}"
    with pytest.raises(ValueError, match=message):
        RECIPES[task].pipeline(source, TrainSettings(image_size=64, **{name: value}))


CHANGED = {
    "mosaic": 0.0, "close_mosaic": 100, "mixup": 1.0, "copy_paste": 1.0, "rotate": 30.0, "shear": 20.0, "hflip": 1.0,
    "vflip": 1.0, "auto_augment": "rand", "erasing": 1.0, "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "name"),
    [*(("segment", name) for name in OBJECTS), *(("classify", name) for name in CLASSES)],
)
def test_a_setting_reaches_the_samples(task: str, name: str) -> None:
    source = Noise() if task == "classify" else PaintedSource(masked=True)
    plain, changed = (
        RECIPES[task].pipeline(source, TrainSettings(image_size=64, **options))
        for options in ({}, {name: CHANGED[name]})
    )

    def images(pipeline: Any) -> Tensor:
        return torch.stack([pipeline[index][0] for index in range(5)])

    assert torch.equal(images(plain), images(plain))
    assert not torch.equal(images(plain), images(changed))


def fit(out: Path, task: str, data: Any, **settings: Any) -> dict[str, float]:
    torch.manual_seed(0)
    model = create_model("yolo_master_n", task=task, num_classes=len(data.classes), placement="none")
    small = {"epochs": 1, "image_size": 64, "batch_size": 2, "num_workers": 0, "close_mosaic": 0, **settings}
    Trainer(model, data, None, out, TrainSettings(**small)).fit()
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"]


def test_training_with_every_augmentation(tmp_path: Path) -> None:
    objects = {"mixup": 0.5, "rotate": 10.0, "shear": 5.0, "vflip": 0.5}
    assert fit(tmp_path / "a", "segment", PaintedSource(masked=True), copy_paste=0.5, **objects)["mask"] > 0
    assert fit(tmp_path / "b", "detect", ShapeScenes(4, 64), **objects)["box"] > 0
    mixed = fit(tmp_path / "c", "classify", Noise(), close_mosaic=10, mixup=1.0, cutmix=1.0, auto_augment="rand")
    assert mixed["class"] != fit(tmp_path / "d", "classify", Noise(), close_mosaic=10, auto_augment="rand")["class"]
