# SPDX-License-Identifier: Apache-2.0
"""The YOLO-Master networks as models of timm: what timm's own tests ask of a family, and what is ours about them.

The tests from `test_forward` to `test_intermediates` ask what timm's tests/test_models.py asks of every model.
"""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from moe_vision import ESMoE, auxiliary_loss, create_model
from moe_vision.layers.area_attention import AreaBlock
from moe_vision.layers.csp import Bottleneck
from moe_vision.models.timm_model import YOLOMasterClassifier

NAMES = [f"yolo_master_{scale}" for scale in "nsmlx"]
CHANNELS = [16, 64, 128, 128, 256]
STRIDES = [2, 4, 8, 16, 32]
MODULES = ["backbone.stem", "backbone.stage2", "backbone.stage3", "backbone.stage4", "backbone.stage5"]


def make(**arguments: object) -> YOLOMasterClassifier:
    return timm.create_model("yolo_master_n", **{"num_classes": 10, **arguments})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_timm_lists_them() -> None:
    assert timm.list_models("yolo_master*") == sorted(NAMES)
    assert all(isinstance(timm.create_model(name, device="meta"), YOLOMasterClassifier) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_has_the_weights_of_our_classifier(name: str, variant: str) -> None:
    with torch.device("meta"):
        ours = create_model(name, task="classify", num_classes=1000, variant=variant)
        model = timm.create_model(name, variant=variant)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert list(model.state_dict()) == list(shapes)


def test_computes_what_our_classifier_computes() -> None:
    ours, model, images = (
        create_model("yolo_master_n", task="classify", num_classes=10),
        make(),
        torch.rand(2, 3, 64, 96),
    )
    model.load_state_dict(ours.state_dict())
    torch.testing.assert_close(model.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (224, 224)])
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_forward(variant: str, size: tuple[int, int]) -> None:
    logits = make(variant=variant).eval()(torch.rand(2, 3, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_backward(variant: str) -> None:
    model = make(variant=variant).train()
    model(torch.rand(4, 3, 64, 64)).mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_default_cfg() -> None:
    model, images = timm.create_model("yolo_master_n").eval(), torch.rand(1, 3, 224, 224)
    cfg, state = model.default_cfg, model.state_dict()
    assert model.num_classes == cfg["num_classes"] == state[f"{cfg['classifier']}.weight"].shape[0]
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0]
    assert (cfg["mean"], cfg["std"], cfg["license"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "apache-2.0")
    features = model.forward_features(images)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(images))
    model.reset_classifier(0)
    assert model(images).shape == (1, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(images).shape == (1, model.head_hidden_size, *cfg["pool_size"])


def test_features() -> None:
    model, images = timm.create_model("yolo_master_n", features_only=True).eval(), torch.rand(2, 3, 96, 64)
    info = model.feature_info
    assert (info.channels(), info.reduction(), info.module_name()) == (CHANNELS, STRIDES, MODULES)
    shapes = [(2, channels, 96 // stride, 64 // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)]
    assert [tuple(features.shape) for features in model(images)] == shapes


@pytest.mark.parametrize("indices", [(2, 3, 4), (1,), (0, 3), 2, (-1,), (-2, -4)])
def test_out_indices(indices: int | tuple[int, ...]) -> None:
    places = (3, 4) if indices == 2 else [range(5)[index] for index in indices]
    model = timm.create_model("yolo_master_n", features_only=True, out_indices=indices)
    assert model.feature_info.channels() == [CHANNELS[place] for place in places]
    assert model.feature_info.reduction() == [STRIDES[place] for place in places]
    shapes = [features.shape[1:] for features in model(torch.rand(2, 3, 64, 64))]
    assert sorted(shapes) == sorted((CHANNELS[place], 64 // STRIDES[place], 64 // STRIDES[place]) for place in places)
    # What no wanted feature needs is gone: stages, and the head in any case.
    left = {name.split(".")[1] for name, _ in model.model.named_parameters()}
    assert left == {module.split(".")[1] for module in MODULES[: max(places) + 1]}


@pytest.mark.parametrize("in_chans", [1, 5])
@pytest.mark.parametrize("features_only", [True, False])
def test_other_channels(features_only: bool, in_chans: int) -> None:
    arguments = {} if features_only else {"num_classes": 10}
    model = timm.create_model("yolo_master_n", in_chans=in_chans, features_only=features_only, **arguments).eval()
    outputs = model(torch.rand(1, in_chans, 64, 64))
    assert outputs[-1].shape == ((1, 256, 2, 2) if features_only else (10,))


def test_intermediates() -> None:
    model, images = make().eval(), torch.rand(2, 3, 64, 64)
    last, levels = model.forward_intermediates(images)
    torch.testing.assert_close(last, model.forward_features(images))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels, 64 // stride, 64 // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]
    features = timm.create_model("yolo_master_n", features_only=True).eval()
    features.model.load_state_dict(model.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(features(images), levels, strict=True))
    early, chosen = model.forward_intermediates(images, indices=[1, 2], stop_early=True)
    assert torch.equal(early, levels[2])
    assert all(torch.equal(a, b) for a, b in zip(chosen, levels[1:3], strict=True))
    (alone,) = model.forward_intermediates(images, indices=1, intermediates_only=True)
    assert torch.equal(alone, levels[-1])
    with pytest.raises(ValueError, match="output_fmt must be NCHW, got 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_pruning() -> None:
    model = make()
    assert model.prune_intermediate_layers([-3], prune_head=False) == [2]
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (128, 128, 0)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 128, 8, 8)
    model.reset_classifier(3, "avg")
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    whole = make()
    assert whole.prune_intermediate_layers([0, 4], prune_head=False) == [0, 4]
    assert whole(torch.rand(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(("pool", "width"), [("avg", 1280), ("max", 1280), ("avgmax", 1280), ("catavgmax", 2560)])
def test_pooling(pool: str, width: int) -> None:
    model = make(global_pool=pool).eval()
    assert model.get_classifier().in_features == model.head_hidden_size == width
    features = torch.randn(1, 256, 3, 2)
    hidden = model.head.conv(features)
    mean, largest = hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))
    expected = {
        "avg": mean,
        "max": largest,
        "avgmax": 0.5 * (mean + largest),
        "catavgmax": torch.cat([mean, largest], 1),
    }
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), expected[pool])


def test_another_classifier() -> None:
    model = make(num_classes=0, dtype=torch.float64).train()
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(7, "catavgmax")
    assert model.num_classes == 7
    assert model(torch.rand(2, 3, 64, 64, dtype=torch.float64)).shape == (2, 7)
    assert all(module.training for module in model.modules())
    model.eval().reset_classifier(3, "max")
    assert not any(module.training for module in model.modules())


def test_errors() -> None:
    with pytest.raises(ValueError, match="output_stride must be 32, got 16"):
        make(output_stride=16)
    with pytest.raises(ValueError, match="global_pool must not be empty unless num_classes is 0, got num_classes=10"):
        make(global_pool="")
    with pytest.raises(ValueError, match=r"height and width in multiples of 32, got \(64, 100\)"):
        make()(torch.rand(1, 3, 64, 100))
    with pytest.raises(ValueError, match="placement must be backbone or none for task='classify'"):
        make(placement="both")
    with pytest.raises(ValueError, match="variant must be one of"):
        make(variant="v9")
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        make(widht=0.25)


def test_the_architecture_can_be_changed() -> None:
    model = make(placement="none", width=0.5)
    assert not any(isinstance(module, ESMoE) for module in model.modules())
    assert model.feature_info[-1]["num_chs"] == 512
    layer = make(variant="esmoe").backbone.stage2.moe
    assert [expert.conv_dw.kernel_size[0] for expert in layer.experts] == [3, 5, 7]


@pytest.mark.parametrize("variant", ["paper", "v0_1"])
def test_grad_checkpointing_changes_nothing_but_memory(variant: str) -> None:
    plain = make(variant=variant, drop_path_rate=0.5, drop_rate=0.2).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert saving.grad_checkpointing
    assert not plain.grad_checkpointing
    images, saved = torch.rand(4, 3, 64, 64), []
    for model in (plain, saving):
        torch.manual_seed(1)
        total = 0

        def remember(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = model(images).square().mean() + auxiliary_loss(model)
        saved.append(total)
        loss.backward()
    assert saved[1] < 0.3 * saved[0]
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    # The statistics of the norms count the batch once.
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), saving.buffers(), strict=True))
    saving.set_grad_checkpointing(False)
    assert not any(getattr(stage, "grad_checkpointing", False) for stage in saving.backbone.children())


@pytest.mark.parametrize("name", ["yolo_master_n", "yolo_master_l"])
def test_drop_path_rises_along_the_depth(name: str) -> None:
    model = timm.create_model(name, drop_path_rate=0.3, device="meta")
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert len(rates) == sum(hasattr(module, "drop_path") for module in model.modules())
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.3, len(rates)))


