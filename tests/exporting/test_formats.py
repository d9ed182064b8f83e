# SPDX-License-Identifier: Apache-2.0
"""Files for OpenVINO and torch.export, and int8: right in their runtimes, whole or not at all."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moe_vision import ESMoE, create_model, export
from moe_vision.cli import main
from moe_vision.exporting import Suppression
from moe_vision.layers.convolution import ConvNormAct
from moe_vision.models import save_checkpoint
from moe_vision.runtime import Runner
from tests.exporting.files import alive, assert_every_expert_checked, run
from tests.strategies import make_layer

pytestmark = pytest.mark.export


def run_openvino(path: Path, images: Tensor) -> Tensor:
    model = openvino.Core().read_model(path)
    assert json.loads(model.get_rt_info(["moe_vision", "sparse"]).value) == "index"
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([images.numpy()])[0])


def run_program(path: Path, images: Tensor) -> Tensor:
    files = {"moe_vision.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(json.loads(files["moe_vision.json"])["outputs"]) == ["output"]
    output, _ = program.module()(images)
    return output


def living_layers() -> int:
    gc.collect()
    return sum(type(thing) is ESMoE for thing in gc.get_objects())


@pytest.mark.parametrize(("ending", "run_file"), [("xml", run_openvino), ("pt2", run_program)])
def test_sparse_layer(ending: str, run_file: Callable[[Path, Tensor], Tensor], tmp_path: Path) -> None:
    layer, path = make_layer(num_experts=3), tmp_path / f"layer.{ending}"
    before = living_layers()
    report = export(layer, path)
    assert living_layers() == before  # no copy of the weights stays in PyTorch's caches
    assert_every_expert_checked(report, top_k=2)
    assert report.blocks[0].form == "index"
    assert {file.suffix for file in tmp_path.iterdir()} <= {path.suffix, ".bin"}
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no trace of where it was made
    images = torch.randn(7, 4, 13, 10) + 2 * torch.randn(7, 4, 1, 1)
    torch.testing.assert_close(run_file(path, images), layer(images), rtol=0, atol=1e-5)


class Wrong(nn.Module):
    """A network whose graph swaps its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = make_layer(num_experts=2, top_k=1)

    def forward(self, x: Tensor) -> Tensor:
        experts = self.moe.experts
        if torch.compiler.is_exporting():
            experts[0], experts[1] = experts[1], experts[0]
        return self.moe(x)


@pytest.mark.parametrize(("ending", "runtime"), [("xml", "OpenVINO"), ("pt2", "torch.export")])
def test_a_failed_check_leaves_the_earlier_file(ending: str, runtime: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{ending}"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match=f"output 'output' must be in {runtime} what it is in eager"):
        export(Wrong(), path, example=torch.rand(1, 4, 8, 8))
    assert path.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 1


class Net(nn.Module):
    """Two convolutions to quantise between a first, a last and a router that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3)
        self.middle = nn.Sequential(ConvNormAct(8, 8, 3), ConvNormAct(8, 8, 3))
        self.moe = ESMoE(8, num_experts=2, top_k=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.moe(self.middle(self.stem(images))))


def convolutions(graph: onnx.GraphProto) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Yield for each convolution whether it is quantised, and the shape of its kernels."""
    producers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = producers.get(node.input[1])
            yield weight is not None, tuple(tensors[weight.input[0] if weight else node.input[1]].dims)
        for attribute in node.attribute:
            yield from convolutions(attribute.g)


@pytest.mark.parametrize("sparse", ["index", "dense"])
def test_int8(sparse: Any, tmp_path: Path) -> None:
    net, path = alive(Net()), tmp_path / "net.onnx"
    images = torch.rand(8, 3, 20, 24) / 2 + torch.rand(8, 3, 1, 1) / 2
    report = export(net, path, example=images[:1], sparse=sparse, calibration=iter(images.split(2)), routing=True)
    assert_every_expert_checked(report, top_k=1)
    quantised = [shape for is_quantised, shape in convolutions(onnx.load(path).graph) if is_quantised]
    kept = [shape for is_quantised, shape in convolutions(onnx.load(path).graph) if not is_quantised]
    experts = [(8, 1, 3, 3), (8, 8, 1, 1), (8, 1, 5, 5), (8, 8, 1, 1)]
    assert sorted(quantised) == sorted([(8, 8, 3, 3)] * 2 + (experts if sparse == "dense" else []))
    assert sorted(kept) == sorted([(8, 3, 3, 3), (4, 8, 1, 1)] + (experts if sparse == "index" else []))
    about = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert json.loads(about["int8"]) is True
    expected, actual = net(images), run(path, images)
    assert list(actual) == ["output", "routing.0.moe"]
    errors = (actual["output"] - expected).abs()
    assert 0 < errors.mean() < 0.03 * expected.std()
    errors = (actual["routing.0.moe"] - net.moe.routing.logits).abs()
    assert 0 < errors.mean() < 0.1 * net.moe.routing.logits.std()


@pytest.mark.slow
def test_int8_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("yolo_master_n", task="classify", class_names=["dark", "light"], num_classes=2, image_size=32)
    save_checkpoint(alive(model), tmp_path / "net.safetensors")
    for split in ("train", "val"):
        for label, name in enumerate(model.class_names):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for seed in range(3):
                pixels = np.random.default_rng(seed).integers(100 * label, 100 * label + 100, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{seed}.png")
    command = ["export", str(tmp_path / "net.safetensors"), "--fixed-size", "--sparse", "dense", "--int8", "--data"]
    assert main([*command, str(tmp_path / "data")]) == 0
    title, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert title.split() == ["weights", "int8"]
    assert [row.split()[0] for row in rows] == ["top-1", "top-5"]
    assert Runner(tmp_path / "net.onnx").metadata["int8"] is True
    assert main([*command, str(tmp_path / "data" / "train" / "dark")]) == 0  # images alone: nothing to compare with
    assert "weights" not in capsys.readouterr().out


def test_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "net.safetensors"
    save_checkpoint(create_model("yolo_master_n", task="classify", num_classes=2), weights)
    for options, reason in (
        (["--int8"], "data must be given with --int8, and with it alone"),
        (["--data", "cells"], "data must be given with --int8, and with it alone"),
        (["--format", "openvino", "--out", "net.onnx"], "out must end in .xml for --format openvino, got net.onnx"),
    ):
        assert main(["export", str(weights), *options]) == 2
        assert reason in capsys.readouterr().err


class Determinant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)


def test_openvino_names_an_operator_that_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"module must have operators that OpenVINO has a form for, got Det$"):
        export(Determinant(), tmp_path / "net.xml", example=torch.rand(1, 1, 3, 3))
    assert not list(tmp_path.iterdir())


def test_what_a_format_does_not_have(tmp_path: Path) -> None:
    for ending, settings, reason in (
        ("xml", {"calibration": []}, "calibration must be None unless the file is .onnx and half is False, got .xml"),
        ("onnx", {"calibration": [], "half": True}, "calibration must be None unless .* half=True"),
        ("pt2", {"suppress": Suppression()}, "suppress must be None for a program of torch.export"),
        ("txt", {}, "path must end in one of .onnx, .xml, .pt2, got net.txt"),
    ):
        with pytest.raises(ValueError, match=reason):
            export(ESMoE(8), tmp_path / f"net.{ending}", **settings)
