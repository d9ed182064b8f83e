# SPDX-License-Identifier: Apache-2.0
"""Swapped models in other people's loops: parameter groups, averages, checkpointing, compiling, several processes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from moe_vision import auxiliary_loss, swap
from tests.losses.test_distributed import join, leave
from tests.strategies import assert_same
from tests.surgery.families import FAMILIES, images

HOW_TO = Path(__file__).parents[2] / "docs/how-to/loops.md"


def swapped(init: str = "upcycle") -> nn.Module:
    model = FAMILIES["ConvNeXt"].make()
    swap(model, init=init, perturb=0.3 if init == "upcycle" else 0.0, example=images(1))
    return model.train()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    (model(x).square().mean() + auxiliary_loss(model)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("init", ["upcycle", "shared_zero"])
def test_layer_decay_treats_experts_as_what_they_replace(init: str) -> None:
    model, dense = swapped(init), FAMILIES["ConvNeXt"].make()
    groups = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
        for parameter in group["params"]
    }
    scales = {
        id(parameter): group["lr_scale"]
        for group in create_optimizer_v2(dense, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
        for parameter in group["params"]
    }
    for stage in range(4):
        place = model.stages[stage].blocks[0].conv_dw
        scale = scales[id(dense.stages[stage].blocks[0].conv_dw.weight)]
        assert {groups[id(parameter)][0] for parameter in place.parameters()} == {scale}
        assert {groups[id(p)][1] for p in place.parameters() if p.ndim == 1} == {0.0}


def test_average_follows() -> None:
    model = swapped()
    average = ModelEmaV3(model, decay=0.5)
    gradients(model, images())
    average.update(model)
    with torch.no_grad():
        assert_same(average.module.eval()(images()), model.eval()(images()))


def test_checkpointing_keeps_the_gradients() -> None:
    model = swapped()
    expected = gradients(model, images())
    model.set_grad_checkpointing()
    assert_all_same(gradients(model, images()), expected)


@pytest.mark.slow
@pytest.mark.compile
def test_compiles() -> None:
    torch.compiler.reset()
    model = swapped()
    expected = gradients(model, images())
    assert_all_same(
        gradients(torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager"), images()), expected
    )


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    spawn(train_rank, (tmp_path,), nprocs=2)
    expected = gradients(swapped().double(), images(4).double())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-8, atol=1e-10)


def train_rank(rank: int, folder: Path) -> None:
    join(rank, folder)
    model = DistributedDataParallel(swapped().double())
    torch.save(gradients(model, images(4).double().chunk(2)[rank]), folder / f"{rank}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning", "transformers"])
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_example_of_a_package_that_may_be_installed(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    example = re.search(rf"<!-- {package} -->\n```{{.python notest}}\n(.*?)```", HOW_TO.read_text(), re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) <= 25
    exec(compile(example, package, "exec"), {"__name__": "__main__"})


def assert_all_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other, 1e-4)
