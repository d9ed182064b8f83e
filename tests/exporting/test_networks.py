# SPDX-License-Identifier: Apache-2.0
"""Exported networks: from the command line to the boxes, and every task, variant and scale through the check."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import nn

from moe_vision import ESMoE, create_model, export
from moe_vision.cli import main
from moe_vision.exporting import Suppression
from moe_vision.models import save_checkpoint
from moe_vision.tasks.postprocess import suppress
from tests.exporting.files import alive, assert_every_expert_checked, run
from tests.models.reference_detector import busy_detector, busy_segmenter

pytestmark = pytest.mark.export


def test_detector_with_suppression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights, path = busy_detector(), tmp_path / "net.safetensors", tmp_path / "net.onnx"
    model.class_names = tuple(f"class {index}" for index in range(80))
    save_checkpoint(model, weights)
    limits = ["--score", "0.5", "--iou", "0.5", "--max-detections", "20"]
    assert main(["export", str(weights), "--suppress", *limits]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{path}: {path.stat().st_size / 1e6:.1f} MB"
    assert [line.split()[:5] for line in printed[2:6]] == [
        [f"backbone.stage{stage}.moe", "index", "2", "of", "3"] for stage in (2, 3, 4, 5)
    ]
    assert len(printed) == 7 + 8  # two sizes, one image and five, experts chosen and forced

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

    about = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(about["class_names"])[79] == "class 79"
    facts = {"task": "detect", "image_size": 64, "strides": [8, 16, 32], "variant": "custom", "sparse": "index"}
    assert {key: json.loads(about[key]) for key in facts} == facts
    assert about["format"] == "moe_vision-onnx-1"
    assert json.loads(about["input"])["range"] == [0, 1]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no trace of where it was made


@pytest.mark.slow
def test_segmenter_with_suppression(tmp_path: Path) -> None:
    model, path = busy_segmenter(), tmp_path / "net.onnx"
    export(model, path, suppress=Suppression(score=0.5))
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("scale", "task", "variant"),  # each scale with each task and with each variant, each task with two variants
    [
        ("n", "detect", "paper"),
        ("n", "segment", "esmoe"),
        ("n", "classify", "v0_1"),
        ("s", "detect", "v0_1"),
        ("s", "segment", "paper"),
        ("s", "classify", "esmoe"),
    ],
)
def test_networks(scale: str, task: str, variant: str, tmp_path: Path) -> None:
    model = alive(create_model(f"yolo_master_{scale}", task=task, variant=variant, num_classes=7, image_size=64))
    for sparse in ("index", "dense"):
        report = export(model, tmp_path / "net.onnx", sparse=sparse, half=sparse == "dense")
        assert_every_expert_checked(report)
        about = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
        assert (json.loads(about["task"]), json.loads(about["variant"])) == (task, variant)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backbone", ["convnext_atto", "efficientnet_b0"])
def test_other_backbones(backbone: str, tmp_path: Path) -> None:
    model = alive(create_model("yolo_master_n", backbone=backbone, num_classes=3, image_size=64))
    assert_every_expert_checked(export(model, tmp_path / "net.onnx"))


@pytest.mark.slow
def test_swapped_convnext(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=5)
    for stage in model.stages:
        for block in stage.blocks:
            convolution: Any = block.conv_dw
            block.conv_dw = ESMoE(convolution.in_channels, expert="depthwise", bias=True, kernel_sizes=(3, 5, 7, 9))
    model.eval()
    for name, module in model.named_modules():
        if isinstance(module, ESMoE):
            nn.init.normal_(module.router.fc2.weight)
            assert name.endswith("conv_dw")
    report = export(model, tmp_path / "net.onnx", image_size=64)
    assert_every_expert_checked(report)
    assert len(report.blocks) == 12
