# SPDX-License-Identifier: Apache-2.0
"""Export of a module with experts to a file that was checked."""

import copy
import json
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from moe_vision.exporting.blocks import SparseForm, recorded_logits, set_forms
from moe_vision.exporting.check import GraphCheck
from moe_vision.exporting.files import save_onnx, save_openvino, saved_program, write
from moe_vision.exporting.graph import dynamic_sizes, named_outputs, to_onnx, trace
from moe_vision.exporting.inputs import check_shapes, example_images, multiple_of, traced_images
from moe_vision.exporting.metadata import metadata
from moe_vision.exporting.quantization import quantize
from moe_vision.exporting.report import ExportReport
from moe_vision.exporting.runs import onnx_runs, openvino_runs, program_runs
from moe_vision.exporting.suppression import Suppression, add_suppression, check_suppression
from moe_vision.exporting.weights import (
    check_weights,
    expert_weights,
    move_into_branches,
    onnx_weights,
    program_weights,
)
from moe_vision.layers.checks import check_choice
from moe_vision.layers.fusion import fuse
from moe_vision.runtime.runner import ROUTING

if TYPE_CHECKING:
    import onnx
    import onnx_ir

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}
# What a file of each ending takes to write.
REQUIRED = {
    ".onnx": ("onnx", "onnxscript", "onnxruntime"),
    ".xml": ("onnx", "onnxscript", "openvino"),
    ".pt2": (),
}
# A program of torch.export was traced with maps of more than one cell, and takes no others.
SMALLEST = {".pt2": 64}


def export(
    module: nn.Module,
    path: str | Path,
    *,
    example: Tensor | None = None,
    image_size: int | None = None,
    sparse: SparseForm = "index",
    dynamic: bool = True,
    half: bool = False,
    calibration: Iterable[Tensor] | None = None,
    suppress: Suppression | None = None,
    routing: bool = False,
) -> ExportReport:
    """Write a module to a file that gives in its runtime what the module gives in eval, for every input.

    Before the file is handed over it is run against the module, with one and with five images of two sizes, so that
    every expert of every block is selected; the weights of all experts are looked up in it. It holds class names,
    task, input and configuration as metadata. Whatever goes wrong, an earlier file stays as it was.

    Args:
        module: A network, a bare `ESMoE`, or any module from images to a tensor, or a tuple or dict of tensors; it is
            left as it is.
        path: File to write, in a folder that exists. Its ending is the format: ``.onnx`` for ONNX Runtime, ``.xml``
            for OpenVINO (which puts the weights beside it, in a ``.bin``), ``.pt2`` for a program of `torch.export`,
            which takes networks' images from 64 pixels a side.
        example: Images to trace with; if None, such as the module takes.
        image_size: Side of the images in pixels, a multiple of 32 (but for a bare layer), also recorded as the default
            for those who use the file; if None, that of the module, or 640.
        sparse: ``index``: experts that an image does not select do not run. ``dense``: all run, and no shape and no
            branch depends on data, for GPUs, NPUs and converters.
        dynamic: Take any number of images of any size, in multiples of 32 unless the example's sides are none or the
            module is a bare layer. Otherwise the example's shape alone.
        half: Keep weights and features in fp16; input and outputs stay fp32, as do the routers.
        calibration: Batches of images as the module takes them, to measure the ranges of features on for int8; the
            routers, the first and the last convolutions and the experts of the form ``index`` stay in fp32. The check
            is that of the fp32 graph; evaluate the file to know what int8 costs. ONNX alone.
        suppress: Drop boxes that score low or repeat others within the file, see `moe_vision.exporting.Suppression`.
        routing: Also give the logits of each block: the experts that it chose are the K largest.

    Shape:
        - Input of the file: ``images`` (B, C, H, W), float32
        - Output of the file: what the module returns in eval, by the names of its fields, or ``output``, ``output_0``;
          with ``routing`` the logits (B, E) of each block as ``routing.0.NAME``, in the order in which they run. A
          program returns a tuple in that order, the logits always among it

    Raises:
        ModuleNotFoundError: If the extra ``export`` (or ``openvino``) is not installed.
        OSError: If the file can't be written.
        ValueError: If an argument is out of its range, an operator has no form in the format (named with its layer),
            or the check fails.

    Examples:
        >>> import tempfile
        >>> from moe_vision import ESMoE, export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(ESMoE(8), f"{folder}/layer.onnx")
        >>> report.blocks[0].form, min(report.blocks[0].images) > 0
        ('index', True)
    """
    path = _check_path(Path(path))
    check_choice("sparse", sparse, get_args(SparseForm))
    _check_form(path.suffix, half, calibration, suppress)
    if suppress is not None:
        check_suppression(suppress, module)
    example = example_images(module, example, image_size, dynamic)
    shapes = check_shapes(example, dynamic, SMALLEST.get(path.suffix, 1))
    reference = copy.deepcopy(module).to("cpu", torch.float32).eval().requires_grad_(False)
    outputs, calls = _signature(reference, shapes[0])
    logits = [f"{ROUTING}{index}.{name}" for index, name in enumerate(calls)]
    dtype = torch.float16 if half else torch.float32
    deployed = fuse(reference).to(dtype).to(memory_format=torch.contiguous_format)
    set_forms(deployed, sparse)
    weights = expert_weights(deployed)
    sizes = dynamic_sizes(multiple_of(module, example)) if dynamic else {}
    form = {"sparse": sparse, "dynamic": dynamic, "half": half, "int8": calibration is not None}
    about = metadata(module, example, **form)
    program = trace(deployed, traced_images(module, example, dynamic), sizes, dtype)

    if path.suffix == ".pt2":
        check_weights(program_weights(program), weights)
        saved = saved_program(program, {**about, "outputs": json.dumps(outputs)})
        check = GraphCheck(program_runs(saved, len(calls)), outputs, reference, calls, sparse, TOLERANCES[dtype])
        comparisons = check.run(shapes)
        write(saved, path)
    else:
        graph = _finish(to_onnx(program, [*outputs, *logits], sizes), about)
        check_weights(onnx_weights(graph), weights)
        runs = (openvino_runs if path.suffix == ".xml" else onnx_runs)(graph, len(calls))
        check = GraphCheck(runs, outputs, reference, calls, sparse, TOLERANCES[dtype])
        comparisons = check.run(shapes)
        if not routing:
            del graph.graph.output[len(outputs) :]
        if calibration is not None:
            graph = quantize(graph, calibration, logits)
        if suppress is not None:
            add_suppression(graph, suppress)
        (save_openvino if path.suffix == ".xml" else save_onnx)(graph, path)
    return ExportReport(path, path.stat().st_size, check.tolerance, check.reports(), tuple(comparisons))


