# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: all that can be drawn are, and no run ends in an error because of one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from moe_vision import create_model, visualize
from moe_vision.data import ShapeScenes
from moe_vision.data.samples import make_sample
from moe_vision.train import Trainer, TrainSettings, evaluate, pictures
from tests.models.reference_detector import busy_detector, busy_segmenter
from tests.train.test_tasks import Textures

SCENES = ShapeScenes(4, 64)
SHEET = ["predictions.jpg"]
PLOTS = ["confusion.png", "precision-recall.png"]


class Labelled:
    """Scenes with other objects: a box and a mask in the middle for each label."""

    def __init__(self, count: int, labels: list[int], classes: tuple[str, ...] = SCENES.classes) -> None:
        self.count, self.labels, self.classes = count, labels, classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, number = SCENES[index][0].as_subclass(Tensor), len(self.labels)
        masks = torch.zeros(number, 64, 64, dtype=torch.bool)
        masks[:, 20:40, 10:30] = True
        boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]]).repeat(number, 1)
        return make_sample(image, boxes, torch.tensor(self.labels, dtype=torch.int64), index, masks)


def names(folder: Path, pattern: str = "*.[jp][pn]g") -> list[str]:
    """Return the names of the pictures, all of which must open."""
    found = sorted(folder.glob(pattern))
    for path in found:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100
    return [path.name for path in found]


def fit(out: Path, val_data: Any, epochs: int = 1) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=4, class_names=SCENES.classes)
    settings = TrainSettings(epochs=epochs, image_size=64, batch_size=2, num_workers=0)
    return Trainer(model, SCENES, val_data, out, settings).fit()


def test_no_object_to_find(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "precision-recall.png").write_text("of an earlier run")
    fit(tmp_path, Labelled(2, []))
    assert names(tmp_path) == ["confusion.png", "experts.png", "predictions.jpg", "training.png"]
    (message,) = caplog.messages
    assert message == (
        "precision-recall.png was not drawn: curves must have a class for boxes, got none: there are no objects"
    )
    assert (tmp_path / "last.safetensors").is_file()


@pytest.mark.parametrize(("count", "labels"), [(3, [0, 2]), (1, [1])], ids=["absent classes", "one image"])
def test_little_to_find(tmp_path: Path, count: int, labels: list[int], caplog: pytest.LogCaptureFixture) -> None:
    metrics = fit(tmp_path, Labelled(count, labels))
    assert names(tmp_path) == sorted([*PLOTS, *SHEET, "experts.png", "training.png"])
    assert not caplog.messages
    assert list(metrics["class_objects"].values()) == [count * (label in labels) for label in range(4)]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_many_detections(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = busy_detector() if task == "detect" else busy_segmenter()
    source = Labelled(2, [3, 5], model.class_names)
    plain, drawn = (evaluate(model, source, image_size=64, pictures=out) for out in (None, tmp_path / "new"))
    assert plain == drawn
    assert names(tmp_path / "new") == sorted([*PLOTS, *SHEET])
    assert not caplog.messages
    with Image.open(tmp_path / "new" / "precision-recall.png") as image:
        panels = image.width / image.height
    assert panels > 2 if task == "segment" else panels < 2


def test_masks_of_likely_detections_alone_are_shown() -> None:
    rles = [pictures.mask_functions.encode(torch.eye(4).numpy().astype("uint8", order="F")) for _ in range(2)]
    found = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.tensor([0, 1]),
        "scores": torch.tensor([0.1, 0.9]),
        "rles": rles,
    }
    shown = pictures._drawable(found)
    assert shown["labels"].tolist() == [1]
    assert torch.equal(shown["masks"], torch.eye(4, dtype=torch.bool)[None])


def test_classification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("yolo_master_n", task="classify", num_classes=2, class_names=Textures.classes)
    evaluate(model, Textures(), image_size=64, pictures=tmp_path)
    assert names(tmp_path) == ["confusion.png", "predictions.jpg"]
    assert not caplog.messages


def test_a_network_without_experts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = create_model("yolo_master_n", num_classes=4, class_names=SCENES.classes, placement="none")
    Trainer(model, SCENES, None, tmp_path, TrainSettings(epochs=1, image_size=64, num_workers=0)).fit()
    assert names(tmp_path) == ["training.png"]
    assert not caplog.messages


def test_a_picture_that_fails_stops_neither_the_run_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pictures, "save_picture", full)
    monkeypatch.setattr(visualize, "plot_training", full, raising=False)
    assert fit(tmp_path, SCENES)["map"] >= 0
    assert names(tmp_path) == sorted([*PLOTS, "experts.png"])
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-1"]
    assert [message.split(" was")[0] for message in caplog.messages] == ["predictions.jpg", "training.png"]


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    pictures._has_matplotlib.cache_clear()
    fit(tmp_path, SCENES)
    pictures._has_matplotlib.cache_clear()
    assert names(tmp_path) == SHEET
    assert [message for message in caplog.messages if "matplotlib" in message] == caplog.messages
    assert len(caplog.messages) == 1
