# SPDX-License-Identifier: Apache-2.0
"""int8: convolutions with weights and features of 8 bits, by ONNX Runtime's static quantiser.

What decides and what nothing evens out afterwards stays in float: the routers, the first convolution and the last ones
before each output. So do experts in the branches of the form ``index``, whose ranges the quantiser can't measure.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from moe_vision.exporting.graph import quiet

if TYPE_CHECKING:
    import onnx


def quantize(graph: "onnx.ModelProto", images: Iterable[Tensor], routing: list[str]) -> "onnx.ModelProto":
    """Return a copy with int8 convolutions, a scale for each channel of weights.

    Args:
        graph: The graph, in fp32.
        images: Batches (B, C, H, W) to measure the ranges of features on.
        routing: Names of the logits of blocks in the graph.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
        def __init__(self) -> None:
            self.waiting = iter(images)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.waiting, None)
            return None if batch is None else {"images": batch.numpy()}

    source = onnx.ModelProto()
    source.CopyFrom(graph)  # the quantiser moves weights out of what it is given
    with tempfile.TemporaryDirectory() as folder, quiet():
        quantize_static(
            source,
            Path(folder, "int8.onnx"),
            Reader(),
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=float_convolutions(graph.graph, routing),
            per_channel=True,
            reduce_range=True,  # products of 8 bits overflow on processors without VNNI
        )
        quantized = onnx.load(Path(folder, "int8.onnx"))
    onnx.helper.set_model_props(quantized, {item.key: item.value for item in graph.metadata_props})
    return quantized


def float_convolutions(graph: "onnx.GraphProto", routing: list[str]) -> list[str]:
    """Return the names of the convolutions that stay in float."""
    outputs = [output.name for output in graph.output if output.name not in routing]
    of_network = {node.name for node in _before(graph, outputs, cut=routing)}
    of_routers = [node for node in _before(graph, routing) if node.name not in of_network]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    last = {node.name for node in _before(graph, outputs, stop=("Conv", "Shape"))}
    first = [node for node in convolutions if all(one.op_type != "Conv" for one in _before(graph, [node.input[0]]))]
    kept = {node.name for node in (*of_routers, *first)} | last
    return [node.name for node in convolutions if node.name in kept]


def _before(
    graph: "onnx.GraphProto", names: list[str], *, cut: Iterable[str] = (), stop: tuple[str, ...] = ()
) -> Iterator["onnx.NodeProto"]:
    """Yield the nodes that lead to values, not beyond the values ``cut`` and the kinds ``stop``."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting, seen = list(names), set(cut)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in producers:
            continue
        node = producers[name]
        seen.update(node.output)
        yield node
        if node.op_type not in stop:
            waiting += _inputs(node)


def _inputs(node: "onnx.NodeProto") -> Iterator[str]:
    """Yield the names that a node reads, in its branches too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)
