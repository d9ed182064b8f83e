# SPDX-License-Identifier: Apache-2.0
"""Fused copies: the same function in eval, whatever holds our blocks, and the original as it was."""

import copy
import io
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.repvit import RepVggDw
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils import prune

from moe_vision import ESMoE, create_model, fuse
from moe_vision.layers import PointwiseMoE
from moe_vision.layers.convolution import ConvNormAct
from moe_vision.layers.fusion import fold_norm
from tests.strategies import EXECUTORS, KINDS, assert_same, make_images
from tests.trained import trained

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        y = model(x)
    return (y,) if isinstance(y, Tensor) else tuple(y)


def assert_same_function(actual: nn.Module, expected: nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    for one, other in zip(outputs(actual, x), outputs(expected, x), strict=True):
        assert_same(one, other, tolerance)


def test_fold_literally() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0).eval()
    for parameter, value in ((conv.weight, 3.0), (conv.bias, 1.0), (norm.weight, 6.0), (norm.bias, 5.0)):
        nn.init.constant_(parameter, value)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    folded, identity = fold_norm(conv, norm)
    # ((3 x + 1) - 2) / sqrt(4) * 6 + 5 = 9 x + 2
    assert (folded.weight.item(), folded.bias.item()) == (9, 2)
    assert isinstance(identity, nn.Identity)
    assert (conv.weight.item(), conv.bias.item()) == (3, 1)


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_networks(variant: str, task: str) -> None:
    model = trained(create_model("yolo_master_n", task=task, variant=variant, num_classes=3))
    before, x = copy.deepcopy(model.state_dict()), torch.rand(2, 3, 64, 96)
    fused = fuse(model)
    assert_same_function(fused, model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert norms(fused) == []
    four_dimensional = [p for p in fused.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four_dimensional)
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("dispatch", ["auto", *EXECUTORS])
@pytest.mark.parametrize("make", [partial(ESMoE, 4, 6, stride=2), partial(PointwiseMoE, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_executor(dtype: torch.dtype, make: partial[ESMoE], dispatch: str) -> None:
    layer, x = trained(make(dispatch=dispatch), dtype), make_images(5, 4, 7, 5, dtype=dtype)
    assert_same_function(fuse(layer), layer, x, 2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_expert_folds(kind: str) -> None:
    layer = trained(ESMoE(4, expert=kind, shared_expert=True, output_norm=False))
    for fused in (fuse(layer), reparameterize_model(nn.Sequential(layer))):  # timm's does not fuse the model itself
        assert norms(fused) == []
        assert_same_function(fused, layer, make_images(3, 4, 6, 6))


@pytest.mark.parametrize(
    "norm_layer",
    [
        lambda channels, **_: nn.GroupNorm(2, channels),
        partial(nn.BatchNorm2d, track_running_stats=False),
        BatchNormAct2d,  # activates too
    ],
)
def test_other_norms_stay(norm_layer: type[nn.Module]) -> None:
    layer = trained(ESMoE(4, shared_expert=True, dispatch="dense", norm_layer=norm_layer))
    fused = fuse(layer)
    assert all(type(e.norm) is type(f.norm) for e, f in zip(layer.experts, fused.experts, strict=True))
    assert type(fused.shared_expert[1]) is type(layer.shared_expert[1])
    assert_same_function(fused, layer, make_images(3, 4, 6, 6))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm_layer", NORMS)
def test_batch_norms_fold(norm_layer: type[nn.Module], affine: bool) -> None:
    layer = trained(ESMoE(4, norm_layer=partial(norm_layer, eps=0.1, affine=affine)))
    assert norms(fuse(layer)) == []
    assert_same_function(fuse(layer), layer, make_images(3, 4, 6, 6))


def test_our_timm_model_by_either_way() -> None:
    model, x = trained(timm.create_model("yolo_master_n", num_classes=3)), torch.rand(1, 3, 64, 64)
    ours, theirs = fuse(model), reparameterize_model(model)
    assert norms(ours) == norms(theirs) == []
    assert_same_function(theirs, model, x)
    assert_same_function(ours, model, x)


def test_a_timm_model_that_holds_our_layers() -> None:
    model = timm.create_model("repvit_m0_9", num_classes=3)
    model.stages[1].blocks[0].token_mixer = ESMoE(96)
    trained(model)
    fused = fuse(model)
    assert not any(isinstance(module, RepVggDw) and hasattr(module, "conv1") for module in fused.modules())
    assert norms(fused) == []
    assert_same_function(fused, model, torch.rand(1, 3, 64, 64))
    assert not any(module.training for module in fused.modules())  # timm's new layers too
    assert not any(parameter.requires_grad for parameter in fused.parameters())


class Doubling(nn.Module):
    """Blocks of other packages, each with another way to say that it fuses."""

    deployed = False

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Replaced(Doubling):
    def fuse(self) -> nn.Module:
        return nn.Flatten(0, -1)


class FusedInPlace(Doubling):
    def fuse(self) -> None:
        self.deployed = True


class Switched(Doubling):
    def switch_to_deploy(self) -> None:
        self.deployed = True


class FusesFeatures(Doubling):
    """A neck whose method has nothing to do with deployment."""

    def fuse(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return fine + coarse


def test_blocks_of_other_packages() -> None:
    fused = fuse(nn.ModuleList([Replaced(), FusedInPlace(), Switched(), FusesFeatures()]))
    assert [type(block) for block in fused] == [nn.Flatten, FusedInPlace, Switched, FusesFeatures]
    assert [getattr(block, "deployed", None) for block in fused] == [None, True, True, False]
    assert isinstance(fuse(Replaced()), nn.Flatten)  # the model itself may be such a block


def test_sequences_fold_and_only_neighbours_do() -> None:
    shared, act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
    model = trained(
        nn.Sequential(
            nn.Sequential(shared, nn.BatchNorm2d(4), act),
            nn.Sequential(shared, nn.BatchNorm2d(4), act, nn.Conv2d(4, 4, 1), act, nn.BatchNorm2d(4)),
        )
    )
    nn.init.normal_(model[0][1].weight)  # the two norms of the shared convolution differ
    fused = fuse(model)
    assert norms(fused) == ["1.5"]
    assert_same_function(fused, model, make_images(2, 4, 5, 5))


@pytest.mark.parametrize(
    "compute",
    [nn.utils.parametrizations.weight_norm, partial(prune.l1_unstructured, name="weight", amount=2)],
)
def test_computed_weights_do_not_fold(compute: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(compute(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model(make_images(2, 4, 5, 5))  # after which a pruned weight can be copied
    assert norms(fuse(model)) == ["1"]
    assert_same_function(fuse(model), model, make_images(2, 4, 5, 5))


class SharesItsActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.layer = ESMoE(4, act_layer=lambda: self.act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(x) + self.layer(x)


def test_activations_of_others_do_not_overwrite() -> None:
    model, x = trained(SharesItsActivation()), make_images(2, 4, 5, 5)
    assert_same_function(fuse(model), model, x)


def test_fusing_again_changes_nothing() -> None:
    fused = fuse(trained(create_model("yolo_master_n", num_classes=3)))
    again = fuse(fused)
    assert all(torch.equal(value, fused.state_dict()[name]) for name, value in again.state_dict().items())
    assert str(again) == str(fused)


def test_a_fused_copy_is_saved_and_copied() -> None:
    model, x = trained(create_model("yolo_master_n", num_classes=3)), torch.rand(1, 3, 64, 64)
    fused, buffer = fuse(model), io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    buffer.seek(0)
    loaded = fuse(create_model("yolo_master_n", num_classes=3))
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (loaded, copy.deepcopy(fused)):
        assert all(torch.equal(a, b) for a, b in zip(outputs(twin, x), outputs(fused, x), strict=True))


@pytest.mark.export
@pytest.mark.parametrize("dispatch", ["auto", "static"])
def test_a_fused_copy_exports(dispatch: str) -> None:
    layer, x = trained(ESMoE(4, shared_expert=True, dispatch=dispatch)), make_images(3, 4, 6, 6)
    batch = torch.export.Dim("batch", min=2, max=1024)  # PyTorch 2.9 wants a limit
    program = torch.export.export(fuse(layer), (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


def test_training_a_fused_copy_does_no_harm_and_has_no_gradient() -> None:
    layer, x = trained(ConvNormAct(3, 4, 3)), torch.rand(2, 3, 8, 8)
    fused = fuse(layer).train()
    y = fused(x)
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)  # no norm is left to look at the batch
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()


@pytest.mark.parametrize("act_layer", [nn.SiLU, nn.ReLU])  # backward of a ReLU needs its output
def test_gradients_of_the_input_survive_what_is_in_place(act_layer: type[nn.Module]) -> None:
    layer, x = trained(ESMoE(4, act_layer=act_layer)), make_images(2, 4, 6, 6)
    gradients = []
    for model in (layer, fuse(layer)):
        leaf = x.clone().requires_grad_()
        model(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert_same(gradients[1], gradients[0], 1e-4)
