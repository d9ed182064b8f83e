# SPDX-License-Identifier: Apache-2.0
"""The files of the demo page: the detector, what the page is told of it, and the samples. The page itself needs a
browser: docs/scripts/check_demo.py."""

import json
from pathlib import Path

import numpy as np
import torch

from moe_vision.models import ExportedNetwork
from moe_vision.runtime import Runner
from moe_vision.runtime.images import read_pixels

FOLDER = Path(__file__).parents[1] / "docs" / "assets" / "demo"


def test_the_page_knows_its_detector() -> None:
    path = FOLDER / "cells.onnx"
    assert path.stat().st_size < 8e6
    about, told = Runner(path).metadata, json.loads((FOLDER / "cells.json").read_text())
    for name, value in {"top_k": 2, "kernel_sizes": [3, 5, 7, 9]}.items():
        assert told[name] == about["config"][name] == value
    for name, value in {"image_size": 320, "class_names": ["Platelets", "RBC", "WBC"]}.items():
        assert told[name] == about[name] == value
    assert told["letterbox"] == round(255 * about["input"]["letterbox"])


def test_every_sample_has_cells_and_experts() -> None:
    runner, network = Runner(FOLDER / "cells.onnx", threads=1), ExportedNetwork(FOLDER / "cells.onnx")
    found = {}
    for name in ("few", "some", "many"):
        pixels = read_pixels(FOLDER / f"{name}.jpg")
        (result,) = runner.predict(pixels)
        found[name] = np.bincount(result["labels"], minlength=3)
        images = runner._prepare(pixels, 320)
        outputs = runner.run(images)
        logits = [value for key, value in outputs.items() if key.startswith("routing.")]
        assert [value.shape for value in logits] == [(1, 4)] * 4
        assert np.array_equal(network(torch.from_numpy(images)).scores, outputs["scores"])  # routing is no part of it
    assert all(counts[2] == 1 for counts in found.values())  # each shows one white blood cell
    assert found["few"][1] < found["some"][1] < found["many"][1]
