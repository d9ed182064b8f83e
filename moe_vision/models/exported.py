# SPDX-License-Identifier: Apache-2.0
"""A network in an ONNX file as a module, so that what works on a network in eval works on its file too."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_vision.models.config import YOLOMasterConfig
from moe_vision.models.detect_head import DetectOutput
from moe_vision.models.segment_head import SegmentOutput
from moe_vision.runtime import Runner
from moe_vision.runtime.runner import ROUTING


class ExportedNetwork(nn.Module):
    """A file of `moe_vision.export` with what `moe_vision.predict` and `moe_vision.train.evaluate` need of a network.

    It has no parameters, runs on the CPU and can't be trained.

    Args:
        path: The file.

    Shape:
        - Input: images (B, 3, H, W) in [0, 1]
        - Output: what the network returns in eval; of a file with suppression, what it left, filled up with scores of 0

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no network of `moe_vision.export`.

    Examples:
        >>> from moe_vision.models import ExportedNetwork
        >>> ExportedNetwork("runs/none.onnx")
        Traceback (most recent call last):
        ...
        FileNotFoundError: file runs/none.onnx does not exist
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.runner = Runner(path, threads=torch.get_num_threads())
        self.config = YOLOMasterConfig.from_json(json.dumps(self.runner.metadata["config"]))
        self.class_names = tuple(self.runner.class_names)
        self.image_size = self.runner.image_size

    def forward(self, images: Tensor) -> DetectOutput | SegmentOutput | Tensor:
        """Return the outputs for all images, which are run one after the other."""
        outputs = [self._outputs(image[None]) for image in images]
        if self.config.task == "classify":
            return torch.cat([one["output"] for one in outputs])
        stacked = {name: _stack([one[name] for one in outputs]) for name in outputs[0]}
        return SegmentOutput(**stacked) if self.config.task == "segment" else DetectOutput(**stacked)

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        found = self.runner.run(image.numpy())
        outputs = {name: torch.from_numpy(value) for name, value in found.items() if not name.startswith(ROUTING)}
        return outputs if "detected_boxes" not in outputs else self._before_suppression(outputs)

    def _before_suppression(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put what a file with suppression found in an image into the form that others return."""
        found = {name.removeprefix("detected_"): value[None] for name, value in outputs.items()}
        scores = torch.zeros(1, found["boxes"].shape[1], self.config.num_classes)
        scores.scatter_(2, found["labels"][..., None], found["scores"][..., None])
        before = {"boxes": found["boxes"], "scores": scores}
        if self.config.task == "segment":
            before |= {"coefficients": found["coefficients"], "prototypes": outputs["prototypes"]}
        return before


def device_of(network: nn.Module) -> torch.device:
    """Return where a network is; one in a file is on the CPU."""
    return next(network.parameters(), torch.empty(0, device="cpu")).device


def _stack(values: list[Tensor]) -> Tensor:
    """Join the outputs of images (1, N, ...), filled up with zeros to the most boxes of an image."""
    most = max(value.shape[1] for value in values)
    joined = values[0].new_zeros(len(values), most, *values[0].shape[2:])
    for row, value in zip(joined, values, strict=True):
        row[: value.shape[1]] = value[0]
    return joined
