# SPDX-License-Identifier: Apache-2.0
"""Numbers of parameters: a change of architecture can't go unnoticed."""

import pytest
from torch import nn

from moe_vision import create_model
from tests.models.reference_detector import RELEASED


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("num_classes", "expected"), [(80, 2_844_648), (10, 2_814_406)])
def test_paper(num_classes: int, expected: int) -> None:
    assert count(create_model("yolo_master_n", num_classes=num_classes, variant="paper")) == expected


@pytest.mark.parametrize(
    ("num_classes", "expected"), [(80, 2_694_364), (10, 2_664_122), (3, 2_662_757), (1, 2_662_367)]
)
def test_released(num_classes: int, expected: int) -> None:
    assert count(create_model("yolo_master_n", num_classes=num_classes, **RELEASED)) == expected


def test_parts_of_the_released_network() -> None:
    model = create_model("yolo_master_n", **RELEASED)
    backbone, neck = model.backbone, model.neck
    assert count(backbone.stem) == 464
    stages = [backbone.stage2, backbone.stage3, backbone.stage4, backbone.stage5]
    assert [(count(stage.downsample), count(stage.blocks), count(stage.moe)) for stage in stages] == [
        (4_672, 6_640, 18_659),
        (36_992, 26_080, 62_915),
        (147_712, 180_864, 62_915),
        (295_424, 689_408, 228_227),
    ]
    paths = [
        neck.top_down4,
        neck.top_down3,
        neck.downsample3,
        neck.bottom_up4,
        neck.downsample4,
        neck.bottom_up5,
    ]
    assert [count(path) for path in paths] == [119_808, 34_304, 36_992, 95_232, 147_712, 119_808]
    assert count(model.head) == 379_536


@pytest.mark.parametrize("num_classes", [64, 128, 256])
def test_number_of_classes_changes_class_towers_alone(num_classes: int) -> None:
    """A network whose number of classes equals one of its widths before scaling is scaled all the same."""

    def shapes(classes: int) -> dict[str, tuple[int, ...]]:
        state = create_model("yolo_master_n", num_classes=classes).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items() if "class_towers" not in name}

    assert shapes(num_classes) == shapes(80)
    model = create_model("yolo_master_n", num_classes=num_classes)
    assert [tower[-1].out_channels for tower in model.head.class_towers] == [num_classes] * 3
    assert [tower[-1].in_channels for tower in model.head.class_towers] == [min(num_classes, 100)] * 3
