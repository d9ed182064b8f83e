# SPDX-License-Identifier: Apache-2.0
"""An exported graph in the runtime that it is for, twice: as it is, and with the decisions of its routers given."""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx
    import openvino

Run = Callable[[list[Tensor]], list[Tensor]]


class Runs(NamedTuple):
    """How to run a graph whose last outputs are the logits of each call of a block.

    Attributes:
        runtime: Name of the runtime.
        chosen: From [images] to all outputs.
        forced: From [images, logits of the first call, ...], which replace the routers' own, to the module's outputs.
    """

    runtime: str
    chosen: Run
    forced: Run


def onnx_runs(graph: "onnx.ModelProto", calls: int) -> Runs:
    """Run an ONNX graph in ONNX Runtime."""
    return Runs("ONNX Runtime", _onnx_run(graph), _onnx_run(with_forced_routing(graph, calls)))


def openvino_runs(graph: "onnx.ModelProto", calls: int) -> Runs:
    """Run an ONNX graph in OpenVINO."""
    return Runs("OpenVINO", _openvino_run(graph), _openvino_run(with_forced_routing(graph, calls)))


def program_runs(saved: bytes, calls: int) -> Runs:
    """Run a saved program of torch.export."""
    chosen = torch.export.load(io.BytesIO(saved)).module()
    forced = torch.export.load(io.BytesIO(saved)).module()
    _force_routing(forced, calls)

    def run_forced(values: list[Tensor]) -> list[Tensor]:
        for index, logits in enumerate(values[1:]):
            setattr(forced, f"forced_{index}", logits)
        outputs = list(forced(values[0]))
        return outputs[: len(outputs) - calls]

    return Runs("torch.export", lambda values: list(chosen(values[0])), run_forced)


def read_openvino(graph: "onnx.ModelProto") -> "openvino.Model":
    """Convert an ONNX graph.

    Raises:
        ValueError: If OpenVINO has no form for an operator.
    """
    import openvino

    try:
        return openvino.Core().read_model(graph.SerializeToString(), b"")
    except RuntimeError as error:
        unknown = re.search(r"No conversion rule found for operations: (.+)", str(error))
        reason = re.sub(r"-\d+", "", unknown[1]) if unknown else str(error)
        raise ValueError(f"module must have operators that OpenVINO has a form for, got {reason}") from error


def with_forced_routing(graph: "onnx.ModelProto", calls: int) -> "onnx.ModelProto":
    """Return a copy whose last outputs, the logits of each call of a block, are the inputs ``forced.0`` and so on."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    outputs = list(copy.graph.output)
    place = len(outputs) - calls
    new_names = {output.name: f"forced.{index}" for index, output in enumerate(outputs[place:])}
    del copy.graph.output[place:]
    for output in outputs[place:]:
        value = copy.graph.input.add()
        value.CopyFrom(output)
        value.name = new_names[output.name]
    _rename_inputs(copy.graph, new_names)
    return copy


def _rename_inputs(graph: "onnx.GraphProto", names: dict[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_inputs(attribute.g, names)


def _force_routing(module: nn.Module, calls: int) -> None:
    """Replace the logits of each call of a block by the attribute ``forced_0`` and so on."""
    graph: Any = module.graph
    outputs = list(graph.output_node().args[0])
    for index, logits in enumerate(outputs[len(outputs) - calls :]):
        module.register_buffer(f"forced_{index}", torch.zeros(0))
        with graph.inserting_after(logits):
            logits.replace_all_uses_with(graph.get_attr(f"forced_{index}"))
    module.recompile()  # type: ignore[operator]


def _onnx_run(graph: "onnx.ModelProto") -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns about what it leaves out of a graph
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(values: list[Tensor]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _openvino_run(graph: "onnx.ModelProto") -> Run:
    import openvino

    compiled = openvino.Core().compile_model(read_openvino(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(values: list[Tensor]) -> list[Tensor]:
        outputs = compiled([value.numpy() for value in values])
        return [torch.from_numpy(outputs[index].copy()) for index in range(len(compiled.outputs))]

    return run
