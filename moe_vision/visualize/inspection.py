# SPDX-License-Identifier: Apache-2.0
"""Which images of a data set go to which experts, and what they cost."""

import heapq
from dataclasses import dataclass
from typing import Any

import torch

from moe_vision.data import ClassificationPipeline, DetectionPipeline, build_loader
from moe_vision.diagnostics import Alarm, RoutingMonitor, RoutingSummary, count_expert_flops, find_alarms
from moe_vision.layers import DepthwiseExperts, ESMoE
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.layers.routing import Routing
from moe_vision.models import YOLOMaster
from moe_vision.models.yolo_master import check_image_size

Favourite = tuple[float, int]  # probability of an expert, index of the image


@dataclass(frozen=True)
class Inspection:
    """What `inspect_routing` found.

    Attributes:
        experts: Names of the experts of each layer, by its name.
        layers: How each layer routed the images.
        alarms: What is wrong with it.
        flops: Operations of each image.
        favourites: For each layer and expert the likeliest of the images that selected it, best first.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.visualize import inspect_routing
        >>> found = inspect_routing(create_model("yolo_master_n", num_classes=4), ShapeScenes(4, image_size=64))
        >>> len(found.flops), found.experts["backbone.stage2.moe"][0]
        (4, '0 (3 x 3)')
    """

    experts: dict[str, list[str]]
    layers: dict[str, RoutingSummary]
    alarms: list[Alarm]
    flops: list[int]
    favourites: dict[str, list[list[Favourite]]]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "layers": {name: layer.as_dict() for name, layer in self.layers.items()},
            "alarms": [alarm._asdict() for alarm in self.alarms],
            "flops": self.flops,
            "favourites": self.favourites,
        }


@torch.no_grad()
def inspect_routing(
    model: YOLOMaster,
    source: Any,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    num_favourites: int = 6,
) -> Inspection:
    """Run a network on a data set, and watch which images go to which experts.

    Args:
        model: The network; it is put into eval mode and left there.
        source: Images with their objects or classes, as `moe_vision.data.open_dataset` opens them.
        image_size: Side to which images are letterboxed (to classify: resized and cropped); the network's if None.
        batch_size: Images a forward.
        num_workers: Processes that load images.
        num_favourites: Images to name for each expert.

    Raises:
        ValueError: If the network has no experts, or ``image_size`` is not a multiple of 32.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.visualize import inspect_routing
        >>> found = inspect_routing(create_model("yolo_master_n", num_classes=4), ShapeScenes(4, image_size=64))
        >>> found.layers["backbone.stage5.moe"].experts_per_image
        2.0
    """
    blocks = esmoe_layers(model)
    if not blocks:
        raise ValueError("model must have experts, got a network without any (placement 'none')")
    size = image_size or model.image_size
    check_image_size(size)
    pipeline = ClassificationPipeline if model.config.task == "classify" else DetectionPipeline
    loader = build_loader(pipeline(source, size), batch_size, num_workers=num_workers)
    rest, expert_flops = count_expert_flops(model, (3, size, size))
    device = next(model.parameters()).device
    flops: list[int] = []
    favourites: dict[str, list[list[Favourite]]] = {name: [[] for _ in block.experts] for name, block in blocks.items()}
    model.eval()
    with RoutingMonitor(model, classes=source.classes) as monitor:
        for images, targets in loader:
            monitor.announce(targets)
            model(images.to(device))
            routings = {name: block.routing for name, block in blocks.items() if block.routing is not None}
            _collect_favourites(favourites, routings, len(flops), num_favourites)
            flops += _flops(routings, rest, expert_flops)
    layers = monitor.summary()
    experts = {name: _expert_names(block) for name, block in blocks.items()}
    return Inspection(experts, layers, find_alarms(layers), flops, favourites)


def _flops(routings: dict[str, Routing], rest: int, expert_flops: dict[str, list[int]]) -> list[int]:
    """Return the operations of each image of a batch: those of all images, and those of the experts it selects."""
    parts = [
        routing.selected.double().cpu() @ torch.tensor(expert_flops[name]).double()
        for name, routing in routings.items()
    ]
    return [rest + round(total) for total in torch.stack(parts).sum(dim=0).tolist()]


def _collect_favourites(
    favourites: dict[str, list[list[Favourite]]], routings: dict[str, Routing], first: int, count: int
) -> None:
    """Keep for each expert the images, numbered from ``first`` on, that select it with the highest probability."""
    for name, routing in routings.items():
        probabilities, selected = routing.probs.T.tolist(), routing.selected.T.tolist()
        for expert, (values, chosen) in enumerate(zip(probabilities, selected, strict=True)):
            seen = [(value, first + row) for row, value in enumerate(values) if chosen[row]]
            favourites[name][expert] = heapq.nlargest(count, favourites[name][expert] + seen)


def _expert_names(block: ESMoE) -> list[str]:
    if isinstance(block.experts, DepthwiseExperts):
        return [f"{index} ({size} x {size})" for index, size in enumerate(block.experts.kernel_sizes)]
    return [str(index) for index in range(len(block.experts))]
