# SPDX-License-Identifier: Apache-2.0
"""Export of a module with experts to an ONNX file that was checked."""

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from moe_vision.exporting.blocks import SparseForm, recorded_logits, set_forms
from moe_vision.exporting.check import GraphCheck
from moe_vision.exporting.graph import ROUTING, build_graph, dynamic_sizes, named_outputs
from moe_vision.exporting.inputs import check_shapes, example_images, multiple_of, traced_images
from moe_vision.exporting.metadata import metadata
from moe_vision.exporting.report import ExportReport
from moe_vision.exporting.suppression import Suppression, add_suppression, check_suppression
from moe_vision.exporting.weights import expert_weights, missing_weights, move_into_branches
from moe_vision.layers.checks import check_choice
from moe_vision.layers.fusion import fuse

if TYPE_CHECKING:
    import onnx
    import onnx_ir

TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}
REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def export(
    module: nn.Module,
    path: str | Path,
    *,
    example: Tensor | None = None,
    image_size: int | None = None,
    sparse: SparseForm = "index",
    dynamic: bool = True,
    half: bool = False,
    suppress: Suppression | None = None,
) -> ExportReport:
    """Write a module to an ONNX file that gives in ONNX Runtime what the module gives in eval, for every input.

    Before the file is handed over it is run against the module, with one and with five images of two sizes, so that
    every expert of every block is selected; the weights of all experts are looked up in it. It holds class names,
    task, input and configuration as metadata. Whatever goes wrong, an earlier file stays as it was.

    Args:
        module: A network, a bare `ESMoE`, or any module from images to a tensor, or a tuple or dict of tensors; it is
            left as it is.
        path: File to write, ending in ``.onnx``; its folder must exist.
        example: Images to trace with; if None, such as the module takes.
        image_size: Side of the images in pixels, a multiple of 32 (but for a bare layer), also recorded as the default
            for those who use the file; if None, that of the module, or 640.
        sparse: ``index``: experts that an image does not select do not run. ``dense``: all run, and no shape and no
            branch depends on data, for GPUs, NPUs and converters.
        dynamic: Take any number of images of any size, in multiples of 32 unless the example's sides are none or the
            module is a bare layer. Otherwise the example's shape alone.
        half: Keep weights and features in fp16; input and outputs stay fp32, as do the routers.
        suppress: Drop boxes that score low or repeat others within the file, see `moe_vision.exporting.Suppression`.

    Shape:
        - Input of the file: ``images`` (B, C, H, W), float32
        - Output of the file: what the module returns in eval, by the names of its fields, or ``output``, ``output_0``

    Raises:
        ModuleNotFoundError: If the extra ``export`` is not installed.
        OSError: If the file can't be written.
        ValueError: If an argument is out of its range, an operator has no form in ONNX (named with its layer), or the
            check fails.

    Examples:
        >>> import tempfile
        >>> from moe_vision import ESMoE, export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export(ESMoE(8), f"{folder}/layer.onnx")
        >>> report.blocks[0].form, min(report.blocks[0].images) > 0
        ('index', True)
    """
    _check_installed()
    check_choice("sparse", sparse, get_args(SparseForm))
    path = _check_path(Path(path))
    if suppress is not None:
        check_suppression(suppress, module)
    example = example_images(module, example, image_size, dynamic)
    shapes = check_shapes(example, dynamic)
    reference = copy.deepcopy(module).to("cpu", torch.float32).eval().requires_grad_(False)
    outputs, calls = _signature(reference, shapes[0])
    dtype = torch.float16 if half else torch.float32
    deployed = fuse(reference).to(dtype).to(memory_format=torch.contiguous_format)
    set_forms(deployed, sparse)
    weights = expert_weights(deployed)
    names = [*outputs, *(f"{ROUTING}{index}.{name}" for index, name in enumerate(calls))]
    sizes = dynamic_sizes(multiple_of(module, example)) if dynamic else {}
    traced = traced_images(module, example, dynamic)
    model = build_graph(deployed, traced, names, sizes, dtype)
    graph = _finish(model, metadata(module, example, sparse=sparse, dynamic=dynamic, half=half))
    if missing := missing_weights(graph, weights):
        raise ValueError(f"the file must hold the weights of all experts, but it lacks {', '.join(missing)}")
    check = GraphCheck(graph, reference, calls, sparse, TOLERANCES[dtype])
    comparisons = check.run(shapes)
    del graph.graph.output[len(outputs) :]
    if suppress is not None:
        add_suppression(graph, suppress)
    _write(graph, path)
    return ExportReport(path, path.stat().st_size, check.tolerance, check.reports(), tuple(comparisons))


def _check_installed() -> None:
    for name in REQUIRED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} is not installed; pip install 'moe-vision[export]'", name=name)


def _check_path(path: Path) -> Path:
    """Complain about the path now, not after minutes."""
    if path.suffix != ".onnx":
        raise ValueError(f"path must end in .onnx, got {path.name}")
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


def _write(graph: "onnx.ModelProto", path: Path) -> None:
    """Write the file whole or not at all: a process that is killed here leaves the previous one."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(graph.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
