# SPDX-License-Identifier: Apache-2.0
"""Hostile files at every reader: a clear error or a report, in little time and memory. More: benchmarks/fuzz.py."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from moe_vision import load_official
from moe_vision.data import COCODetection, InstanceMasks, VOCDetection, YOLODetection, read_image
from moe_vision.models import YOLOMasterConfig, load_checkpoint
from moe_vision.runtime import Runner
from tests.borders import COCO, FACTS, Border, borders
from tests.data.checks import huge_png
from tests.hostile import changed, outcome

INPUTS = 20  # of each reader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("borders")


@pytest.fixture(scope="module")
def readers(root: Path) -> dict[str, Border]:
    return borders(root)


NAMES = (
    "VOC XML", "VOC list", "COCO JSON", "YOLO labels", "YOLO names", "index mask", "class list", "class table",
    "picture", "checkpoint", "checkpoint header", "released .pt", "released pickle", "released header", "swap.json",
    "ONNX", "ONNX metadata",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_read_reported_or_refused(name: str, readers: dict[str, Border], root: Path) -> None:
    assert set(readers) == set(NAMES)
    border, generator = readers[name], random.Random(1)
    for _ in range(3 if name in ("checkpoint header", "swap.json") else INPUTS):
        content = changed(border.sound, generator.randrange)
        found = outcome(border, root / name, content)
        assert "FAILED" not in found.kind, f"{found.kind} at {content!r}"
        assert found.seconds < 10
    border.refuses_well(root / name, border.sound)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    borders(tmp_path)
    return tmp_path


def reasons(data: Any) -> list[str]:
    return [problem.reason for problem in data.problems]


# Endless and oversized files


@pytest.mark.parametrize("path", ["JPEGImages/a.png", "Annotations/a.xml"])
def test_a_pipe_is_not_waited_for(path: str, folder: Path) -> None:
    root = folder / "VOC list"
    (root / path).unlink()
    os.mkfifo(root / path)
    with pytest.raises(ValueError, match=r"one usable image .* with 1 problem \(1 (broken|unreadable)"):
        VOCDetection(root)


def test_a_device_is_not_read(folder: Path) -> None:
    root = folder / "YOLO names"
    (root / "train/labels/a.txt").unlink()
    (root / "train/labels/a.txt").symlink_to("/dev/zero")
    data = YOLODetection(root)
    assert (reasons(data), len(data[0][1]["boxes"])) == (["unreadable label file"], 0)


def test_a_thousand_million_declared_objects(folder: Path) -> None:
    root = folder / "YOLO names"
    os.truncate(root / "train/labels/a.txt", 13 * 10**9)  # a sparse file: it takes no room on the disk
    assert reasons(YOLODetection(root)) == ["unreadable label file"]
    os.truncate(folder / "VOC list/Annotations/a.xml", 10**11)
    with pytest.raises(ValueError, match="1 broken xml"):
        VOCDetection(folder / "VOC list")


def test_a_million_open_tags(folder: Path) -> None:
    (folder / "VOC list/Annotations/a.xml").write_bytes(b"<a>" * 10**6 + b"</a>" * 10**6)
    with pytest.raises(ValueError, match="1 broken xml"):
        VOCDetection(folder / "VOC list")


def test_gigapixel_images(folder: Path) -> None:
    root = folder / "index mask"
    huge_png(root / "masks/a.png")
    with pytest.raises(ValueError, match="1 unreadable mask"):
        InstanceMasks(root)
    huge_png(root / "images/a.png")
    with pytest.raises(ValueError, match="1 unreadable image"):
        InstanceMasks(root)
    with pytest.raises(ValueError, match=r"exceeds limit of .* pixels"):
        read_image(root / "images/a.png")


def test_as_many_instances_as_pixels(folder: Path) -> None:
    root = folder / "index mask"
    Image.new("RGB", (300, 300)).save(root / "images/a.png")
    Image.fromarray(np.arange(90_000, dtype=np.int32).reshape(300, 300)).save(root / "masks/a.png", "TIFF")
    with pytest.raises(ValueError, match="1 unreadable mask"):
        InstanceMasks(root)


def test_no_program_is_started_for_a_picture(folder: Path) -> None:
    path = folder / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(w) file closefile\n")
    with pytest.raises(ValueError, match=r"must be a readable image, got '.*a.jpg': cannot identify"):
        read_image(path)


# Entries that lie


def coco(root: Path, **entries: Any) -> COCODetection:
    (root / "coco.json").write_text(json.dumps({**COCO, **entries}))
    return COCODetection(root / "coco.json", root)


def test_numbers_ids_and_names_of_coco(folder: Path) -> None:
    root = folder / "COCO JSON"
    nan = float("nan")
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 4, 4]}
    boxes = [box, box, {**box, "id": 2, "bbox": [nan, 0, 4, 4]}, {**box, "id": nan, "bbox": [0, 0, 10**400, 4]}]
    data = coco(root, annotations=boxes, categories=[{"id": 3, "name": "\ud800"}])
    assert reasons(data) == ["duplicate id in annotations", "degenerate box", "coordinate that is not a number"]
    assert data.classes == ("?",)  # it can be printed
    leading_out = [{"id": 7, "file_name": "../picture/b.jpg"}, {"id": 8, "file_name": "a.png"}]
    assert reasons(coco(root, images=leading_out, annotations=[])) == ["path outside the data set"]


def test_a_long_text_is_quoted_in_part(folder: Path) -> None:
    data = coco(folder / "COCO JSON", annotations=[{"id": "x" * 10**6, "image_id": "y" * 10**6}])
    assert [len(problem.detail) for problem in data.problems] == [300]


# Networks of any size in a few bytes


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({"width": 1e4, "max_channels": 10**6}, {}),
        ({"width": 1e300}, {}),
        ({"depth": 1e9}, {}),
        ({"reg_max": 10**9}, {}),
        ({"kernel_sizes": [3, 5, 7, 10**6 + 1]}, {}),
        ({"num_experts": 10**9, "block": "pointwise", "kernel_sizes": [], "expert_init": "independent"}, {}),
        ({"num_classes": 10**9}, {"class_names": "null"}),
        ({"backbone": "hf-hub:nobody/nothing"}, {}),
        ({"backbone": "local-dir:/tmp"}, {}),
        ({}, {"image_size": "1e400"}),
        ({}, {"config": "[" * 100_000}),
    ],
    ids=str,
)
def test_a_header_that_describes_another_network(config: Any, others: dict[str, str], tmp_path: Path) -> None:
    tiny = json.loads(YOLOMasterConfig(num_classes=2, width=0.125, max_channels=512, depth=0.25).to_json())
    header = {"format": "moe_vision-1", "config": json.dumps({**tiny, **config}), "class_names": '["a", "b"]'}
    path = tmp_path / "c.safetensors"
    path.write_bytes(save({str(n): torch.ones(1) for n in range(9)}, {**header, "image_size": "64", **others}))
    with pytest.raises(ValueError, match=r"c.safetensors does not describe its weights"):
        load_checkpoint(path)


@pytest.mark.parametrize("load", [load_checkpoint, load_official])
@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    ],
    ids=str,
)
def test_a_safetensors_header_that_lies(load: Callable[[Path], Any], tensor: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "lie.safetensors"
    text = json.dumps({"model.0.conv.weight": tensor}).encode()
    for length in (len(text), 2**63 - 1):
        path.write_bytes(struct.pack("<Q", length) + text + bytes(4))
        with pytest.raises(ValueError, match=r"lie.safetensors .*is truncated or no"):
            load(path)


def test_sides_of_an_empty_tensor(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    names = ("0.conv.weight", "1.m.0.cv1.conv.weight", "2.linear.weight")
    path.write_bytes(save({f"model.{name}": torch.empty(10**9, 0) for name in names}))
    with pytest.raises(ValueError, match=r"its last layer must be one of|with values"):
        load_official(path)


REFUSED = "arguments must have the model_name of timm and none of "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint_path": "w.pt"}, REFUSED), ({"pretrained": True}, REFUSED),
        ({"pretrained_cfg": {"file": "w.pt"}}, REFUSED), ({"model_name": "hf-hub:nobody/nothing"}, REFUSED),
        ({"num_classes": 10**12}, "its weights must be those of the model"), ({"no_such": 1}, "must build a model"),
    ],
    ids=str,
)  # fmt: skip
def test_a_swapped_model_reads_no_other_files(
    arguments: dict[str, Any], message: str, readers: dict[str, Border], root: Path
) -> None:
    border = readers["swap.json"]
    record = json.loads(border.sound)
    record["arguments"] |= arguments
    found = border.refuses_well(root / "swap.json", json.dumps(record).encode())
    assert isinstance(found, ValueError)
    assert "must hold a swapped model: " in str(found)
    assert message in str(found)


# Graphs


@pytest.mark.parametrize(
    "fact",
    [
        {"image_size": 2**40, "dynamic": True}, {"image_size": [64]}, {"class_names": 5}, {"task": "else"},
        {"dynamic": None},
        {"input": {}}, {"input": {**FACTS["input"], "std": [1, 1, 0]}},
        {"input": {**FACTS["input"], "mean": [0, "nan", 0]}},
        {"input": {**FACTS["input"], "letterbox": float("nan")}},
    ],
    ids=str,
)  # fmt: skip
def test_facts_of_a_graph_are_checked(fact: dict[str, Any], readers: dict[str, Border], root: Path) -> None:
    border = readers["ONNX metadata"]
    found = border.refuses_well(root / border.name, json.dumps({**FACTS, **fact}).encode())
    assert isinstance(found, ValueError)
    assert "n.onnx is damaged: its " in str(found)


@pytest.mark.parametrize("fact", [{"task": "segment"}, {"task": "classify"}, {"image_size": 64}], ids=str)
def test_outputs_of_a_graph_are_checked(fact: dict[str, Any], readers: dict[str, Border], root: Path) -> None:
    border = readers["ONNX metadata"]
    found = border.refuses_well(root / border.name, json.dumps({**FACTS, **fact}).encode())
    assert isinstance(found, ValueError)
    assert "n.onnx" in str(found)


def test_a_graph_reads_no_other_files(readers: dict[str, Border], root: Path) -> None:
    import onnx

    graph = onnx.load_from_string(readers["ONNX"].sound)
    secret = root / "secret"
    secret.write_bytes(struct.pack("<2q", 0, 0))
    for place in ("../secret", str(secret)):
        start = next(tensor for tensor in graph.graph.initializer if tensor.name == "from")
        start.ClearField("int64_data")
        start.ClearField("raw_data")
        del start.external_data[:]
        start.data_location = onnx.TensorProto.EXTERNAL
        start.external_data.add(key="location", value=place)
        start.external_data.add(key="length", value="16")
        (root / "ONNX/n.onnx").write_bytes(graph.SerializeToString())
        with pytest.raises(ValueError, match=r"n\.onnx can't be opened by ONNX Runtime"):
            Runner(root / "ONNX/n.onnx", threads=1)
