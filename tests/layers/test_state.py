# SPDX-License-Identifier: Apache-2.0
"""No hidden state: after a training forward the layer copies, pickles, saves, averages and checkpoints (I42)."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_vision import ESMoE, auxiliary_loss
from tests.strategies import EXECUTORS, KINDS, freeze_norms, make_images, make_layer


def through_torch_save(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_after_a_training_forward(how: str, soft: str, kind: str) -> None:
    layer = make_layer(expert=kind, soft=soft, shared_expert=True).train()
    y = layer(make_images(5, 4, 7, 5))
    twin = COPIES[how](layer)
    assert twin.routing is None
    (y.mean() + auxiliary_loss(layer)).backward()  # the original is untouched
    x = make_images(5, 4, 7, 5, seed=1)
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_copies_are_taken_inside_a_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make_layer(), make_layer(seed=1)).train()
    model(make_images(5, 3, 7, 5))
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match="must have run a forward before auxiliary_loss, but ESMoE '1' has not"):
        auxiliary_loss(twin)


def test_state_dict_round_trip(tmp_path: Path) -> None:
    layer = make_layer().train()
    layer(make_images(5, 4, 7, 5))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    twin = ESMoE(4)
    twin.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    x = make_images(5, 4, 7, 5, seed=1)
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_state_dict_holds_parameters_and_statistics_alone() -> None:
    layer = make_layer().train()
    before = set(layer.state_dict())
    layer(make_images(5, 4, 7, 5))
    assert set(layer.state_dict()) == before
    parts = {name.split(".")[-1] for name in before}
    assert parts == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_model_ema() -> None:
    from timm.utils import ModelEmaV3

    layer, x = make_layer().train(), make_images(5, 4, 7, 5)
    layer(x)
    average = ModelEmaV3(layer, decay=0.75)
    start = layer.router.fc2.weight.detach().clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    (layer(x).square().mean() + auxiliary_loss(layer)).backward()
    optimiser.step()
    average.update(layer)
    moved = layer.router.fc2.weight
    assert not torch.equal(moved, start)
    torch.testing.assert_close(average.module.router.fc2.weight, 0.75 * start + 0.25 * moved)
    assert average.module.eval()(x).isfinite().all()


def train_step(layer: ESMoE, x: Tensor, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    layer.zero_grad()
    y = forward(x)
    auxiliary = auxiliary_loss(layer, balance=1.0, z=0.1)
    (y.square().mean() + auxiliary).backward()
    return y, auxiliary, [p.grad.clone() for p in layer.parameters()]


@pytest.mark.parametrize("soft", ["masked", "relaxed", "straight_through"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
def test_i42_checkpointing_changes_nothing(dispatch: str, kind: str, soft: str) -> None:
    layer, x = make_layer(expert=kind, soft=soft, dispatch=dispatch).train(), make_images(5, 4, 7, 5)
    y, auxiliary, expected = train_step(layer, x, layer)
    y_again, auxiliary_again, actual = train_step(layer, x, lambda x: checkpoint(layer, x, use_reentrant=False))
    assert torch.equal(y_again, y)
    assert torch.equal(auxiliary_again, auxiliary)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_i42_the_recomputed_record_is_the_same() -> None:
    layer, x = make_layer().train(), make_images(5, 4, 7, 5)
    freeze_norms(layer)
    y = checkpoint(layer, x, use_reentrant=False)
    before = auxiliary_loss(layer).item()
    y.sum().backward()  # runs the forward again
    assert auxiliary_loss(layer).item() == before


def test_reentrant_checkpointing_is_an_error() -> None:
    layer, x = make_layer().train(), make_images(5, 4, 7, 5).requires_grad_()
    checkpoint(layer, x, use_reentrant=True)
    message = "must carry a gradient in training, but its forward ran without one; checkpoint with use_reentrant=False"
    with pytest.raises(ValueError, match=message):
        auxiliary_loss(layer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_module_converts(dtype: torch.dtype, kind: str) -> None:
    layer = make_layer(expert=kind, shared_expert=True).to(dtype).train()
    x = make_images(5, 4, 7, 5, dtype=dtype)
    y = layer(x)
    y.float().square().mean().backward()
    assert y.dtype == dtype
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())


def test_inference_mode_then_training() -> None:
    layer, x = make_layer(), make_images(5, 4, 7, 5)
    with torch.inference_mode():
        layer(x)
    (layer.train()(x).mean() + auxiliary_loss(layer)).backward()
    assert all(p.grad is not None for p in layer.parameters())
