# SPDX-License-Identifier: Apache-2.0
"""The demo, shortened."""

import json
from pathlib import Path

import pytest
from PIL import Image

from moe_vision.demo import run_demo
from moe_vision.models import load_checkpoint


@pytest.mark.slow
def test_demo_writes_its_files(tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo", scenes=32, epochs=1)
    names = ["detections.jpg", "training.png", "routing.png", "log.jsonl", "last.safetensors"]
    assert [path.name for path in result["files"]] == names
    assert all(path.parent == tmp_path / "demo" for path in result["files"])
    for path in result["files"][:3]:
        with Image.open(path) as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 20
    (line,) = (json.loads(line) for line in (tmp_path / "demo" / "log.jsonl").read_text().splitlines())
    assert line["metrics"]["map50"] == result["map50"]
    assert load_checkpoint(result["files"][-1]).class_names == ("circle", "cross", "square", "triangle")