def _check_form(suffix: str, half: bool, calibration: object, suppress: object) -> None:
    """Complain about what a format does not have, and about what it needs that is not installed."""
    if calibration is not None and (half or suffix != ".onnx"):
        raise ValueError(f"calibration must be None unless the file is .onnx and half is False, got {suffix}, {half=}")
    if suppress is not None and suffix == ".pt2":
        raise ValueError("suppress must be None for a program of torch.export (.pt2), got limits")
    for name in REQUIRED[suffix]:
        if find_spec(name) is None:
            extra = "openvino" if name == "openvino" else "export"
            raise ModuleNotFoundError(f"{name} is not installed; pip install 'moe-vision[{extra}]'", name=name)


def _check_path(path: Path) -> Path:
    """Complain about the path now, not after minutes."""
    if path.suffix not in REQUIRED:
        raise ValueError(f"path must end in one of {', '.join(REQUIRED)}, got {path.name}")
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must lie in a folder that exists, but {path.parent} does not")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"path must lie in a folder that can be written to, but {path.parent} can't")
    return path


def _signature(module: nn.Module, shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Return the names of the outputs, and of the blocks in the order in which they run."""
    with torch.inference_mode(), recorded_logits(module) as record:
        outputs = named_outputs(module(torch.zeros(shape)))
    return list(outputs), [name for name, _ in record]


def _finish(model: "onnx_ir.Model", about: dict[str, str]) -> "onnx.ModelProto":
    """Put weights into their branches and the metadata into the file; leave out what the tracer noted of its source."""
    import onnx_ir

    for name, value in list(model.graph.initializers.items()):
        value.name = name.removeprefix("module.")  # of the tracer's wrapper
    move_into_branches(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    model.producer_name = "moe_vision"
    model.metadata_props.update(about)
    return onnx_ir.to_proto(model)
