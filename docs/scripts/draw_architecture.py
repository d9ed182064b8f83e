# SPDX-License-Identifier: Apache-2.0
"""Draw the network, from its modules, and its block, from what the detector of the demo decides on a sample.

python docs/scripts/draw_architecture.py
"""

from pathlib import Path

import numpy as np
import torch
from drawing import EXPERTS, IDLE, PLAIN, Drawing
from torch import nn

from moe_vision import create_model, hard_top_k
from moe_vision.runtime import Runner
from moe_vision.runtime.images import read_pixels

ASSETS = Path(__file__).parents[1] / "assets"
IMAGE_SIZE = 640
STAGES = ("stage2", "stage3", "stage4", "stage5")
KERNEL_SIZES = (3, 5, 7, 9)
SAMPLE, BLOCK = "few.jpg", "stage3"


def shapes_of(model: nn.Module) -> dict[str, str]:
    """Return the shapes of what modules give for an image, C × H², by their names."""
    shapes: dict[str, str] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: shapes.update({name: f"{output.shape[1]} × {output.shape[2]}²"})
        )
        for name, module in model.named_modules()
        if name.startswith(("backbone.", "neck.")) and name.count(".") == 1
    ]
    with torch.inference_mode():
        model(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    for hook in hooks:
        hook.remove()
    return shapes


def draw_network(path: Path) -> None:
    """Draw backbone, neck and head: a column for each resolution."""
    model = create_model("yolo_master_n").eval()
    modules, shapes = dict(model.named_modules()), shapes_of(model)
    drawing = Drawing(860, 480, "YOLO-Master-N: backbone with four ES-MoE blocks, neck and head")
    left, width = [20, 120, 240, 390, 540, 690], 120

    def piece(column: int, top: float, name: str) -> None:
        way = "top-down" if "top_down" in name else "bottom-up"
        drawing.box(left[column], top, width, 60, [way, type(modules[name]).__name__, shapes[name]], PLAIN)

    drawing.box(20, 60, 80, 60, ["image", f"3 × {IMAGE_SIZE}²"], PLAIN)
    drawing.box(120, 60, 100, 60, ["stem", shapes["backbone.stem"]], PLAIN)
    drawing.arrow((100, 90), (119, 90))
    drawing.arrow((220, 90), (239, 90))
    for column, stage in enumerate(STAGES, start=2):
        blocks = type(modules[f"backbone.{stage}.blocks"]).__name__
        drawing.text(left[column] + width / 2, 22, f"{stage}: {shapes[f'backbone.{stage}']}")
        drawing.box(left[column], 32, width, 40, ["halve, then", blocks], PLAIN)
        drawing.box(left[column], 76, width, 40, ["ES-MoE", "2 of 4 experts"], EXPERTS)
        if column < 5:
            drawing.arrow((left[column] + width, 96), (left[column + 1] - 1, 96))
    # Coarse to fine, then back.
    piece(4, 180, "neck.top_down4")
    piece(3, 180, "neck.top_down3")
    piece(4, 290, "neck.bottom_up4")
    piece(5, 290, "neck.bottom_up5")
    middle = [place + width / 2 for place in left]
    for column in (3, 4):
        drawing.arrow((middle[column], 116), (middle[column], 179))
    drawing.arrow((middle[5] - 20, 116), (middle[5] - 20, 210), (left[4] + width + 1, 210))
    drawing.arrow((middle[5] + 20, 116), (middle[5] + 20, 289))
    drawing.arrow((left[4], 210), (left[3] + width + 1, 210))
    drawing.arrow((middle[4], 240), (middle[4], 289))
    drawing.arrow((middle[3] + 20, 240), (middle[3] + 20, 320), (left[4] - 1, 320))
    drawing.arrow((left[4] + width, 320), (left[5] - 1, 320))
    for column, stride in ((3, 8), (4, 16), (5, 32)):
        drawing.box(left[column], 400, width, 60, ["head", f"stride {stride}", "boxes, scores"], PLAIN)
        drawing.arrow((middle[column], 240 if column == 3 else 350), (middle[column], 399))
    for x, y, text in ((120, 150, "backbone"), (310, 214, "neck"), (310, 434, "head")):
        drawing.text(x, y, text)
    drawing.save(path)


def decision(block: str) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and weights of the experts of a block for the sample."""
    runner = Runner(ASSETS / "demo" / "cells.onnx")
    outputs = runner.run(runner._prepare(read_pixels(ASSETS / "demo" / SAMPLE), runner.image_size))
    (logits,) = (torch.from_numpy(value) for name, value in outputs.items() if f".{block}." in name)
    weights = hard_top_k(logits, runner.metadata["config"]["top_k"])
    return logits.softmax(dim=1)[0].numpy(), weights[0].numpy()


def draw_block(path: Path) -> None:
    """Draw the ES-MoE block with its decision."""
    probabilities, weights = decision(BLOCK)
    drawing = Drawing(860, 330, "The ES-MoE block: a router, four experts of which two run, and their sum")
    drawing.box(20, 165, 90, 60, ["features x", "C × H × W"], PLAIN)
    drawing.box(150, 20, 210, 60, ["router", "mean of each channel,", "C → C / 8 → SiLU → E"], PLAIN)
    drawing.box(400, 20, 210, 60, ["gate", "the 2 largest, and", "softmax among them"], PLAIN)
    drawing.arrow((65, 165), (65, 50), (149, 50))
    drawing.arrow((360, 50), (399, 50))
    drawing.arrow((610, 50), (685, 50), (685, 159))
    drawing.text(734, 54, "weights w")
    for index in weights.argsort(kind="stable"):  # the idle ones first: their lines lie below
        kernel, top, idle = KERNEL_SIZES[index], 100 + 56 * index, weights[index] == 0
        lines = [f"{kernel} × {kernel} depthwise, 1 × 1, norm, SiLU", f"p = {probabilities[index]:.3f}"]
        lines[1] += ": does not run" if idle else f", w = {weights[index]:.3f}"
        drawing.box(220, top, 300, 46, lines, IDLE if idle else EXPERTS)
        drawing.arrow((110, 195), (160, 195), (160, top + 23), (219, top + 23), idle=idle)
        drawing.arrow((520, top + 23), (580, top + 23), (580, 195), (639, 195), idle=idle)
    drawing.box(640, 160, 90, 70, ["Σ w · expert", "over the", "selected"], PLAIN)
    drawing.box(760, 165, 80, 60, ["norm,", "SiLU"], PLAIN)
    drawing.arrow((730, 195), (759, 195))
    drawing.arrow((800, 225), (800, 280))
    drawing.text(800, 300, "output y")
    drawing.save(path)


if __name__ == "__main__":
    draw_network(ASSETS / "network.svg")
    draw_block(ASSETS / "es-moe.svg")
