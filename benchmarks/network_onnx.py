# SPDX-License-Identifier: Apache-2.0
"""Time of whole networks as ONNX files in ONNX Runtime: sparse, with every expert, without experts; beside peers.

Routers have random weights, and choose for noise around colours. A peer's file is the one that its package exports.
A file is made for one batch size and one image size; both sides run on the same images, in turn.

    python benchmarks/network_onnx.py [--scale n] [--batch 1] [--threads 1] [--peer yolo12n yolo11n] [--rounds 12]
"""

import argparse
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle, product
from pathlib import Path
from typing import Any

import onnxruntime
import peers
import torch
from measure import merge_row, quartiles
from onnx_forms import detector, session

from moe_vision import create_model, export
from moe_vision.diagnostics import Latency, compare_latency

KEY = ("scale", "batch", "threads")
IMAGE_SIZE = 640
IMAGES = 6


def sessions(scale: str, batch: int, threads: int, names: list[str]) -> dict[str, onnxruntime.InferenceSession]:
    """Export everything that is compared, and open it, by its name in the results."""
    model = detector(scale)
    twin = create_model(f"yolo_master_{scale}", num_classes=80, placement="none").eval()
    example = torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    opened = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ours.onnx")
        export(model, path, example=example, dynamic=False, sparse="index")
        opened["index"] = session(path, threads)
        export(model, path, example=example, dynamic=False, sparse="dense")
        opened["dense"] = session(path, threads)
        export(twin, path, example=example, dynamic=False)
        opened["twin"] = session(path, threads)
        for name in names:
            opened[name] = session(peers.exported(name, Path(folder), IMAGE_SIZE, batch), threads)
    return opened


def times(opened: dict[str, onnxruntime.InferenceSession], batch: int, rounds: int) -> dict[str, Latency]:
    """Time the files on the same images in turn, other images in each round."""
    colours = torch.rand(IMAGES, batch, 3, 1, 1)
    feeds = [(torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE) / 2 + colour / 2).numpy() for colour in colours]

    def call(file: onnxruntime.InferenceSession) -> Callable[[], object]:
        name, turn = file.get_inputs()[0].name, cycle(feeds)
        return lambda: file.run(None, {name: next(turn)})

    return compare_latency({name: call(file) for name, file in opened.items()}, rounds=rounds)


def row(scale: str, batch: int, threads: int, names: list[str], rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    names = [name for name in names if peers.is_peer(name, "detect", scale)]
    found = times(sessions(scale, batch, threads, names), batch, rounds)
    ratios = {
        f"index/{name}": round(found["index"].median / found[name].median, 3) for name in found if name != "index"
    }
    about: dict[str, Any] = {"scale": scale, "batch": batch, "threads": threads, "image_size": IMAGE_SIZE}
    if names:
        about["peers"] = peers.package_version()
    return {**about, "onnxruntime": version("onnxruntime"), "ratios": ratios, "ms": quartiles(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", nargs="+", default=["n"], choices=list("nsmlx"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images a file takes at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of ONNX Runtime")
    parser.add_argument("--peer", nargs="+", default=[], help="networks of a package installed by hand, like yolo12n")
    parser.add_argument("--rounds", type=int, default=12, help="timed forwards of each (%(default)s)")
    options = parser.parse_args()
    for case in product(options.scale, options.batch, options.threads):
        measured = row(*case, options.peer, options.rounds)
        path = merge_row("network_onnx", measured, key=KEY)
        print(case, measured["ratios"], {name: time["median"] for name, time in measured["ms"].items()}, flush=True)
    print("written to", path.name)


if __name__ == "__main__":
    main()
