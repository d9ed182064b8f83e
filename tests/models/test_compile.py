# SPDX-License-Identifier: Apache-2.0
"""Networks under torch.compile: one graph without a break, for every batch of two images or more and every size."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE
from moe_vision.layers.area_attention import AreaBlock
from moe_vision.layers.convolution import ConvNormAct
from moe_vision.models import YOLOMaster
from tests.models.reference_detector import reference_network

FIXTURES = {"detect": "det-n", "segment": "seg-n", "classify": "cls-n"}
SIZES = ((2, 64, 96), (3, 128, 64), (5, 96, 160))

pytestmark = [pytest.mark.compile, pytest.mark.slow]


def make_network(task: str, dispatch: str = "auto") -> YOLOMaster:
    """Return a network of three experts, of which images of different brightness choose different two."""
    model = reference_network(task, FIXTURES[task], top_k=2)
    for module in model.modules():
        if isinstance(module, ESMoE):
            module.dispatch = dispatch
    return model


def make_images(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width) * torch.linspace(0.2, 1, batch).view(-1, 1, 1, 1)


def assert_one_graph(model: nn.Module, reference: nn.Module, **options: Any) -> None:
    """Compile a network, run it on images of all sizes, and compare with what the reference makes of them."""
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, **options)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.set_grad_enabled(model.training):
        for size in SIZES:
            images = make_images(*size)
            torch.testing.assert_close(compiled(images), reference(images), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("task", "dispatch"),
    [
        ("classify", "auto"),
        ("segment", "static"),  # which holds all that a detector is made of
    ],
)
def test_one_graph(task: str, dispatch: str) -> None:
    assert_one_graph(make_network(task, dispatch), make_network(task), backend="eager")


def test_one_graph_in_training() -> None:
    model, reference = (make_network("classify").train() for _ in range(2))
    model.set_grad_checkpointing()
    assert_one_graph(model, reference, backend="eager")


@pytest.mark.timeout(900)
def test_inductor() -> None:
    # A block of attention and one of experts, since C++ takes minutes to compile for a network. Not "static": its
    # convolution has as many groups as there are images and selections, and inductor fixes groups.
    model = nn.Sequential(ConvNormAct(3, 32, 3, stride=2), AreaBlock(32), ESMoE(32)).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # or the attention, which starts as the identity, would not show
    assert_one_graph(model, copy.deepcopy(model))
