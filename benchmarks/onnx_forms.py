# SPDX-License-Identifier: Apache-2.0
"""Time of exported files in ONNX Runtime: unselected experts do not run (index) against all run (dense).

The images of a batch choose different pairs of experts: every pair comes first once, and the ratios are averaged over
the pairs. In the detector the routers, with random weights, choose for noise around colours.

    python benchmarks/onnx_forms.py [--rounds 7] [--threads 1]
"""

import argparse
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import onnxruntime
import torch
from measure import interleaved_medians, write_result
from torch import Tensor, nn

from moe_vision import DynamicRouter, ESMoE, create_model, export
from moe_vision.layers.esmoe import esmoe_layers

SIZES = ((64, 160), (128, 80), (128, 40), (256, 20))
BATCHES = (1, 5)
IMAGE_SIZE = 640
FORMS = ("dense", "index")


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def detector(scale: str) -> nn.Module:
    """Build a detector whose routers, with random weights, choose by the colour of an image."""
    model = create_model(f"yolo_master_{scale}", num_classes=80, expert_init="independent").eval()
    for layer in esmoe_layers(model).values():
        nn.init.normal_(cast(DynamicRouter, layer.router).fc2.weight)
    return model


def sessions(module: nn.Module, threads: int, **settings: Any) -> dict[str, onnxruntime.InferenceSession]:
    opened = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            path = Path(folder, f"{form}.onnx")
            export(module, path, sparse=form, **settings)
            opened[form] = session(path, threads)
    return opened


def times(opened: dict[str, onnxruntime.InferenceSession], images: Tensor, rounds: int) -> dict[str, float]:
    feed = {"images": images.numpy()}
    return interleaved_medians({form: lambda s=s: s.run(None, feed) for form, s in opened.items()}, rounds)


def colours_by_pair(layer: ESMoE, channels: int) -> list[Tensor]:
    """Return a colour (C, 1, 1) for each pair of experts, which the router answers with that pair."""
    colours = torch.randn(2000, channels, 1, 1) * 3
    chosen = layer.gate(layer.router(colours)).indices.sort(dim=1).values.tolist()
    found = {tuple(pair): colour for pair, colour in zip(chosen, colours, strict=True)}
    return [found[pair] for pair in sorted(found)]


def block_rows(channels: int, size: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    layer = ESMoE(channels, num_experts=4, top_k=2).eval()
    with torch.inference_mode():
        colours = colours_by_pair(layer, channels)
    opened = sessions(layer, threads)
    rows = []
    for batch in BATCHES:
        measured = []
        for first in range(len(colours)):
            chosen = torch.stack([colours[(first + 2 * image) % len(colours)] for image in range(batch)])
            measured.append(times(opened, torch.rand(batch, channels, size, size) + chosen, rounds))
        ms = {form: round(statistics.mean(row[form] for row in measured), 3) for form in FORMS}
        ratio = round(statistics.mean(row["index"] / row["dense"] for row in measured), 3)
        about = {"what": "block", "channels": channels, "size": size, "batch": batch, "pairs": len(colours)}
        rows.append({**about, "index/dense": ratio, "ms": ms})
        print(rows[-1], flush=True)
    return rows


def detector_rows(rounds: int, threads: int, images: int = 6) -> list[dict[str, Any]]:
    opened = sessions(detector("n"), threads, image_size=64)
    rows = []
    for batch in BATCHES:
        noise = torch.rand(images, batch, 3, IMAGE_SIZE, IMAGE_SIZE) / 2 + torch.rand(images, batch, 3, 1, 1) / 2
        measured = [times(opened, one, rounds) for one in (noise if batch == 1 else noise[:1])]
        ms = {form: round(statistics.mean(row[form] for row in measured), 3) for form in FORMS}
        ratio = round(statistics.mean(row["index"] / row["dense"] for row in measured), 3)
        rows.append({"what": "yolo_master_n", "size": IMAGE_SIZE, "batch": batch, "index/dense": ratio, "ms": ms})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each kind (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime (%(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for sizes in SIZES for row in block_rows(*sizes, options.rounds, options.threads)]
    rows += detector_rows(options.rounds, options.threads)
    single = [row["index/dense"] for row in rows if row["what"] == "block" and row["batch"] == 1]
    about = {
        "layer": "ESMoE, E 4, K 2, kernels 3 5 7 9, fp32",
        "onnxruntime": {"version": version("onnxruntime"), "threads": options.threads},
        "block, batch 1, median over sizes": statistics.median(single),
    }
    print("written to", write_result(f"onnx_forms-{options.threads}", rows, **about).name)


if __name__ == "__main__":
    main()