def test_drop_path_drops_in_training_alone() -> None:
    images = torch.rand(1, 3, 64, 64).expand(8, 3, 64, 64)
    model = make(drop_path_rate=0.9, placement="none")
    assert not any(isinstance(module, DropPath) for module in make().modules())
    assert list(model.state_dict()) == list(make(placement="none").state_dict())
    logits = model.train()(images)
    assert not torch.allclose(logits[0], logits[1:], atol=1e-3)
    logits = model.eval()(images)
    torch.testing.assert_close(logits, logits[:1].expand(8, 10))


@pytest.mark.parametrize("block", [Bottleneck(32), AreaBlock(32)])
def test_every_residual_branch_can_be_dropped(block: nn.Module) -> None:
    block.drop_path = DropPath(1.0)
    x = torch.rand(2, 32, 4, 4)
    assert torch.equal(block.train()(x), x)


def test_drop_rate() -> None:
    model = make(drop_rate=0.5).train()
    hidden = model.forward_head(torch.rand(2, 256, 2, 2), pre_logits=True)
    assert 0.4 < (hidden == 0).float().mean() < 0.6


@pytest.mark.parametrize("name", ["yolo_master_n", "yolo_master_l"])
@pytest.mark.parametrize("coarse", [True, False])
def test_groups_hold_every_parameter_once_and_in_order(name: str, coarse: bool) -> None:
    model = timm.create_model(name, device="meta")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [parameter for layer in sorted(groups) for parameter in groups[layer]]
    assert sorted(names) == sorted(key for key, _ in model.named_parameters())
    layer_of = {parameter: layer for layer, group in groups.items() for parameter in group}
    stages = [layer_of[f"backbone.stage{stage}.downsample.conv.weight"] for stage in (2, 3, 4, 5)]
    assert layer_of["backbone.stem.conv.weight"] == 0
    assert stages == sorted(set(stages))
    assert layer_of["head.conv.conv.weight"] == layer_of["head.linear.bias"] == len(groups) - 1
    # An MoE block belongs to the last layer of its stage.
    for stage, following in zip((2, 3, 4, 5), [*stages[1:], len(groups) - 1], strict=True):
        assert layer_of[f"backbone.stage{stage}.moe.router.fc1.weight"] == following - 1
    depth = len(model.backbone.stage4.blocks.blocks)
    inner = [layer_of[f"backbone.stage4.blocks.blocks.{block}.0.attn.qkv.conv.weight"] for block in range(depth)]
    assert inner == [stages[2] + (0 if coarse else block) for block in range(depth)]


