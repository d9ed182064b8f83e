# SPDX-License-Identifier: Apache-2.0
"""Prediction with an exported file: what the weights give, and without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from moe_vision.data import eval_transform
from moe_vision.data.transforms import classify_transform
from moe_vision.runtime import Runner
from moe_vision.runtime.images import centre_crop, letterboxed
from moe_vision.runtime.suppression import suppress


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with smooth parts and edges."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (90, 31), (64, 64), (200, 9), (7, 20)])
def test_images_are_fitted_as_by_the_transforms(height: int, width: int) -> None:
    image = pixels(height, width)
    for ours, theirs in (
        (letterboxed(image, 64, 114), eval_transform(64)),
        (centre_crop(image, 64), classify_transform(64)),
    ):
        expected = 255 * theirs(torch.tensor(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 1.01  # rounding of the last bit
        assert np.abs(ours - expected).mean() < 0.05


@pytest.mark.parametrize("iou", [0.0, 0.4, 1.0])
def test_suppression_is_that_of_torchvision(iou: float) -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 50, (300, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.uniform(1, 25, (300, 2)).astype(np.float32)], axis=1)
    scores = generator.uniform(0, 1, (300, 3)).astype(np.float32)
    points, labels = (torch.from_numpy(part) for part in np.nonzero(scores > 0.3))
    values = torch.from_numpy(scores)[points, labels]
    kept = batched_nms(torch.from_numpy(boxes)[points], values, labels, iou)
    ours = suppress(boxes, scores, 0.3, iou, most=10_000)
    assert len(kept) > 20
    for part, expected in zip(ours, (points[kept], values[kept], labels[kept]), strict=True):
        assert part.tolist() == expected.tolist()
    assert suppress(boxes, scores, 0.3, iou, most=7)[0].tolist() == points[kept][:7].tolist()


def test_loads_no_torch() -> None:
    code = "import sys, moe_vision.runtime; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert {"moe_vision", "numpy", "PIL"} <= loaded
    assert not {"torch", "torchvision", "timm", "einops", "onnx"} & loaded


def save(path: Path, **metadata: str) -> Path:
    """Write a graph that gives its input back."""
    import onnx
    from onnx import TensorProto, helper

    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in ("images", "output")]
    node = helper.make_node("Identity", ["images"], ["output"])
    model = helper.make_model(helper.make_graph([node], "g", shapes[:1], shapes[1:]), ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


FACTS: dict[str, Any] = {
    "task": "classify",
    "class_names": ["a"],
    "image_size": 32,
    "dynamic": False,
    "input": {"range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1], "letterbox": 0.5},
}


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist"):
        Runner(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match=r"text\.onnx can't be opened by ONNX Runtime"):
        Runner(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match=r"must be a network that moe_vision\.export wrote"):
        Runner(save(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match="got one without a task"):  # a bare layer
        Runner(save(tmp_path / "layer.onnx", format="moe_vision-onnx-1"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 32, got 100"),
        ({"image_size": 64}, r"image_size must be that of the file, which takes \[1, 3, 32, 32\], got 64"),
        ({"score": -1}, r"score must be in \[0, 1\], got -1"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"image must be an array \(H, W, 3\) of uint8, got \(4, 4\)"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", format="moe_vision-onnx-1", **{k: json.dumps(v) for k, v in FACTS.items()})
    with pytest.raises(ValueError, match=reason):
        Runner(path).predict(**{"images": pixels(9, 9), **settings})
