# SPDX-License-Identifier: Apache-2.0
"""Our checkpoints as pretrained weights of the timm models."""

from pathlib import Path

import pytest
import timm
import torch

from moe_vision import create_model
from moe_vision.models import load_checkpoint, save_checkpoint
from moe_vision.models.timm_model import YOLOMasterClassifier


def make(**arguments: object) -> YOLOMasterClassifier:
    return timm.create_model("yolo_master_n", pretrained=True, **{"num_classes": 10, **arguments})


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("run") / "last.safetensors"
    save_checkpoint(create_model("yolo_master_n", num_classes=2), path)
    return path


@pytest.mark.parametrize("num_classes", [0, 10, 1000])
def test_loads_the_backbone_of_a_detector(detector: Path, num_classes: int) -> None:
    overlay, images = {"file": str(detector)}, torch.rand(1, 3, 64, 64)
    model = make(pretrained_cfg_overlay=overlay, num_classes=num_classes).eval()
    expected = load_checkpoint(detector).backbone(images)[-1]
    assert torch.equal(model.forward_features(images), expected)


def test_loads_the_features_of_a_detector(detector: Path) -> None:
    overlay, images = {"file": str(detector)}, torch.rand(1, 3, 64, 64)
    arguments = {"features_only": True, "out_indices": (2, 3, 4), "pretrained_cfg_overlay": overlay}
    model = timm.create_model("yolo_master_n", pretrained=True, **arguments).eval()
    expected = load_checkpoint(detector).backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(model(images), expected, strict=True))


def test_adapts_the_stem_of_a_detector(detector: Path) -> None:
    model = make(pretrained_cfg_overlay={"file": str(detector)}, in_chans=1)
    weight = load_checkpoint(detector).backbone.stem.conv.weight
    torch.testing.assert_close(model.backbone.stem.conv.weight, weight.sum(dim=1, keepdim=True))


def test_loads_a_classifier_whole(tmp_path: Path) -> None:
    ours = create_model("yolo_master_n", task="classify", num_classes=10).eval()
    save_checkpoint(ours, tmp_path / "best.safetensors")
    images, overlay = torch.rand(1, 3, 64, 64), {"file": str(tmp_path / "best.safetensors"), "num_classes": 10}
    model = timm.create_model("yolo_master_n", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(model(images), ours(images))
    other = make(num_classes=3, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(other.forward_features(images), ours.backbone(images)[-1])


@pytest.mark.parametrize(
    "arguments", [{"placement": "none"}, {"variant": "esmoe"}, {"features_only": True, "depth": 1.0}]
)
def test_a_detector_of_another_architecture_is_refused(detector: Path, arguments: dict[str, object]) -> None:
    arguments = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(detector)}, **arguments}
    with pytest.raises(ValueError, match=r"backbone must be the model's, but .* backbone\.stage2\.(moe|blocks)\."):
        timm.create_model("yolo_master_n", **arguments)


def test_there_are_no_weights_to_download() -> None:
    assert not timm.is_model_pretrained("yolo_master_n")
    with pytest.raises(RuntimeError, match="No pretrained weights exist for yolo_master_n"):
        make()
