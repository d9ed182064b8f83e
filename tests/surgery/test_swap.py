# SPDX-License-Identifier: Apache-2.0
"""A swap: what is chosen, what is reported, and what of the model stays as it was."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

from moe_vision import ESMoE, auxiliary_loss, fuse, swap, unswap
from moe_vision.surgery import SharedZero, find_sites, is_depthwise
from tests.strategies import TOLERANCE, assert_same
from tests.surgery.families import FAMILIES, images, look_trained

CONVNEXT = FAMILIES["ConvNeXt"]


def test_chooses_stages_and_every_nth() -> None:
    model = timm.create_model("test_convnext", num_classes=5)
    names = [row.site.name for row in swap(model, stages=[2, 3], every=2, example=images(1)).replacements]
    assert names == ["stages.2.blocks.1.conv_dw", "stages.2.blocks.3.conv_dw", "stages.3.blocks.1.conv_dw"]
    assert sum(isinstance(module, ESMoE) for module in model.modules()) == 3


def test_reports_what_it_cost() -> None:
    model = CONVNEXT.make()
    before = sum(parameter.numel() for parameter in model.parameters())
    report = swap(model, stages=[3], example=images(1))
    # 24 channels: 3 more kernels of 49 with bias, and a router of 24 x 8 + 8 and 8 x 4 + 4.
    assert (report.before.parameters, report.after.parameters) == (before, before + 3 * 24 * 50 + 236)
    # A merged kernel costs what the dense one did: what is added is router and merging.
    assert report.after.flops - report.before.flops == 2 * (24 * 8 + 8 * 4) + 2 * 4 * 24 * 50
    assert "stages.3.blocks.0.conv_dw  Conv2d 7x7  DepthwiseESMoE 7 7 7 7, top 2  1,200 -> 5,036" in str(report)


def test_random_start_forgets() -> None:
    report = swap(CONVNEXT.make(), init="random", example=images(1))
    assert report.change > 1e-3
    block = FAMILIES["ResNet"].make()
    swap(block, stages=[2], init="random", example=images(1))
    assert isinstance(block.layer2[0], ESMoE)
    assert block(images(1)).shape == (1, 5)


def test_experts_behind_stages() -> None:
    model = FAMILIES["ResNet"].make()
    report = swap(model, find_sites(model, after_stages=True, example=images(1)), init="shared_zero", example=images(1))
    assert report.change == 0
    nn.init.ones_(model.layer4[0].scale)
    last, x = model.layer4[0].eval(), torch.rand(1, model.layer4[0].dense.conv1.in_channels, 4, 4)
    torch.testing.assert_close(last(x), last.dense(x) + last.moe(last.dense(x)))


@pytest.mark.parametrize("init", ["upcycle", "shared_zero"])
def test_keeps_modes_and_frozen_weights(init: str) -> None:
    model = FAMILIES["RepViT"].make().train()
    model.requires_grad_(False)
    model.stages[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    swap(model, init=init, example=images(1))
    assert {name: model.get_submodule(name).training for name in modes if _has(model, name)}.items() <= modes.items()
    assert not any(module.training for module in model.stages[0].modules())
    learning = {
        name.split(".token_mixer.")[-1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad
    }
    assert learning == (set() if init == "upcycle" else {"moe", "scale"})


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


@pytest.mark.parametrize("init", ["upcycle", "shared_zero"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype, init: str) -> None:
    model = FAMILIES["ConvNeXt"].make().to(dtype)
    dense, x = copy.deepcopy(model), images().to(dtype)
    swap(model, init=init, example=x)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad():
        assert_same(model(x), dense(x), TOLERANCE[dtype])


def test_channels_last_and_autocast() -> None:
    model = CONVNEXT.make().to(memory_format=torch.channels_last)
    dense, x = copy.deepcopy(model), images().to(memory_format=torch.channels_last)
    swap(model, example=x)
    with torch.no_grad():
        assert_same(model(x), dense(x), 1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(model(x), dense(x), 2e-2)


@pytest.mark.parametrize("init", ["upcycle", "shared_zero"])
def test_without_memory(init: str) -> None:
    with torch.device("meta"):
        model = timm.create_model("convnext_tiny")
    report = swap(model, init=init)
    assert (report.change, report.after.flops) == (None, None)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("family", ["MobileNetV3", "RepViT"])
def test_features_only(family: str) -> None:
    _, _, _, arguments = FAMILIES[family]
    model = look_trained(timm.create_model(FAMILIES[family].model_name, features_only=True, **arguments)).eval()
    expected = model(images(1))
    assert swap(model, example=images(1)).change <= 1e-5
    assert [level.shape for level in model(images(1))] == [level.shape for level in expected]


def test_models_of_others_by_predicate() -> None:
    model = look_trained(torchvision.models.shufflenet_v2_x0_5(num_classes=5)).eval()
    assert swap(model, is_depthwise, stages=None, example=images(1)).change <= 1e-5
    dense_block = swap(model, lambda name, module: name == "conv5", init="shared_zero", example=images(1))
    assert isinstance(model.conv5, SharedZero)
    assert dense_block.change == 0


def test_survives_copies_and_fusing() -> None:
    model = FAMILIES["RepViT"].make()
    swap(model, example=images(1))
    model.train()(images(2)).sum().backward()
    model.eval()
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fuse(model)):
            assert_same(twin(images(2)), model(images(2)), 1e-5)


def test_nothing_happens_where_one_site_fails() -> None:
    model = CONVNEXT.make()
    before = str(model)
    with pytest.raises(ValueError, match=r"kernel_sizes must be odd and positive, got 8"):
        swap(model, num_experts=2, kernel_sizes=(7, 8), example=images(1))
    assert str(model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 1}, "top_k must be at least 2 for init='upcycle', .* got 1; init='shared_zero' takes 1"),
        ({"top_k": 5}, r"top_k must be in \[1, num_experts=4\], got 5"),
        ({"init": "pad"}, "init must be one of upcycle, shared_zero, random, got 'pad'"),
        ({"init": "random", "perturb": 0.1}, "perturb must be 0 unless init is 'upcycle', got 0.1 with 'random'"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"stages": [7]}, r"sites must name at least one place .* 4 in stages \[0, 1, 2, 3\], of which none is left"),
        ({"sites": []}, "sites must name at least one place"),
    ],
)
def test_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swap(CONVNEXT.make(), **settings)


def test_a_single_expert_is_the_convolution() -> None:
    model = CONVNEXT.make()
    assert swap(model, num_experts=1, top_k=1, example=images(1)).change <= 1e-5


def test_blocks_are_not_upcycled() -> None:
    model = FAMILIES["ResNet"].make()
    with pytest.raises(ValueError, match=r"got 'upcycle' for 'layer1.0', a Bottleneck"):
        swap(model, example=images(1))
    sites = find_sites(model, after_stages=True, example=images(1))
    with pytest.raises(ValueError, match=r"init must be 'shared_zero' behind a stage, got 'random' for 'layer1.0'"):
        swap(model, sites, init="random", example=images(1))


def test_unswap_follows_the_model() -> None:
    model = CONVNEXT.make()
    report = swap(model, example=images(1))
    unswap(model.double().train(), report)
    conv = model.stages[0].blocks[0].conv_dw
    assert (conv.weight.dtype, conv.training) == (torch.float64, True)


def test_unswap_keeps_what_took_part() -> None:
    model = CONVNEXT.make()
    report = swap(model, init="shared_zero", example=images(1))
    with torch.no_grad():
        model.stages[0].blocks[0].conv_dw.dense.weight.fill_(1)
    (model(images(2)).sum() + auxiliary_loss(model)).backward()
    unswap(model, report)
    assert (model.stages[0].blocks[0].conv_dw.weight == 1).all()
