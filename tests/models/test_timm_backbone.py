# SPDX-License-Identifier: Apache-2.0
"""Backbones of timm under our neck and heads; timm's own small test models where they have our strides."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from moe_vision import ESMoE, create_model
from moe_vision.models import TimmBackbone, YOLOMasterConfig, load_checkpoint, named_config, save_checkpoint
from moe_vision.models.timm_backbone import SUITABLE
from moe_vision.tasks import detect_loss
from tests.contracts.backbone import BackboneContract

FAMILIES = (
    "convnextv2_atto",
    "resnet18",
    "efficientnet_lite0",
    "mobilenetv4_conv_small",
    "repvit_m0_9",
    "hgnetv2_b0",
    "mambaout_femto",  # its features have the channels last
)
IMAGES = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}


def config(name: str, **changes: object) -> YOLOMasterConfig:
    return named_config("yolo_master_n", backbone=name, num_classes=3, **changes)


class TimmContract(BackboneContract):
    channels = (128, 128, 256)
    name: str

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return TimmBackbone(config(self.name))


class TestConvNeXt(TimmContract):
    name = "test_convnext"


class TestResNet(TimmContract):
    name = "test_resnet"


class TestEfficientNet(TimmContract):
    name = "test_efficientnet"


class TestByobNet(TimmContract):
    name = "test_byobnet"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_predicts(name: str) -> None:
    model = create_model("yolo_master_n", num_classes=3, backbone=name).train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
    terms = detect_loss(model, model(torch.rand(2, 3, 64, 64)), [target, target])
    sum(terms.values()).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.inference_mode():
        boxes = model.eval()(torch.rand(1, 3, 64, 96)).boxes
    assert boxes.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 4)
    assert boxes.isfinite().all()


@pytest.mark.parametrize(
    ("placement", "laterals", "neck"), [("backbone", 3, 0), ("neck", 0, 4), ("both", 3, 4), ("none", 0, 0)]
)
def test_placement(placement: str, laterals: int, neck: int) -> None:
    model = create_model("yolo_master_n", num_classes=3, backbone="test_resnet", placement=placement)
    assert sum(isinstance(module, ESMoE) for module in model.backbone.laterals.modules()) == laterals
    assert sum(isinstance(module, ESMoE) for module in model.neck.modules()) == neck
    assert sum(isinstance(module, ESMoE) for module in model.modules()) == laterals + neck


def test_v0_1_has_twice_the_experts_a_level() -> None:
    backbone = TimmBackbone(config("test_resnet", variant="v0_1"))
    assert [len(lateral[1].experts) for lateral in backbone.laterals] == [4, 8, 16]


def test_segments_and_classifies() -> None:
    images = torch.rand(1, 3, 64, 64)
    segmenter = create_model("yolo_master_n", task="segment", num_classes=3, backbone="test_resnet").eval()
    assert segmenter(images).boxes.shape == (1, 84, 4)
    classifier = create_model("yolo_master_n", task="classify", num_classes=3, backbone="test_resnet").eval()
    assert classifier(images).shape == (1, 3)


def test_takes_the_features_of_our_strides() -> None:
    backbone = TimmBackbone(config("test_byobnet"))
    assert backbone.body.feature_info.reduction() == [8, 16, 32]
    assert backbone.body.feature_info.module_name() == ["stages.1", "stages.2", "final_conv"]


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", IMAGES["mean"], IMAGES["std"]),
        ("test_resnet", torch.full((3,), 0.5), torch.full((3,), 0.5)),
    ],
)
def test_images_are_normalised_as_the_timm_model_wants(name: str, mean: torch.Tensor, std: torch.Tensor) -> None:
    backbone, images = TimmBackbone(config(name)).eval(), torch.rand(2, 3, 64, 64)
    inputs = (images - mean[:, None, None]) / std[:, None, None]
    expected = [lateral(x) for lateral, x in zip(backbone.laterals, backbone.body(inputs), strict=True)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(backbone(images), expected, strict=True))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_pretrained_file(weights: Path, kind: type) -> None:
    model = create_model("yolo_master_n", num_classes=3, backbone="test_resnet", pretrained=kind(weights))
    whole = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(weights)})
    loaded, expected = model.backbone.body.state_dict(), whole.state_dict()
    assert expected.keys() - loaded.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


def test_a_torch_file_of_features_alone(weights: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in timm.models.load_state_dict(str(weights)).items() if "fc." not in name}
    torch.save({"state_dict": state}, tmp_path / "resnet.pth")
    backbone = TimmBackbone(config("test_resnet"), pretrained=tmp_path / "resnet.pth")
    assert all(torch.equal(value, state[name]) for name, value in backbone.body.state_dict().items())


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"pretrained must be a file of weights, but {path} does not exist"):
            TimmBackbone(config("test_resnet"), pretrained=path)


def test_a_file_of_other_weights(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrained must hold weights of 'test_efficientnet', got .*resnet"):
        TimmBackbone(config("test_efficientnet"), pretrained=weights)
    state = timm.models.load_state_dict(str(weights))
    save_file({f"strange.{name}": value for name, value in state.items()}, tmp_path / "strange.safetensors")
    with pytest.raises(ValueError, match=r"strange.safetensors, which lacks \['conv1.0.weight'"):
        TimmBackbone(config("test_resnet"), pretrained=tmp_path / "strange.safetensors")
    state.pop("layer4.0.conv2.weight")
    save_file(state, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match=r"partial.safetensors, which lacks \['layer4.0.conv2.weight'\]"):
        TimmBackbone(config("test_resnet"), pretrained=tmp_path / "partial.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(ValueError, match=r"pretrained must hold weights of 'test_resnet', got .*text.safetensors"):
        TimmBackbone(config("test_resnet"), pretrained=tmp_path / "text.safetensors")


def test_a_model_without_weights() -> None:
    with pytest.raises(ValueError, match="must be a file or False for 'ghostnet_050', of which timm has no weights"):
        create_model("yolo_master_n", num_classes=3, backbone="ghostnet_050", pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense_18", r"backbone must be a timm model with features, such as .*Unknown model \(nonsense_18\)"),
        ("resnet18.nonsense", "backbone must be a timm model with features, such as .*nonsense"),
        ("vit_tiny_patch16_224", "backbone must take images of any size, as .*'vit_tiny_patch16_224' does not"),
        ("swin_tiny_patch4_window7_224", "backbone must take images of any size"),
        ("maxvit_tiny_rw_224", "backbone must take images of any size"),
        ("shvit_s1", r"features at strides 8, 16 and 32, as .* have; 'shvit_s1' has \[16, 32, 64\]"),
        # timm 1.0.21 has no features of it.
        ("convmixer_768_32", r"features at strides 8, 16 and 32, .* has \[7, 7, 7\]|features_only not implemented"),
        ("inception_v3", r"divide sizes by 8, 16 and 32 exactly, as .* do; 'inception_v3' makes \[13, 6, 2\] of 128"),
        ("yolo_master_s", "backbone must be yolo_master or a timm model of another family, got 'yolo_master_s'"),
    ],
)
def test_unsuitable_backbones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TimmBackbone(config(name))
    if name != "yolo_master_s":
        assert SUITABLE in str(caught.value)


def test_the_suggested_backbones_are_suitable() -> None:
    for name in SUITABLE.split(", "):
        with torch.device("meta"):
            assert TimmBackbone(config(name)).out_channels == (128, 128, 256)


def test_checkpoint_needs_nothing_but_its_file(weights: Path, tmp_path: Path) -> None:
    copied = tmp_path / "weights.safetensors"
    copied.write_bytes(weights.read_bytes())
    model = create_model("yolo_master_n", num_classes=3, backbone="test_resnet", pretrained=copied)
    copied.unlink()
    save_checkpoint(model, tmp_path / "last.safetensors")
    loaded, images = load_checkpoint(tmp_path / "last.safetensors"), torch.rand(1, 3, 64, 64)
    assert loaded.config == model.config
    assert torch.equal(loaded(images).boxes, model.eval()(images).boxes)


def test_our_own_backbone_has_no_weights_to_load(weights: Path) -> None:
    for pretrained in (True, weights):
        with pytest.raises(ValueError, match="pretrained must be False for backbone='yolo_master'"):
            create_model("yolo_master_n", pretrained=pretrained)
