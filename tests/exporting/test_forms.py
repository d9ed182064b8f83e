# SPDX-License-Identifier: Apache-2.0
"""Exported files in ONNX Runtime: right for every input, and what they hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE, TopPGate, export
from moe_vision.exporting import ExportReport
from moe_vision.layers import PointwiseMoE
from moe_vision.layers.convolution import ConvNormAct
from tests.exporting.files import alive, assert_every_expert_checked, run
from tests.strategies import make_layer

pytestmark = pytest.mark.export


def group_norm(channels: int, **settings: Any) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels, **settings)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in nodes(onnx.load(path).graph)]


class Exported(NamedTuple):
    """A layer and its file."""

    layer: ESMoE
    path: Path
    report: ExportReport


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A layer as it is by default, in the form `index`."""
    layer, path = make_layer(), tmp_path_factory.mktemp("plain") / "layer.onnx"
    return Exported(layer, path, export(layer, path))


def assert_right(layer: ESMoE, path: Path, report: ExportReport) -> None:
    assert_every_expert_checked(report, layer.gate.top_k)
    images = torch.randn(9, 4, 13, 10) + 2 * torch.randn(9, 4, 1, 1)
    expected = layer(images)
    assert len(set(map(tuple, layer.routing.indices.sort(dim=1).values.tolist()))) > 2
    torch.testing.assert_close(run(path, images)["output"], expected, rtol=0, atol=1e-5)
    branches = [kind for kind in operators(path) if kind in ("If", "Scan")]
    assert branches == ["Scan"] + ["If"] * len(layer.experts)


def test_plain_layer(plain: Exported) -> None:
    assert_right(*plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"expert": "depthwise", "num_experts": 5, "top_k": 3, "stride": 2, "bias": True},
        {"out_channels": 7, "stride": 2, "shared_expert": True, "top_k": 1, "norm_layer": group_norm},
    ],
)
def test_layer(settings: dict[str, Any], tmp_path: Path) -> None:
    layer = make_layer(**settings)
    assert_right(layer, tmp_path / "layer.onnx", export(layer, tmp_path / "layer.onnx"))


@pytest.mark.slow
def test_images_that_decide_how_many_experts_they_need(tmp_path: Path) -> None:
    layer = make_layer(num_experts=4)
    layer.gate = TopPGate(0.95, max_k=4)
    report = export(layer, tmp_path / "layer.onnx")
    assert_every_expert_checked(report)
    assert report.blocks[0].form == "index"
    images = torch.randn(9, 4, 13, 10) + 2 * torch.randn(9, 4, 1, 1)
    expected = layer(images)
    assert len(set(layer.routing.selected.sum(dim=1).tolist())) > 1
    torch.testing.assert_close(run(tmp_path / "layer.onnx", images)["output"], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_router_that_pools_large_maps_alone(tmp_path: Path) -> None:
    layer = alive(PointwiseMoE(8, num_experts=5))
    assert_every_expert_checked(export(layer, tmp_path / "layer.onnx", image_size=9))
    for size in (3, 4, 5, 9):  # maps of at most 4 pixels a side are not pooled
        images = torch.randn(3, 8, size, 9)
        torch.testing.assert_close(run(tmp_path / "layer.onnx", images)["output"], layer(images), rtol=0, atol=1e-5)


def test_unselected_experts_do_not_run(plain: Exported) -> None:
    model = onnx.load(plain.path)
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    convolutions = [node.op_type for node in (*model.graph.node, *body.node)].count("Conv")
    assert convolutions == 0
    for branch in (node for node in body.node if node.op_type == "If"):
        graphs = {attribute.name: attribute.g for attribute in branch.attribute}
        assert [node.op_type for node in graphs["then_branch"].node].count("Conv") == 2
        assert "Conv" not in [node.op_type for node in graphs["else_branch"].node]
        # Kernel and matrix lie where they are used: elsewhere ONNX Runtime can't lay them out for the processor.
        assert len([tensor for tensor in graphs["then_branch"].initializer if len(tensor.dims) == 4]) == 2


def test_dense_form_has_no_branch(tmp_path: Path) -> None:
    report = export(make_layer(), tmp_path / "layer.onnx", sparse="dense")
    assert_every_expert_checked(report)
    assert not {"If", "Loop", "Scan", "NonZero"} & set(operators(tmp_path / "layer.onnx"))
    report = export(make_layer(top_k=4), tmp_path / "layer.onnx", sparse="index")  # every expert runs anyway
    assert report.blocks[0].form == "dense"
    assert "If" not in operators(tmp_path / "layer.onnx")


def test_an_image_of_nan_spoils_itself_alone(plain: Exported) -> None:
    images = torch.randn(3, 4, 8, 8)
    images[1] = torch.nan
    output = run(plain.path, images)["output"]
    assert output[1].isnan().all()
    torch.testing.assert_close(output[::2], plain.layer(images[::2]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_experts_that_are_equal_keep_their_weights(tmp_path: Path) -> None:
    layer = ESMoE(4, init="shared").eval()
    export(layer, tmp_path / "layer.onnx")
    graph = onnx.load(tmp_path / "layer.onnx").graph
    (scan,) = [node for node in graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    for branch in (node for node in body.node if node.op_type == "If"):
        then = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
        assert sorted(len(tensor.dims) for tensor in then.initializer if len(tensor.dims) > 1) == [4, 4]


def test_half(tmp_path: Path) -> None:
    layer = make_layer()
    report = export(layer, tmp_path / "layer.onnx", half=True)
    assert_every_expert_checked(report)
    assert report.tolerance == 2e-2
    graph = onnx.load(tmp_path / "layer.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    then = next(attribute.g for node in nodes(graph) for attribute in node.attribute if attribute.name == "then_branch")
    assert {tensor.data_type for tensor in then.initializer if len(tensor.dims) == 4} == {onnx.TensorProto.FLOAT16}
    images = torch.randn(3, 4, 9, 9)
    torch.testing.assert_close(run(tmp_path / "layer.onnx", images)["output"], layer(images), rtol=0, atol=1e-2)


class Net(nn.Module):
    """Somebody's own network, which returns a dict and is called with the same layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3, stride=2)
        self.shared = ESMoE(8, num_experts=2, top_k=1)
        self.linear = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.shared(self.shared(self.stem(images)))
        return {"features": features, "logits": self.linear(features.mean(dim=(2, 3)))}


@pytest.mark.slow
def test_any_module(tmp_path: Path) -> None:
    net = alive(Net())
    report = export(net, tmp_path / "net.onnx", example=torch.rand(1, 3, 20, 24))
    assert [block.name for block in report.blocks] == ["shared"]
    assert net.shared.dispatch == "auto"
    images = torch.rand(4, 3, 11, 30)
    actual, expected = run(tmp_path / "net.onnx", images), net(images)
    assert list(actual) == ["features", "logits"]
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-5)


def test_a_module_without_experts_of_a_fixed_size(tmp_path: Path) -> None:
    net = ConvNormAct(3, 4, 3).train()
    report = export(net, tmp_path / "net.onnx", example=torch.rand(1, 3, 9, 9), dynamic=False)
    assert report.blocks == ()
    assert [run.shape for run in report.comparisons] == [(1, 3, 9, 9)]
    assert net.training
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [1, 3, 9, 9]
