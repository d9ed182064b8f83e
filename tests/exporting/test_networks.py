# SPDX-License-Identifier: Apache-2.0
"""Exported networks: from the command line to the boxes, and every task, variant and scale through the check."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from moe_vision import ESMoE, create_model, export, predict, swap
from moe_vision.cli import main
from moe_vision.exporting import Suppression
from moe_vision.models import ExportedNetwork, YOLOMaster, save_checkpoint
from moe_vision.runtime import Runner
from moe_vision.tasks.postprocess import suppress
from tests.exporting.files import alive, assert_every_expert_checked, run
from tests.models.reference_detector import busy_detector, busy_segmenter

pytestmark = [pytest.mark.export, pytest.mark.slow]


class Exported(NamedTuple):
    """A network, its checkpoint and its file."""

    model: YOLOMaster
    weights: Path
    path: Path
    printed: list[str]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A detector whose file suppresses boxes; made once, since it takes the longest of all that is tested here."""
    model, folder = busy_detector(), tmp_path_factory.mktemp("detector")
    model.class_names = tuple(f"class {index}" for index in range(80))
    weights, path = folder / "net.safetensors", folder / "net.onnx"
    save_checkpoint(model, weights)
    limits = ["--score", "0.5", "--iou", "0.5", "--max-detections", "20"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["export", str(weights), "--suppress", *limits]) == 0
    return Exported(model, weights, path, printed.getvalue().splitlines())


def test_what_the_command_prints(detector: Exported) -> None:
    printed, path = detector.printed, detector.path
    assert printed[0] == f"{path}: {path.stat().st_size / 1e6:.1f} MB"
    assert [line.split()[:5] for line in printed[2:6]] == [
        [f"backbone.stage{stage}.moe", "index", "2", "of", "3"] for stage in (2, 3, 4, 5)
    ]
    assert len(printed) == 7 + 8  # two sizes, one image and five, experts chosen and forced


def test_suppression(detector: Exported) -> None:
    model, path = detector.model, detector.path
    images = torch.rand(2, 3, 64, 96)
    actual = run(path, images)
    assert list(actual) == ["detected_images", "detected_boxes", "detected_scores", "detected_labels"]
    with torch.no_grad():
        expected = suppress(model(images), score=0.5, iou=0.5, max_detections=10_000)
    for image, one in enumerate(expected):
        # By label, then score; at most 20 of a label.
        order = [i for label in range(80) for i in torch.nonzero(one["labels"] == label)[:20, 0].tolist()]
        assert len(one["boxes"]) > len(order) > 100
        mine = actual["detected_images"] == image
        assert actual["detected_labels"][mine].tolist() == one["labels"][order].tolist()
        torch.testing.assert_close(actual["detected_scores"][mine], one["scores"][order], rtol=0, atol=1e-5)
        # Where two scores are equal but for rounding, their boxes may change places.
        labels = 1e4 * one["labels"][order, None]
        ours, theirs = (
            torch.cat([labels, boxes], 1) for boxes in (actual["detected_boxes"][mine], one["boxes"][order])
        )
        distances = (ours[:, None] - theirs).abs().amax(dim=2)
        assert distances.min(dim=1).values.max() < 1e-2
        assert distances.min(dim=0).values.max() < 1e-2


def test_metadata(detector: Exported) -> None:
    path = detector.path
    about = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(about["class_names"])[79] == "class 79"
    facts = {"task": "detect", "image_size": 64, "strides": [8, 16, 32], "variant": "custom", "sparse": "index"}
    assert {key: json.loads(about[key]) for key in facts} == facts
    assert about["format"] == "moe_vision-onnx-1"
    assert json.loads(about["input"])["range"] == [0, 1]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no trace of where it was made


