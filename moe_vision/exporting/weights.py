# SPDX-License-Identifier: Apache-2.0
"""Weights in an exported graph: where they lie, and that none of an expert's is missing."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.export import ExportedProgram

from moe_vision.layers.esmoe import esmoe_layers

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def move_into_branches(model: "onnx_ir.Model") -> None:
    """Move each weight into the branches that use it, each its own copy.

    ONNX Runtime lays out the weights of a convolution for the processor only if they lie in the same graph as the
    convolution: twice to three times the speed of a branch.
    """
    import onnx_ir as ir

    main = model.graph
    for name, value in list(main.initializers.items()):
        uses: dict[ir.Graph, list[tuple[ir.Node, int]]] = defaultdict(list)
        for node, index in value.uses():
            uses[cast(ir.Graph, node.graph)].append((node, index))
        if not uses:  # ONNX Runtime would warn about it
            del main.initializers[name]
        branches = [graph for graph in uses if graph is not main]
        if not branches or not value.shape:  # a number may stay
            continue
        if main not in uses:
            del main.initializers[name]
        for number, branch in enumerate(branches):
            own_name = name if number == 0 and main not in uses else f"{name}.{number}"
            own = ir.Value(name=own_name, shape=value.shape, type=value.type, const_value=value.const_value)
            branch.register_initializer(own)
            for node, index in uses[branch]:
                node.replace_input_with(index, own)


def expert_weights(module: nn.Module) -> dict[str, bytes]:
    """Return the values of the experts' kernels and matrices by their names."""
    return {
        f"{name}.experts.{parameter}": bytes(weight.detach().contiguous().numpy().tobytes())
        for name, block in esmoe_layers(module).items()
        for parameter, weight in block.experts.named_parameters()
        if weight.ndim > 1
    }


def onnx_weights(model: "onnx.ModelProto") -> set[bytes]:
    """Return the values of all kernels and matrices of a graph."""
    return {data for graph in _graphs(model.graph) for data in _values(graph)}


def program_weights(program: ExportedProgram) -> set[bytes]:
    """Return the values of all parameters and constants of a program."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return {bytes(one.detach().contiguous().numpy().tobytes()) for one in tensors if isinstance(one, Tensor)}


def check_weights(present: set[bytes], weights: dict[str, bytes]) -> None:
    """Raise ValueError unless all weights are among those of a file, value for value."""
    if missing := [name for name, data in weights.items() if data not in present]:
        raise ValueError(f"the file must hold the weights of all experts, but it lacks {', '.join(missing)}")


def _graphs(graph: "onnx.GraphProto") -> Iterator["onnx.GraphProto"]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _values(graph: "onnx.GraphProto") -> Iterator[bytes]:
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if len(tensor.dims) > 1:
            yield numpy_helper.to_array(tensor).tobytes()
