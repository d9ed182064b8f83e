# SPDX-License-Identifier: Apache-2.0
"""The detector as a whole: what it takes, what it returns, and what it remembers."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from moe_vision import ESMoE, create_model
from moe_vision.models import DetectMaps, DetectOutput, YOLOMaster, named_config
from tests.models.reference_detector import reference_detector


@pytest.fixture(scope="module")
def filled() -> YOLOMaster:
    """A detector in eval, with random weights throughout, of which each image selects 2 of 3 experts."""
    return reference_detector(top_k=2)


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (32, 32)])
def test_eval_returns_boxes_and_scores(batch: int, height: int, width: int) -> None:
    model = create_model("yolo_master_n", num_classes=3).eval()
    output = model(torch.rand(batch, 3, height, width))
    count = height * width * (1 / 64 + 1 / 256 + 1 / 1024)
    assert isinstance(output, DetectOutput)
    assert output.boxes.shape == (batch, count, 4)
    assert output.scores.shape == (batch, count, 3)
    assert ((output.scores >= 0) & (output.scores <= 1)).all()
    assert (output.boxes[..., 2:] >= output.boxes[..., :2]).all()


def test_training_returns_raw_maps() -> None:
    maps = create_model("yolo_master_n", num_classes=3).train()(torch.rand(2, 3, 96, 128))
    assert isinstance(maps, DetectMaps)
    assert maps.sides.shape == (2, 252, 4, 16)
    assert maps.boxes.shape == (2, 252, 4)
    assert maps.scores.shape == (2, 252, 3)


def test_full_size() -> None:
    with torch.inference_mode():
        output = create_model("yolo_master_n").eval()(torch.rand(1, 3, 640, 640))
    assert output.boxes.shape == (1, 8400, 4)
    assert output.scores.shape == (1, 8400, 80)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((3, 64, 64), r"shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        ((1, 1, 64, 64), r"shape \(B, 3, H, W\), got \(1, 1, 64, 64\)"),
        ((1, 3, 64, 72), r"multiples of 32, got \(64, 72\)"),
        ((1, 3, 100, 64), r"multiples of 32, got \(100, 64\)"),
    ],
)
def test_bad_images_name_the_rule(shape: tuple[int, ...], rule: str, training: bool) -> None:
    model = create_model("yolo_master_n", num_classes=3).train(training)
    with pytest.raises(ValueError, match=f"images must have .*{rule}"):
        model(torch.rand(shape))


def test_images_are_independent_in_eval(filled: YOLOMaster) -> None:
    # Brightness differs, so that the images choose different experts.
    images = torch.rand(4, 3, 64, 64) * torch.tensor([0.1, 0.4, 0.7, 1.0]).view(4, 1, 1, 1)
    with torch.inference_mode():
        together = filled(images)
        for index in range(4):
            alone = filled(images[index : index + 1])
            torch.testing.assert_close(together.boxes[index], alone.boxes[0], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(together.scores[index], alone.scores[0], rtol=1e-4, atol=1e-5)


def test_a_spoilt_image_touches_itself_alone(filled: YOLOMaster) -> None:
    images = torch.rand(3, 3, 64, 64)
    spoilt = images.clone()
    spoilt[1, 0, 5, 5] = float("nan")
    with torch.inference_mode():
        expected, output = filled(images), filled(spoilt)
    for index in (0, 2):
        torch.testing.assert_close(output.boxes[index], expected.boxes[index], rtol=1e-4, atol=1e-3)
    assert output.boxes[1].isnan().any()


def test_executors_agree_on_the_whole_detector(filled: YOLOMaster) -> None:
    model, images = copy.deepcopy(filled), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        for module in model.modules():
            if isinstance(module, ESMoE):
                module.dispatch = "dense"
        dense = model(images)
    torch.testing.assert_close(dense.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dense.scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_after_a_training_forward(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    model, images = create_model("yolo_master_n", num_classes=3).train(), torch.rand(2, 3, 64, 64)
    model(images)
    twin = twin_of(model)
    assert twin.config == model.config
    assert torch.equal(twin.eval()(images).boxes, model.eval()(images).boxes)


def test_half_precision_under_autocast_returns_fp32_outputs(filled: YOLOMaster) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = filled(torch.rand(1, 3, 64, 64))
    assert output.boxes.dtype == output.scores.dtype == torch.float32


def test_class_names_and_image_size() -> None:
    config = named_config("yolo_master_n", num_classes=2)
    assert YOLOMaster(config).class_names == ("0", "1")
    assert YOLOMaster(config, ["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="class_names must name num_classes=2 classes, got 3"):
        YOLOMaster(config, ["cat", "dog", "cow"])
    for size in (0, -32, 100):
        with pytest.raises(ValueError, match=f"image_size must be a multiple of 32, got {size}"):
            YOLOMaster(config, image_size=size)