def photos(folder: Path) -> list[Path]:
    """Pictures of several shapes, among them one so flat that most of the square is border."""
    paths = []
    for seed, shape in enumerate([(40, 60, 3), (64, 64, 3), (9, 100, 3)]):
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        paths.append(folder / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def assert_same_results(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        assert len(ours["labels"]) > 3
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(torch.from_numpy(ours["boxes"]), theirs["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(torch.from_numpy(ours["scores"]), theirs["scores"], rtol=0, atol=1e-5)
        if "masks" in theirs:
            assert (ours["masks"] != theirs["masks"].numpy()).mean() < 1e-4
            assert ours["masks"].any()


def test_a_file_finds_what_the_weights_find(detector: Exported, tmp_path: Path) -> None:
    images, limits = photos(tmp_path), {"score": 0.5, "iou": 0.5, "max_detections": 20}
    runner = Runner(detector.path)
    assert_same_results(runner.predict(images, **limits), predict(detector.model, images, **limits))
    options = ["--score", "0.5", "--iou", "0.5", "--max-detections", "20"]
    for name, network in (("weights", detector.weights), ("file", detector.path)):
        assert main(["predict", str(network), *map(str, images), "--out", str(tmp_path / name), *options]) == 0
    folders = [tmp_path / "weights", tmp_path / "file"]
    of_weights, of_file = (json.loads((folder / "detections.json").read_text()) for folder in folders)
    for ours, theirs in zip(of_file, of_weights, strict=True):
        assert (ours["image"], ours["picture"]) == (theirs["image"], theirs["picture"])
        assert [one["class"] for one in ours["detections"]] == [one["class"] for one in theirs["detections"]]
        boxes = [[one["box"] for one in record["detections"]] for record in (ours, theirs)]
        assert np.allclose(*boxes, atol=0.02)
        pictures = [np.asarray(Image.open(folder / ours["picture"]), int) for folder in folders]
        assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_segmenter_with_suppression(tmp_path: Path) -> None:
    model, path = busy_segmenter(), tmp_path / "net.onnx"
    export(model, path, suppress=Suppression(score=0.5))
    images, limits = photos(tmp_path), {"score": 0.5, "iou": 0.7}
    assert_same_results(Runner(path).predict(images, **limits), predict(model, images, **limits))
    for ours, theirs in zip(predict(ExportedNetwork(path), images), predict(model, images, **limits), strict=True):
        assert (ours["masks"] != theirs["masks"]).float().mean() < 1e-4
    images = torch.rand(1, 3, 64, 64)
    actual = run(path, images)
    with torch.no_grad():
        output = model(images)
    assert actual["detected_coefficients"].shape == (len(actual["detected_boxes"]), 32)
    # A box is found again among those before suppression, with its coefficients.
    for box, coefficients in zip(actual["detected_boxes"][:9], actual["detected_coefficients"], strict=False):
        point = (output.boxes[0] - box).abs().sum(dim=1).argmin()
        torch.testing.assert_close(coefficients, output.coefficients[0, point], rtol=0, atol=1e-4)
    torch.testing.assert_close(actual["prototypes"], output.prototypes, rtol=0, atol=1e-4)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    # With the detector above: every task, variant, form and precision, and a second scale.
    ("scale", "task", "variant", "settings"),
    [
        ("n", "segment", "esmoe", {"half": True}),
        ("n", "classify", "paper", {}),
        ("s", "detect", "v0_1", {"sparse": "dense", "half": True}),
    ],
)
def test_networks(scale: str, task: str, variant: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = alive(create_model(f"yolo_master_{scale}", task=task, variant=variant, num_classes=7, image_size=64))
    assert_every_expert_checked(export(model, tmp_path / "net.onnx", **settings))
    about = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert (json.loads(about["task"]), json.loads(about["variant"])) == (task, variant)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ending", ["xml", "pt2"])
def test_other_formats(ending: str, tmp_path: Path) -> None:
    model = alive(create_model("yolo_master_n", num_classes=7, image_size=64))
    assert_every_expert_checked(export(model, tmp_path / f"net.{ending}"))


@pytest.mark.timeout(600)
def test_another_backbone(tmp_path: Path) -> None:
    model = alive(create_model("yolo_master_n", backbone="efficientnet_b0", num_classes=3, image_size=64))
    assert_every_expert_checked(export(model, tmp_path / "net.onnx"))


def test_swapped_convnext(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=5).eval()
    swap(model, kernel_sizes=(3, 5, 7, 9), perturb=1.0, every=3, example=torch.rand(1, 3, 64, 64))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # branches start at a millionth
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, ESMoE):
            nn.init.normal_(module.router.fc2.weight)
    report = export(model, tmp_path / "net.onnx", image_size=64)
    assert_every_expert_checked(report)
    assert len(report.blocks) == 4
