# SPDX-License-Identifier: Apache-2.0
"""Sites: what is found in models of every kind, and how it is described."""

import pytest
import timm
import torchvision
from torch import nn

from moe_vision.surgery import Site, find_sites, is_depthwise, swap
from tests.surgery.families import FAMILIES, images


def test_describes_a_convolution() -> None:
    site = {site.name: site for site in find_sites(timm.create_model("tf_efficientnet_lite0"))}["blocks.2.0.conv_dw"]
    assert site == Site("blocks.2.0.conv_dw", "depthwise", 144, 144, 2, 5, 1, False, "same", "BatchNormAct2d", 2)


def test_describes_a_block() -> None:
    sites = find_sites(timm.create_model("resnet18"), example=images(1))
    assert len(sites) == 8
    assert sites[2] == Site("layer2.0", "block", 64, 128, 2, followed_by="BasicBlock", stage=2)


def test_places_behind_stages() -> None:
    sites = find_sites(timm.create_model("resnet18"), after_stages=True, example=images(1))
    assert [(site.name, site.kind, site.in_channels, site.stride) for site in sites] == [
        ("layer1.1", "after", 64, 1),
        ("layer2.1", "after", 128, 1),
        ("layer3.1", "after", 256, 1),
        ("layer4.1", "after", 512, 1),
    ]


@pytest.mark.parametrize("family", ["ConvNeXt", "RepViT", "MobileNetV3", "ResNet"])
def test_finds_the_same_inside_other_models(family: str) -> None:
    alone = FAMILIES[family]
    features = timm.create_model(alone.model_name, features_only=True, **alone.arguments)
    wrapped = nn.ModuleDict({"backbone": features, "head": nn.Conv2d(8, 8, 3)})
    expected = [(site.in_channels, site.stage) for site in find_sites(alone.make(), example=images(1))]
    found = find_sites(features, example=images(1))
    assert [(site.in_channels, site.stage) for site in found] == expected
    if family != "ResNet":  # whose blocks are found out by running the model
        assert [site.name for site in find_sites(wrapped)] == [f"backbone.{site.name}" for site in found]


def test_other_models_by_predicate() -> None:
    model = torchvision.models.convnext_tiny()
    assert find_sites(model) == []
    sites = find_sites(model, is_depthwise)
    assert len(sites) == 18
    assert (sites[0].name, sites[0].followed_by, sites[0].stage) == ("features.1.0.block.0", "Permute", 1)


def test_takes_a_whole_and_not_its_parts_too() -> None:
    model = FAMILIES["RepViT"].make()  # a depthwise convolution made of depthwise convolutions
    names = [site.name for site in find_sites(model, is_depthwise)]
    assert "stages.0.blocks.0.token_mixer" in names
    assert not any(".token_mixer." in name for name in names)


def test_convolutions_that_are_not_sites() -> None:
    others = [
        nn.Conv2d(8, 16, 3, groups=8),  # a multiplier
        nn.Conv2d(8, 8, 4, groups=8),  # even
        nn.Conv2d(8, 8, (1, 3), groups=8),
        nn.Conv2d(8, 8, 1, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=8)),
        nn.Conv1d(8, 8, 3, groups=8),
    ]
    assert not any(is_depthwise("", other) for other in others)


@pytest.mark.parametrize("init", ["upcycle", "shared_zero"])
def test_experts_are_no_sites(init: str) -> None:
    model = FAMILIES["MobileNetV3"].make()
    swap(model, init=init, stages=[0, 1], example=images(1))
    assert {site.stage for site in find_sites(model)} == {2, 3, 4}
    assert {site.stage for site in find_sites(model, is_depthwise)} == {2, 3, 4}


def test_errors() -> None:
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match="after_stages must be False where modules are chosen by a predicate"):
        find_sites(model, is_depthwise, after_stages=True)
    with pytest.raises(ValueError, match=r"sites must map one feature map .* but 'global_pool' does not"):
        find_sites(model, lambda name, module: name == "global_pool")
    with pytest.raises(ValueError, match="sites must divide the sides of a feature map by a whole number"):
        find_sites(nn.Sequential(nn.Conv2d(3, 8, 3)), lambda name, module: name == "0", example=images(1, size=8))
