# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all: a process that is killed meanwhile leaves the previous ones."""

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moe_vision.exporting.runs import read_openvino

if TYPE_CHECKING:
    import onnx

METADATA = "moe_vision.json"


def save_onnx(graph: "onnx.ModelProto", path: Path) -> None:
    """Write an ONNX file."""
    write(graph.SerializeToString(), path)


def save_openvino(graph: "onnx.ModelProto", path: Path) -> None:
    """Write OpenVINO's two files, ``.xml`` and ``.bin``; the metadata are runtime information under ``moe_vision``."""
    import openvino

    model = read_openvino(graph)
    for item in graph.metadata_props:
        model.set_rt_info(item.value, ["moe_vision", item.key])
    folder = path.with_suffix(".partial")
    folder.mkdir(exist_ok=True)
    try:
        openvino.save_model(model, folder / path.name, compress_to_fp16=False)
        for name in (path.with_suffix(".bin").name, path.name):
            (folder / name).replace(path.with_name(name))
    finally:
        shutil.rmtree(folder)


def saved_program(program: torch.export.ExportedProgram, about: dict[str, str]) -> bytes:
    """Return the file of a program; its metadata are the extra file ``moe_vision.json``."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of the source, with its place on this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    return buffer.getvalue()


def write(data: bytes, path: Path) -> None:
    """Write a file."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
