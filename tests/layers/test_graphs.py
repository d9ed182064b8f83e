# SPDX-License-Identifier: Apache-2.0
"""Graphs: torch.compile without breaks, torch.export with dynamic sizes, ONNX in a real ONNX Runtime session.

Every graph is run on images that choose other experts than the example did.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.export import Dim, ExportedProgram

from moe_vision import ESMoE, auxiliary_loss
from tests.strategies import KINDS, assert_same, make_images, make_layer

SHAPES = ((1, 4, 12, 10), (5, 4, 12, 10), (5, 4, 7, 9), (1, 4, 16, 3))
STATIC_SHAPES = ("auto", "static")


def example() -> Tensor:
    """Three images that choose the same experts, so that a graph which froze the choice would be caught."""
    return make_images(1, 4, 12, 10).expand(3, -1, -1, -1).contiguous()


def selected(layer: ESMoE, x: Tensor) -> set[int]:
    layer(x)
    return set(layer.routing.indices.flatten().tolist())


def export(layer: ESMoE) -> ExportedProgram:
    dynamic = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    return torch.export.export(layer, (example(),), dynamic_shapes=(dynamic,))


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", STATIC_SHAPES)
def test_compiles_without_a_break(dispatch: str, kind: str) -> None:
    torch.compiler.reset()
    layer = make_layer(expert=kind, dispatch=dispatch)
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    for seed in range(2):
        x = make_images(5, 4, 7, 9, seed=seed)
        expected = layer(x)
        y = compiled(x)
        assert_same(y, expected)
        torch.testing.assert_close(layer.routing.weights.sum(dim=1), torch.ones(5))


@pytest.mark.compile
@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_training_keeps_the_auxiliary_gradient(kind: str, soft: str) -> None:
    torch.compiler.reset()
    x = make_images(5, 4, 7, 9)
    results = []
    for compiled in (True, False):
        layer = make_layer(expert=kind, soft=soft).train()
        forward = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        (forward(x).square().mean() + auxiliary_loss(layer)).backward()
        results.append([p.grad for p in layer.parameters()])
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dispatch", "training"), [("auto", False), ("auto", True), ("static", False)])
def test_one_graph_for_all_sizes(dispatch: str, kind: str, training: bool) -> None:
    torch.compiler.reset()
    layer = make_layer(expert=kind, dispatch=dispatch).train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, shape in enumerate(((2, 4, 12, 10), (3, 4, 7, 9), (5, 4, 16, 3))):
            x = make_images(*shape, seed=seed)
            assert_same(compiled(x), twin(x))


@pytest.mark.compile
def test_single_images_have_a_graph_of_their_own() -> None:
    torch.compiler.reset()
    counter, layer = CompileCounter(), make_layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((1, 4, 12, 10), (1, 4, 7, 9), (2, 4, 12, 10), (5, 4, 7, 9), (1, 4, 16, 3)):
        x = make_images(*shape)
        assert_same(compiled(x), layer(x))
    assert counter.frame_count == 2


@pytest.mark.export
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", STATIC_SHAPES)
def test_exports_with_dynamic_sizes(dispatch: str, kind: str) -> None:
    layer = make_layer(expert=kind, dispatch=dispatch, shared_expert=True)
    module = export(layer).module()
    assert len(selected(layer, example())) == 2
    seen: set[int] = set()
    for seed, shape in enumerate(SHAPES):
        x = make_images(*shape, seed=seed)
        seen |= selected(layer, x)
        assert_same(module(x), layer(x))
    assert seen == {0, 1, 2, 3}


@pytest.mark.export
@pytest.mark.parametrize("dispatch", STATIC_SHAPES)
def test_export_leaves_the_record_alone(dispatch: str) -> None:
    layer = make_layer(dispatch=dispatch)
    export(layer)
    assert layer.routing is None
    layer(example())
    record = layer.routing
    export(layer)  # would warn if the record were assigned; warnings are errors here
    assert layer.routing.logits is record.logits


@pytest.mark.export
def test_i20_ties_of_an_exported_graph_go_to_the_lowest_index() -> None:
    layer = make_layer(num_experts=5, top_k=3)
    with torch.no_grad():
        layer.router.fc2.weight.zero_()
        layer.router.fc2.bias.zero_()
    x = make_images(4, 4, 6, 6)
    assert_same(export(layer).module()(x), layer(x))
    assert layer.routing.indices.tolist() == [[0, 1, 2]] * 4


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # the exporter warns about itself
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_in_onnxruntime(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    layer = make_layer(expert=kind)
    path = tmp_path / "layer.onnx"
    dynamic = ({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},)
    torch.onnx.export(layer, (example(),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    seen: set[int] = set()
    for seed, shape in enumerate(SHAPES):
        x = make_images(*shape, seed=seed)
        seen |= selected(layer, x)
        (y,) = session.run(None, {source.name: x.numpy()})
        np.testing.assert_allclose(y, layer(x).detach().numpy(), rtol=0, atol=1e-4)
    assert seen == {0, 1, 2, 3}
