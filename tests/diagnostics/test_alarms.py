# SPDX-License-Identifier: Apache-2.0
"""Alarms go off where they should, and are silent where all is well."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_vision import ESMoE, auxiliary_loss
from moe_vision.diagnostics import RoutingMonitor, find_alarms
from moe_vision.diagnostics.alarms import REMEDIES
from tests.strategies import force_routing

KINDS_OF_IMAGES = 4


def make_batch(size: int = 64) -> tuple[Tensor, Tensor]:
    """Images of four kinds, which differ in the channel that is bright."""
    labels = torch.arange(size) % KINDS_OF_IMAGES
    return torch.rand(size, 4, 6, 6) + 2 * F.one_hot(labels, 4)[:, :, None, None], labels


def alarms_after_training(auxiliary: Callable[[ESMoE], Tensor], steps: int = 40) -> set[str]:
    """Train a tiny classifier, and return the alarms of its last steps."""
    torch.manual_seed(0)
    layer = ESMoE(4, num_experts=4, top_k=1)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, KINDS_OF_IMAGES))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    with RoutingMonitor(model) as monitor:
        for step in range(steps):
            if step == steps - 4:
                monitor.start_epoch()
            images, labels = make_batch()
            loss = F.cross_entropy(model(images), labels) + auxiliary(layer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {alarm.kind for alarm in find_alarms(monitor.summary())}


def test_a_healthy_training_sets_off_none() -> None:
    assert alarms_after_training(lambda layer: auxiliary_loss(layer, balance=0.5)) == set()


def test_a_training_that_rewards_imbalance_sets_off_all_of_its_alarms() -> None:
    found = alarms_after_training(lambda layer: -auxiliary_loss(layer, balance=0.5))
    assert found == {"dead expert", "static routing", "collapse"}


@pytest.mark.parametrize(
    "auxiliary",
    [
        lambda layer: torch.zeros(()),
        lambda layer: auxiliary_loss(layer, balance=0.5).detach(),
        # Of the weights instead of the probabilities, as in eqs 12-13 of the paper.
        lambda layer: layer.routing.weights.mean(dim=0).var(),
    ],
)
def test_a_balance_loss_that_does_not_reach_the_router(auxiliary: Callable[[ESMoE], Tensor]) -> None:
    assert "no balance gradient" in alarms_after_training(auxiliary, steps=5)


def alarms_of(logits: list[list[float]], top_k: int) -> list[str]:
    layer = ESMoE(4, num_experts=len(logits[0]), top_k=top_k).eval()
    with RoutingMonitor(layer) as monitor:
        for _ in range(20):
            layer.gate(torch.tensor(logits))
    return [str(alarm) for alarm in find_alarms(monitor.summary())]


def test_what_is_said() -> None:
    said = alarms_of([[5.0, 1.0, 0.0]] * 4, top_k=2)
    assert said == [
        f": dead expert: 0.0% of images select expert 2, under 1.0%; {REMEDIES['dead expert']}",
        ": static routing: an image tells 0.000 nat of the expert it selects, under 0.020, 5% of what it could; "
        + REMEDIES["static routing"],
        f": collapse: expert 0 has 98% of the weight, more than 80%; {REMEDIES['collapse']}",
    ]


def test_a_layer_that_runs_all_its_experts_is_not_static() -> None:
    assert alarms_of([[1.0, 0.0]] * 4, top_k=2) == []


def test_few_images_say_nothing() -> None:
    layer = ESMoE(4, num_experts=4, top_k=1).eval()
    force_routing(layer, [9.0, 0.0, 0.0, 0.0])
    with RoutingMonitor(layer) as monitor:
        layer(torch.rand(8, 4, 6, 6))
    assert find_alarms(monitor.summary()) == []
    assert find_alarms(monitor.summary(), min_images=8) != []
