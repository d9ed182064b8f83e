# SPDX-License-Identifier: Apache-2.0
"""The contract of a swap, over a small model of each family: see the names of the tests."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moe_vision import ESMoE, auxiliary_loss, find_sites, load_swapped, swap, unswap
from moe_vision.surgery import SwapReport, save_swapped
from tests.strategies import assert_same
from tests.surgery.families import FAMILIES, Family, images

# A branch that is added asks nothing of the family but a module with a place: four of them stand for the rest.
REPRESENTATIVE = ("ConvNeXt", "EfficientNet, same", "RepViT", "ResNet")
CASES = [
    *(pytest.param((name, "upcycle"), id=f"{name}-upcycle") for name in FAMILIES if name != "ResNet"),
    *(
        pytest.param(
            (name, "shared_zero"),
            id=f"{name}-shared_zero",
            marks=[] if name in REPRESENTATIVE else pytest.mark.slow,
        )
        for name in FAMILIES
    ),
]


class Swapped:
    """A model of a family before and after a swap."""

    def __init__(self, name: str, init: str) -> None:
        self.family: Family = FAMILIES[name]
        self.init = init
        self.dense = self.family.make()
        self.model = copy.deepcopy(self.dense)
        self.every = 1 + self.family.num_sites // 9
        self.settings = {"num_experts": 3} if init == "upcycle" else {"num_experts": 2, "top_k": 1}
        self.settings |= {"init": init, "every": self.every, "example": images(1)}
        self.report: SwapReport = swap(self.model, **self.settings)
        self.moes = [module for module in self.model.modules() if isinstance(module, ESMoE)]


def each_its_own(router: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Have the first image prefer the first expert, the second the second, and so on."""
    return logits + 2 * torch.eye(max(logits.shape))[: logits.shape[0], : logits.shape[1]]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Swapped:
    return Swapped(*request.param)


class TestSwap:
    def test_finds_the_sites(self, case: Swapped) -> None:
        sites = find_sites(case.dense)
        assert (len(sites), sites[0].name) == (case.family.num_sites, case.family.first)
        assert [row.site for row in case.report.replacements] == sites[case.every - 1 :: case.every]
        assert len(case.moes) == len(sites) // case.every

    def test_keeps_the_function(self, case: Swapped) -> None:
        assert case.report.change <= 1e-5
        model, x = copy.deepcopy(case.model), images(len(case.moes[0].experts))
        for module in model.modules():
            if isinstance(module, ESMoE):
                module.router.register_forward_hook(each_its_own)
        with torch.no_grad():
            assert_same(model(x), case.dense(x), 1e-5)

    def test_trains_every_expert(self, case: Swapped) -> None:
        model = copy.deepcopy(case.model).train()
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                nn.init.ones_(parameter)  # until it has left 0, experts learn nothing
        task, auxiliary = model(images(3)).square().mean(), auxiliary_loss(model)
        routers = [module.router.fc2.weight for module in model.modules() if isinstance(module, ESMoE)]
        assert all(grad.any() for grad in torch.autograd.grad(auxiliary, routers, retain_graph=True))
        (task + auxiliary).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == set()

    def test_goes_to_a_file_and_back(self, case: Swapped, tmp_path: Path) -> None:
        family = case.family
        arguments = {"model_name": family.model_name, "num_classes": 5, **family.arguments}
        ours = family.model_name == "convformer_s18"
        save_swapped(case.model, tmp_path, case.report.recipe, arguments={} if ours else arguments)
        again = load_swapped(tmp_path, family.make() if ours else None)
        with torch.no_grad():
            assert torch.equal(again(images()), case.model(images()))

    def test_can_be_undone(self, case: Swapped) -> None:
        model = copy.deepcopy(case.dense)
        unswap(model, swap(model, **case.settings))
        with torch.no_grad():
            assert torch.equal(model(images(1)), case.dense(images(1)))
        assert [*map(str, model.modules())] == [*map(str, case.dense.modules())]


@pytest.mark.export
@pytest.mark.parametrize(
    ("name", "init"),
    [
        ("EfficientNet, same", "upcycle"),
        pytest.param("ConvNeXt", "upcycle", marks=pytest.mark.slow),
        pytest.param("EfficientNet", "shared_zero", marks=pytest.mark.slow),
    ],
)
def test_exports(name: str, init: str) -> None:
    case = Swapped(name, init)
    graph = torch.export.export(case.model, (images(2),)).module()
    with torch.no_grad():
        assert_same(graph(images(2)), case.model(images(2)), 1e-5)
