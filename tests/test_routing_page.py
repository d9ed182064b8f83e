# SPDX-License-Identifier: Apache-2.0
"""Which images of a data set go to which experts, and the page that shows it."""

import json
import re
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from moe_vision import ESMoE, create_model
from moe_vision.data import DetectionPipeline, ShapeScenes
from moe_vision.diagnostics import measure_flops
from moe_vision.models import YOLOMaster
from moe_vision.visualize import inspect_routing, routing_page
from tests.exporting.files import alive

SIZE = 64


def images_of(scenes: ShapeScenes) -> Tensor:
    return torch.stack([image for image, _ in DetectionPipeline(scenes, SIZE)])


@pytest.fixture(scope="module")
@torch.no_grad()
def model() -> YOLOMaster:
    """A network whose routers prefer no expert on the mean, so that images select different ones."""
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=4, class_names=ShapeScenes.classes, image_size=SIZE)
    alive(model)
    for block in (module for module in model.modules() if isinstance(module, ESMoE)):
        model(images_of(ShapeScenes(5, image_size=SIZE)))
        block.router.fc2.bias -= block.routing.logits.mean(dim=0)
    return model


def test_what_is_said_of_each_image_is_what_runs(model: YOLOMaster) -> None:
    scenes = ShapeScenes(5, image_size=SIZE)
    found = inspect_routing(model, scenes, batch_size=2, num_favourites=3)
    images = images_of(scenes)
    assert len(set(found.flops)) > 1
    assert found.flops == measure_flops(model, images)

    model(images)
    for name, experts in found.favourites.items():
        routing = model.get_submodule(name).routing
        for expert, favourites in enumerate(experts):
            chosen = routing.probs[(routing.indices == expert).any(dim=1), expert]
            best = chosen.sort(descending=True).values[:3].tolist()
            assert [probability for probability, _ in favourites] == pytest.approx(best, abs=1e-4)
            assert [routing.probs[index, expert].item() for _, index in favourites] == pytest.approx(best, abs=1e-4)
    crowded = sum(len(scenes[index][1]["labels"]) in range(8, 16) for index in range(5))
    assert found.layers[name].by_objects["8-15"].images == crowded > 0


def test_the_page_holds_all_it_needs(model: YOLOMaster) -> None:
    scenes = ShapeScenes(3, image_size=SIZE)
    found = inspect_routing(model, scenes)
    page = routing_page(found, scenes, title="<b>weights</b>", subtitle="three scenes")
    assert "&lt;b&gt;weights" in page
    assert "<b>" not in page
    assert "$" not in page
    assert set(re.findall(r'(?:src|href)="(.{15})', page)) == {"data:image/jpeg"}
    assert "url(" not in page
    shown = {index for experts in found.favourites.values() for favourites in experts for _, index in favourites}
    assert len(set(re.findall(r'src="([^"]*)"', page))) == len(shown) == 3
    charts = [ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", page)]
    assert len(charts) == 4 * 3 + 1  # usage, class and number of objects of each block; operations
    for name in found.layers:
        assert page.count(name) == 4
    json.dumps(found.as_dict())


def test_a_network_without_experts() -> None:
    dense = create_model("yolo_master_n", num_classes=4, placement="none")
    with pytest.raises(ValueError, match="model must have experts, got a network without any"):
        inspect_routing(dense, ShapeScenes(1, image_size=SIZE))
