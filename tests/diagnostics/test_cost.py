# SPDX-License-Identifier: Apache-2.0
"""Parameters and operations: the figures of the model table."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moe_vision import ESMoE, create_model
from moe_vision.diagnostics import Cost, count_flops, count_parameters


def test_dense_model_is_all_active() -> None:
    model = create_model("yolo_master_n", placement="none")
    parameters, flops = count_parameters(model), count_flops(model, (3, 64, 64))
    assert parameters.total == parameters.active == sum(p.numel() for p in model.parameters())
    assert flops.total == flops.active


def test_a_convolution_counts_each_multiplication_with_its_addition_as_2() -> None:
    # 5 x 7 positions, 4 outputs, 3 x 3 x 3 products each, times 2
    assert count_flops(nn.Conv2d(3, 4, 3, padding=1), (3, 5, 7)).total == 5 * 7 * 4 * 27 * 2


@pytest.mark.parametrize("dispatch", ["grouped", "per_image"])
def test_active_is_what_ran_on_the_mean_over_pairs_of_experts(dispatch: str) -> None:
    layer = ESMoE(16, num_experts=3, top_k=2, dispatch=dispatch).eval()
    ran = []
    for pair in ((0, 1), (0, 2), (1, 2)):
        with torch.no_grad():
            layer.router.fc2.weight.zero_()
            layer.router.fc2.bias.copy_(torch.tensor([float(index in pair) for index in range(3)]))
        with FlopCounterMode(display=False) as counter:
            layer(torch.rand(1, 16, 12, 12))
        ran.append(counter.get_total_flops())
    assert count_flops(layer, (16, 12, 12)).active == sum(ran) / 3


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(ESMoE(8, dispatch="grouped")).train()
    count_flops(model, (8, 6, 6))
    assert model.training
    assert model[0].dispatch == "grouped"
    assert next(model.parameters()).device.type == "cpu"


def test_nested_and_root_layers_count_the_same() -> None:
    layer = ESMoE(8, top_k=1)
    assert count_flops(layer, (8, 6, 6)) == count_flops(nn.Sequential(nn.Sequential(layer)), (8, 6, 6))
    assert isinstance(count_parameters(layer), Cost)
