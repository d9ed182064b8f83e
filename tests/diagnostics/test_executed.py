# SPDX-License-Identifier: Apache-2.0
"""Operations that ran against operations by arithmetic: dense the total, sparse what the router selected."""

import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE, create_model
from moe_vision.diagnostics import count_flops, measure_flops
from moe_vision.models import YOLOMaster
from tests.strategies import make_images, make_layer

# Channels and side of the feature map of each block of the n detector, for an image of 64 x 64.
BLOCKS = {
    "backbone.stage2.moe": (64, 16),
    "backbone.stage3.moe": (128, 8),
    "backbone.stage4.moe": (128, 4),
    "backbone.stage5.moe": (256, 2),
}


def idle_flops(layer: ESMoE, channels: int, side: int) -> list[int]:
    """What the experts that each image did not select would have cost: a k x k and a 1 x 1 convolution each."""
    sizes = [2 * side**2 * (channels * k**2 + channels**2) for k in (3, 5, 7, 9)]
    return [sum(sizes) - sum(sizes[index] for index in selected) for selected in layer.routing.indices.tolist()]


def pictures() -> Tensor:
    """Six images of 64 x 64 that differ in brightness and contrast."""
    noise = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return noise * torch.linspace(0.1, 1, 6)[:, None, None, None]


@torch.no_grad()
def detector_that_tells_apart(images: Tensor) -> YOLOMaster:
    """The n detector; its routers' logits are centred on the images one block after the other."""
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=3).eval()
    for name in BLOCKS:
        layer = model.get_submodule(name)
        model(images)
        layer.router.fc2.bias -= layer.routing.logits.mean(dim=0)
    return model


@pytest.mark.parametrize("dispatch", ["dense", "grouped", "per_image"])
def test_a_layer_runs_what_its_router_selected(dispatch: str) -> None:
    layer = make_layer(16, num_experts=4, top_k=2, dispatch=dispatch)
    x = make_images(12, 16, 10, 10)
    layer(x)
    total = count_flops(layer, (16, 10, 10)).total
    expected = [total - idle for idle in idle_flops(layer, 16, 10)]
    assert len(set(expected)) > 2
    assert measure_flops(layer, x) == ([total] * 12 if dispatch == "dense" else expected)


def test_images_that_select_each_expert_equally_often_run_the_active_operations() -> None:
    layer = make_layer(8, num_experts=3, top_k=2)
    ran = []
    for pair in ((0, 1), (0, 2), (1, 2)):
        with torch.no_grad():
            layer.router.fc2.weight.zero_()
            layer.router.fc2.bias.copy_(torch.tensor([float(index in pair) for index in range(3)]))
        ran += measure_flops(layer, make_images(1, 8, 6, 6))
    assert count_flops(layer, (8, 6, 6)).active == sum(ran) / 3


def test_a_detector_runs_what_its_routers_selected() -> None:
    images = pictures()
    model = detector_that_tells_apart(images)
    total, expected = count_flops(model, (3, 64, 64)).total, []
    for image in images:
        model(image[None])
        idle = [idle_flops(model.get_submodule(name), *shape)[0] for name, shape in BLOCKS.items()]
        expected.append(total - sum(idle))
    assert len(set(expected)) > 2
    assert measure_flops(model.train(), images) == expected
    assert model.training


def test_a_detector_that_runs_every_expert_runs_the_total() -> None:
    model = create_model("yolo_master_n", num_classes=3)
    for name in BLOCKS:
        model.get_submodule(name).dispatch = "dense"
    assert measure_flops(model, pictures()[:2]) == [count_flops(model, (3, 64, 64)).total] * 2


def test_attention_on_the_cpu_counts() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    # 2 heads, 64 queries times 64 keys of 32 numbers, and once more for the values
    assert measure_flops(Attention(), torch.rand(3, 2, 64, 32)) == [2 * 2 * (2 * 64 * 64 * 32)] * 3


def test_no_images() -> None:
    assert measure_flops(nn.Conv2d(3, 4, 1), torch.rand(0, 3, 8, 8)) == []
