# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints as a version wrote them, with what their networks answered, for all later versions to read.

`python -m tests.models.old_checkpoints` writes those of the version at hand to tests/fixtures, once for each format or
minor version; files that are there stay. Weights follow a short pattern, so that a file packs to some ten kB.
"""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moe_vision import __version__, create_model
from moe_vision.models import DetectOutput, SegmentOutput, YOLOMaster, save_checkpoint

FIXTURES = Path(__file__).parent.parent / "fixtures"
SMALLEST = {"width": 0.125, "max_channels": 512, "depth": 0.25, "mlp_ratio": 0.25}
TASKS = {"paper": "detect", "esmoe": "segment", "v0_1": "classify"}


def files() -> list[Path]:
    """The packed checkpoints of all versions."""
    return sorted(FIXTURES.glob("checkpoint-*.safetensors.gz"))


def unpack(path: Path, folder: Path) -> Path:
    """Write a checkpoint as its version did."""
    unpacked = folder / path.stem
    unpacked.write_bytes(gzip.decompress(path.read_bytes()))
    return unpacked


def answers(model: YOLOMaster) -> dict[str, np.ndarray]:
    """What a network says of two fixed images."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    images = torch.stack([torch.stack([y, x, y * x]), torch.stack([1 - x, (7 * y).sin().abs(), y])])
    with torch.no_grad():
        output: DetectOutput | SegmentOutput | Tensor = model.eval()(images)
    named = {"logits": output} if isinstance(output, Tensor) else output._asdict()
    return {name: value.numpy() for name, value in named.items()}


def fill(model: nn.Module) -> None:
    """Give every weight a value that repeats after 251, of a size that keeps features of the order of 1."""
    pattern = (torch.arange(251) * 89 % 251 - 125) / 72  # mean 0, variance 1
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name.endswith("bins"):
            continue
        values = pattern.repeat(math.ceil(value.numel() / 251))[: value.numel()].view(value.shape)
        if value.ndim > 1:
            values = values * math.sqrt(2 / value[0].numel())
        elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            values = 1 + values / 4
        else:
            values = values / 8
        value.copy_(values)


def main() -> None:
    for variant, task in TASKS.items():
        stem = f"checkpoint-{__version__}-{variant}-{task}"
        packed = FIXTURES / f"{stem}.safetensors.gz"
        if packed.exists():
            continue
        model = create_model("yolo_master_n", variant=variant, task=task, num_classes=2, image_size=64, **SMALLEST)
        fill(model)
        unpacked = FIXTURES / f"{stem}.safetensors"
        save_checkpoint(model, unpacked)
        packed.write_bytes(gzip.compress(unpacked.read_bytes(), mtime=0))
        unpacked.unlink()
        np.savez_compressed(FIXTURES / f"{stem}.npz", **answers(model))


if __name__ == "__main__":
    main()
