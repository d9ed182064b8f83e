# SPDX-License-Identifier: Apache-2.0
"""No value leaves the device: what a GPU would wait for, and a CUDA graph could not capture, is found without one.

Fake tensors have a device, a shape and a type, but no values. Whatever asks for a value, or for a shape that depends on
values, raises; so do a tensor on another device, and a copy between devices.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe_vision import ESMoE, auxiliary_loss, create_model
from tests.strategies import KINDS, count_calls, make_layer


class OneDevice(TorchDispatchMode):
    """Raises where an operation makes or reads a tensor on another device than the one named."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if devices - {self.device}:
            raise RuntimeError(f"{func} touches {devices}")
        return result


def run(model: nn.Module, shape: tuple[int, ...], *, device: str = "cuda", step: bool = False) -> None:
    """Run the forward of a model on fake tensors, or a step of training."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model.to_empty(device=device)
        fake.allow_non_fake_inputs = False
        x = torch.rand(shape, device=device)
        with OneDevice(device):
            y = model(x)
            if step:
                maps = [leaf for leaf in tree_leaves(y) if leaf.requires_grad]
                (torch.stack([part.mean() for part in maps]).sum() + auxiliary_loss(model)).backward()


def make_network(task: str, dispatch: str) -> nn.Module:
    model = create_model("yolo_master_n", task=task, num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, ESMoE):
            module.dispatch = dispatch
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", "static", "dense"])
def test_layer(dispatch: str, kind: str) -> None:
    settings = {"expert": kind, "shared_expert": True, "residual": True}
    run(make_layer(16, dispatch=dispatch, **settings), (4, 16, 8, 8))


def test_auto_runs_the_selected_experts_on_a_gpu_where_norms_allow_it() -> None:
    layer = make_layer(16, norm_layer=partial(nn.GroupNorm, 2))  # whose statistics are each image's own: all run
    counts = count_calls(layer)
    run(layer, (4, 16, 8, 8))
    assert counts == [1, 1, 1, 1]
    layer = make_layer(16)  # whose selected experts run as one, none of them by itself
    counts = count_calls(layer)
    run(layer, (4, 16, 8, 8))
    assert counts == [0, 0, 0, 0]


@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
def test_layer_in_training(soft: str) -> None:
    run(make_layer(16, soft=soft).train(), (4, 16, 8, 8))
    run(make_layer(16, soft=soft).train(), (4, 16, 8, 8), device="cpu", step=True)  # without a GPU no backward on one


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_network(task: str) -> None:
    run(make_network(task, "static"), (2, 3, 64, 96))
    run(make_network(task, "auto"), (2, 3, 64, 96))
    run(make_network(task, "auto").train(), (2, 3, 64, 96))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_network_in_training(checkpointing: bool) -> None:
    model = make_network("detect", "auto").train()
    model.set_grad_checkpointing(checkpointing)
    run(model, (2, 3, 64, 96), device="cpu", step=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["grouped", "per_image"])
def test_the_others_ask_which_experts_to_run(dispatch: str, kind: str) -> None:
    for device in ("cuda", "cpu"):
        with pytest.raises(DataDependentOutputException, match="local_scalar_dense"):
            run(make_layer(16, expert=kind, dispatch=dispatch), (4, 16, 8, 8), device=device)


def test_a_tensor_of_the_host_is_found() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor(2.0, device=x.device)

    with pytest.raises(RuntimeError, match=r"touches .*cpu"):
        run(Scale(), (2, 3))