def test_layer_decay() -> None:
    model = make()
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == count(model)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    layers = len(group_parameters(model, model.group_matcher()))
    assert scales[id(model.head.linear.weight)] == 1.0
    assert scales[id(model.backbone.stem.conv.weight)] == 0.5 ** (layers - 1)
    assert decays[id(model.head.linear.bias)] == 0.0
    assert decays[id(model.backbone.stage2.moe.experts[0].conv_dw.weight)] == 0.1
    assert model.no_weight_decay() == set()


def test_device_and_type() -> None:
    with torch.device("meta"):
        assert {parameter.device.type for parameter in make().parameters()} == {"meta"}
    model = make(device="meta")
    model.reset_classifier(3)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    model = make(dtype=torch.bfloat16).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits = model(torch.rand(2, 3, 64, 64, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_copies_and_pickles_after_a_training_forward() -> None:
    model, images = make(drop_path_rate=0.1).train(), torch.rand(2, 3, 64, 64)
    model(images)
    expected = model.eval()(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), expected)
        assert twin.default_cfg == model.default_cfg


def test_auxiliary_loss_reaches_the_routers() -> None:
    features = timm.create_model("yolo_master_n", features_only=True, out_indices=(3,)).train()
    features(torch.rand(4, 3, 64, 64))
    layers = [module for module in features.modules() if isinstance(module, ESMoE)]
    assert len(layers) == 3  # stages 2, 3 and 4
    auxiliary_loss(features).backward()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.router.parameters())


@pytest.mark.export
def test_exports() -> None:
    model, images = make().eval(), torch.rand(1, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, ESMoE):
            module.dispatch = "static"
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-5)
