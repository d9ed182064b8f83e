# SPDX-License-Identifier: Apache-2.0
"""Files as they are released: names, layout and pickled networks, written from the published names alone."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_vision.models import YOLOMaster, YOLOMasterConfig
from tests.models.reference_detector import reference_facts
from tests.reference_weights import fill

# Number of each layer that has tensors, in the network with ES-MoE blocks and in v0.1, which has none in stage 2.
PLACES = {
    "backbone.stem": (0, 0),
    "backbone.stage2.downsample": (1, 1),
    "backbone.stage2.blocks": (2, 2),
    "backbone.stage2.moe": (3, None),
    "backbone.stage3.downsample": (4, 3),
    "backbone.stage3.blocks": (5, 4),
    "backbone.stage3.moe": (6, 5),
    "backbone.stage4.downsample": (7, 6),
    "backbone.stage4.blocks": (8, 7),
    "backbone.stage4.moe": (9, 8),
    "backbone.stage5.downsample": (10, 9),
    "backbone.stage5.blocks": (11, 10),
    "backbone.stage5.moe": (12, 11),
    "neck.top_down4": (15, 14),
    "neck.top_down3": (18, 17),
    "neck.downsample3": (19, 18),
    "neck.bottom_up4": (21, 20),
    "neck.downsample4": (22, 21),
    "neck.bottom_up5": (24, 23),
    "head": (25, 24),
}
CLASSIFY_HEAD = (13, 12)
# What our names are called there, by kind of module; the order matters.
ES_MOE = {
    "router.fc1": "routing.routing_network.0", "router.fc2": "routing.routing_network.2",
    ".conv_dw": ".conv.depthwise", ".conv_pw": ".conv.pointwise", ".norm.": ".conv.bn.",
}  # fmt: skip
POINTWISE_MOE = {
    "router.conv1": "routing.router.0", "router.norm1": "routing.router.1", "router.conv2": "routing.router.3",
    "router.norm2": "routing.router.4", ".conv1": ".conv.0", ".norm1": ".conv.1", ".conv2": ".conv.3",
    ".norm2": ".conv.4",
}  # fmt: skip
HEAD = {
    "detection.": "", "box_towers.": "cv2.", "coefficient_towers.": "cv4.", "norm.": "bn.",
    "prototypes.0": "proto.cv1", "prototypes.1": "proto.upsample", "prototypes.2": "proto.cv2",
    "prototypes.3": "proto.cv3", "bins": "dfl.conv.weight",
}  # fmt: skip
OTHER = {"norm.": "bn.", "conv1.": "cv1.", "conv2.": "cv2.", "conv3.": "cv3.", "blocks.": "m.", "position": "pe"}
CLASS_TOWER = {"0": "0.0", "1": "0.1", "2": "1.0", "3": "1.1", "4": "2"}


def released_name(name: str, config: YOLOMasterConfig) -> str:
    """Return the name under which our tensor is released."""
    v0_1 = config.block == "pointwise"
    place = next(place for place in PLACES if name.startswith(f"{place}."))
    rest = name.removeprefix(f"{place}.")
    if place.endswith("moe"):
        table = POINTWISE_MOE if v0_1 else ES_MOE
        rest = rest.replace("norm.", "norm.0.", 1) if rest.startswith("norm.") else _replaced(rest, table)
    elif place == "head":
        rest = re.sub(r"class_towers\.(\d)\.(\d)", lambda m: f"cv3.{m[1]}.{CLASS_TOWER[m[2]]}", _replaced(rest, HEAD))
    else:
        rest = _replaced(rest, OTHER)
    numbers = CLASSIFY_HEAD if place == "head" and config.task == "classify" else PLACES[place]
    return f"model.{numbers[v0_1]}.{rest}"


def _replaced(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def released_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if re.search(r"router\.fc\d\.weight", name):
        return (*shape, 1, 1)  # linear layers are convolutions there
    return (1, *shape, 1, 1) if name.endswith("bins") else shape


def released_state(model: YOLOMaster) -> dict[str, Tensor]:
    """Return the state_dict that one of our networks, with MoE blocks in the backbone, would be released as."""
    return released_names(model.state_dict(), model.config)


def released_names(state: dict[str, Tensor], config: YOLOMasterConfig) -> dict[str, Tensor]:
    return {
        released_name(name, config): tensor.reshape(released_shape(name, tuple(tensor.shape)))
        for name, tensor in state.items()
    }


def fixture_state(fixture: str) -> dict[str, Tensor]:
    """Return the state_dict that a fixture was measured with."""
    state = {}
    for key, shape in reference_facts(fixture)["state_dict"].items():
        values = np.arange(16, dtype=np.float32).reshape(shape) if "dfl" in key else fill(key, tuple(shape))
        state[key] = torch.from_numpy(values)
    return state


def renumbered(state: dict[str, Tensor], first: int, step: int = 1) -> dict[str, Tensor]:
    """Move the layers from the number ``first`` on."""
    moved = {}
    for key, tensor in state.items():
        _, number, rest = key.split(".", 2)
        moved[f"model.{int(number) + step * (int(number) >= first)}.{rest}"] = tensor
    return moved


class Layer(nn.Module):
    """A layer of a package that will not be there when the file is read."""


def save_pickled(
    state: dict[str, Tensor],
    path: Path,
    attributes: dict[str, dict[str, Any]] | None = None,
    key: str = "ema",
    **others: Any,
) -> None:
    """Write a whole network in half precision, made of classes of a package that exists for this moment only.

    ``attributes`` are those of the modules, by their names, "" for the network.
    """
    module = ModuleType("ultralytics.nn.tasks")
    module.Layer = type("Layer", (Layer,), {"__module__": module.__name__})
    root = module.Layer()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        owner = root
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, module.Layer())
            owner = getattr(owner, parent)
        if "running" in last or last == "num_batches_tracked":
            owner.register_buffer(last, tensor.clone())
        else:
            owner.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))
    for name, values in (attributes or {}).items():
        owner = root.get_submodule(name)
        owner.register_buffer("expert_usage_counts", torch.zeros(3), persistent=False)
        for attribute, value in values.items():
            setattr(owner, attribute, value)
    with pytest.MonkeyPatch.context() as patch:
        for package in ("ultralytics", "ultralytics.nn"):
            patch.setitem(sys.modules, package, ModuleType(package))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"epoch": -1, "ema": None, key: root.half(), **others}, path)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call
