# SPDX-License-Identifier: Apache-2.0
"""Counting how often experts are selected."""

import torch
from torch import nn

from moe_vision import ESMoE
from moe_vision.diagnostics import ExpertUsage
from tests.strategies import force_routing, make_layer


def test_shares_over_several_forwards() -> None:
    model = nn.Sequential(make_layer(num_experts=3, top_k=2), make_layer(num_experts=2, top_k=1))
    usage = ExpertUsage(model)
    force_routing(model[1], [0.0, 5.0])
    for batch, logits in ((3, [5.0, 4.0, 0.0]), (1, [0.0, 4.0, 5.0])):
        force_routing(model[0], logits)
        model(torch.rand(batch, 4, 6, 6))
        usage.update()
    # First layer: 3 images choose 0 and 1, one chooses 1 and 2: 3, 4 and 1 of 8 selections.
    assert usage.shares() == {"0": [3 / 8, 4 / 8, 1 / 8], "1": [0.0, 1.0]}


def test_layers_without_a_forward_are_passed_over() -> None:
    model = nn.ModuleDict({"used": ESMoE(4).eval(), "idle": ESMoE(4).eval()})
    usage = ExpertUsage(model)
    usage.update()
    assert usage.shares() == {}
    model["used"](torch.rand(2, 4, 6, 6))
    usage.update()
    assert list(usage.shares()) == ["used"]


def test_the_record_is_left_as_it_is() -> None:
    layer = ESMoE(4).train()
    layer(torch.rand(2, 4, 6, 6))
    record = layer.routing
    ExpertUsage(layer).update()
    assert layer.routing is record
    assert record.probs.requires_grad
