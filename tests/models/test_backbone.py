# SPDX-License-Identifier: Apache-2.0
"""The YOLO-Master backbone and the neck behind it."""

import torch
from torch import nn

from moe_vision.layers import ESMoE
from moe_vision.models import PathAggregationNeck, YOLOMasterBackbone, named_config
from tests.contracts.backbone import BackboneContract


class TestYOLOMasterBackbone(BackboneContract):
    channels = (128, 128, 256)

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return YOLOMasterBackbone(named_config("yolo_master_n"))

    def test_each_stage_ends_in_an_es_moe_of_the_configuration(self) -> None:
        layers = {name: module for name, module in self.make().named_modules() if isinstance(module, ESMoE)}
        assert list(layers) == [f"stage{stage}.moe" for stage in (2, 3, 4, 5)]
        for layer in layers.values():
            assert [expert.conv_dw.kernel_size for expert in layer.experts] == [(3, 3), (5, 5), (7, 7), (9, 9)]
            assert layer.gate.top_k == 2

    def test_every_norm_has_the_constants_of_the_family(self) -> None:
        norms = [module for module in self.make().modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_neck_passes_information_from_every_level_to_every_level() -> None:
    neck = PathAggregationNeck((128, 128, 256), named_config("yolo_master_n")).eval()
    features = [
        torch.randn(1, channels, side, side, requires_grad=True) for channels, side in ((128, 8), (128, 4), (256, 2))
    ]
    for fused in neck(*features):
        gradients = torch.autograd.grad(fused.square().sum(), features, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
