# SPDX-License-Identifier: Apache-2.0
"""Pruning removes what contributes least, keeps its bounds, and says what it did."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE, create_model, prune
from moe_vision.diagnostics import count_flops, count_parameters
from moe_vision.models import YOLOMaster, load_checkpoint, save_checkpoint
from moe_vision.pruning.contribution import contributions
from tests.exporting.files import alive
from tests.strategies import assert_same, make_images, make_layer


def count_experts(model: nn.Module) -> int:
    return sum(len(layer.experts) for layer in model.modules() if isinstance(layer, ESMoE))


def make_network(**changes: Any) -> YOLOMaster:
    torch.manual_seed(0)
    return alive(create_model("yolo_master_n", task="classify", num_classes=3, image_size=64, **changes))


def test_contributions_are_what_removal_changes() -> None:
    layer = make_layer(num_experts=4, top_k=2)
    x = make_images(7, 4, 6, 5)
    measured = contributions(layer, [(x[:4], "targets"), (x[4:], "targets")], [""])[""]
    y = layer(x)
    assert len({*layer.routing.indices.flatten().tolist()}) > 2
    for gone in range(4):
        hook = layer.router.register_forward_hook(
            lambda _m, _i, logits, gone=gone: logits.index_fill(1, torch.tensor([gone]), -1e30)
        )
        change = (layer(x) - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
        hook.remove()
        assert measured[gone] == pytest.approx(change.mean().item(), rel=1e-4, abs=1e-7)


def test_round_trip(tmp_path: Path) -> None:
    blocks = [f"backbone.stage{stage}.moe" for stage in (2, 3, 4, 5)]
    model = make_network(kept_experts=dict.fromkeys(blocks, (0, 2, 3)))  # it was pruned before
    batches = [torch.rand(2, 3, 64, 64)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned, report = prune(model, batches, keep=2)
    assert count_experts(model) == 12
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert count_experts(pruned) == 8
    assert sorted(removal.layer for removal in report.removed) == blocks
    assert report.parameters == (count_parameters(model), count_parameters(pruned))
    assert report.flops == (count_flops(model, (3, 64, 64)), count_flops(pruned, (3, 64, 64)))
    for layer, expert, _ in report.removed:
        stays = tuple(index for index in (0, 2, 3) if index != expert)  # by the numbers they had at first
        assert pruned.config.kept_experts[layer] == stays
        assert pruned.get_submodule(layer).experts.kernel_sizes == tuple(3 + 2 * index for index in stays)

    save_checkpoint(pruned, tmp_path / "pruned.safetensors")
    loaded = load_checkpoint(tmp_path / "pruned.safetensors")
    assert loaded.config == pruned.config
    assert_same(loaded(batches[0]), pruned(batches[0]))


def test_norms_are_recalibrated() -> None:
    layer = make_layer(num_experts=4, top_k=2).eval()
    x = make_images(16, 4, 6, 5)
    pruned, _ = prune(layer, [x], keep=3)
    seen: list[Tensor] = []
    pruned.norm.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    pruned(x)
    torch.testing.assert_close(pruned.norm.running_mean, seen[0].mean(dim=(0, 2, 3)), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(pruned.norm.running_var, seen[0].var(dim=(0, 2, 3)), rtol=1e-2, atol=1e-3)
    assert pruned.norm.momentum == layer.norm.momentum
    assert not any(module.training for module in pruned.modules())


def test_the_removal_that_costs_too_much_is_taken_back() -> None:
    layer = make_layer(num_experts=5, top_k=2)
    settings = {"max_drop": 0.25, "evaluate": lambda model: 0.1 * len(model.experts)}
    pruned, report = prune(layer, [make_images(4, 4, 6, 5)], **settings)
    assert len(pruned.experts) == 3
    assert report.accuracy == pytest.approx((0.5, 0.3))
    assert "the accuracy would be 0.2000, more than max_drop=0.25 below 0.5000" in str(report)


def test_nothing_is_pruned_where_nothing_can_be() -> None:
    x = make_images(4, 4, 6, 5)
    layer = make_layer(num_experts=3, top_k=3)
    pruned, report = prune(layer, [x], max_drop=0.5, evaluate=lambda model: 1.0)
    assert report.removed == ()
    assert str(report).startswith(
        "nothing was pruned\nstopped: in every layer all experts are active for every image (K = E)"
    )
    assert torch.equal(pruned(x), layer(x))

    layer = make_layer(num_experts=4, top_k=2)
    pruned, report = prune(layer, [x], max_drop=0.0, evaluate=lambda model: len(model.experts))
    assert report.removed == ()
    assert "stopped: without expert" in str(report)
    assert torch.equal(pruned(x), layer(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "keep or max_drop must be given"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"max_drop": 0.1}, "evaluate must be given with max_drop"),
        ({"max_drop": -1.0, "evaluate": lambda model: 1.0}, "max_drop must be at least 0, got -1.0"),
        ({"keep": 2, "loader": iter([])}, "loader must be a DataLoader or a list of batches"),
        ({"keep": 2, "model": nn.Linear(1, 1)}, "model must hold at least one ESMoE, got a Linear"),
    ],
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(**{"model": make_layer(), "loader": [make_images(2, 4, 6, 5)], **settings})


def test_a_configuration_that_names_what_is_not_there() -> None:
    with pytest.raises(
        ValueError, match=r"kept_experts must name blocks with experts, backbone.stage2.moe, .* got 'x'"
    ):
        make_network(kept_experts={"x": (0,)})
    with pytest.raises(ValueError, match="kept_experts must map names of blocks to the experts that stayed"):
        make_network(kept_experts=[1])
