# SPDX-License-Identifier: Apache-2.0
"""From a module to a program of torch.export, and on to an ONNX graph."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from moe_vision.exporting.blocks import recorded_logits

if TYPE_CHECKING:
    import onnx_ir

OPSET = 20


class Flat(nn.Module):
    """A module with a flat tuple of fp32 outputs, after them the logits of every block.

    Args:
        module: The module, in eval and of any precision.
        dtype: Type of its input; the graph takes fp32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return outputs and logits."""
        with recorded_logits(self.module) as record:
            outputs = self.module(images.to(self.dtype))
            logits = tuple(values for _, values in record)
        return (*named_outputs(outputs).values(), *logits)


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Name the outputs of a module: by the fields of a named tuple, else ``output`` or ``output_0``, ...; in fp32."""
    if isinstance(outputs, Tensor):
        named: Mapping[str, Any] = {"output": outputs}
    elif hasattr(outputs, "_asdict"):
        named = outputs._asdict()
    elif isinstance(outputs, Mapping):
        named = outputs
    else:
        named = {f"output_{index}": output for index, output in enumerate(outputs)}
    for name, output in named.items():
        if not isinstance(output, Tensor):
            raise ValueError(
                f"module must return a tensor, or a tuple or dict of tensors, got {type(output).__name__} in {name!r}"
            )
    return {name: output.float() if output.is_floating_point() else output for name, output in named.items()}


def trace(module: nn.Module, example: Tensor, sizes: dict[int, Any], dtype: torch.dtype) -> ExportedProgram:
    """Trace a module that is in eval and needs no gradients, with the logits of every block as its last outputs.

    Args:
        module: The module; its input is called ``images``.
        example: Images, at least two if their number is dynamic.
        sizes: The dynamic axes of the images and what is known of them.
        dtype: Type of the images that the module takes; the program takes fp32.

    Raises:
        ValueError: If the module can't be traced.
    """
    flat = Flat(module, dtype)
    with quiet():
        try:
            return torch.export.export(flat, (example,), dynamic_shapes=(sizes,))
        except Exception as error:  # whatever the module's own code raises
            # A map of one cell is taken to be of that size for ever.
            mend = "; give an example of at least 64 x 64" if sizes and min(example.shape[2:]) < 64 else ""
            raise ValueError(f"module can't be traced by torch.export: {str(error).splitlines()[0]}{mend}") from error
        finally:
            # PyTorch keeps every module that it traced with torch.cond; the weights need not stay with it.
            flat.module = nn.Identity()


def to_onnx(program: ExportedProgram, output_names: list[str], sizes: dict[int, Any]) -> "onnx_ir.Model":
    """Convert a program.

    Args:
        program: The program.
        output_names: Names of its outputs and of the logits of every block.
        sizes: The dynamic axes that it was traced with.

    Raises:
        ValueError: If ONNX has no form for an operator, which is named with its layer.
    """
    with quiet():
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                output_names=output_names,
                dynamic_shapes=(sizes,),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(_unsupported(program, error)) from error
    if converted is None:
        raise ValueError("module can't be exported: torch.onnx.export returned nothing")
    return converted.model


def dynamic_sizes(multiple: int) -> dict[int, Any]:
    """Return what is known of images of any number and size, whose sides are multiples of a number."""
    if multiple == 1:  # there may be a smallest size, which nobody knows
        return {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return {0: Dim("batch"), 2: multiple * Dim("height"), 3: multiple * Dim("width")}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from talking about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _unsupported(program: ExportedProgram, error: Exception) -> str:
    """Name the operator that ONNX has no form for, and the layer that calls it."""
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
    if operator is None:
        return f"module can't be exported to ONNX: {error}"
    # The name may be that of a part: aten.special_bessel_j0 is taken apart into prims.bessel_j0.
    part = operator[1].split(".")[-1]
    nodes = [node for node in program.graph.nodes if part in str(node.target)]
    name = str(nodes[0].target).removesuffix(".default") if nodes else operator[1]
    stack = nodes[0].meta.get("nn_module_stack") if nodes else None
    where = f" in layer {list(stack.values())[-1][0].removeprefix('module.')!r}" if stack else ""
    return f"module must have operators that ONNX has a form for, got {name}{where}"
