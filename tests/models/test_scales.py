# SPDX-License-Identifier: Apache-2.0
"""Every scale, variant and placement builds what its name says."""

import pytest
import torch

from moe_vision import ESMoE, create_model, list_models
from moe_vision.models import YOLOMaster, YOLOMasterConfig, named_config
from moe_vision.models.config import PLACEMENTS
from moe_vision.tasks import detect_loss

# Section 2.4 of the reference facts: the released detectors at 80 classes.
RELEASED = {"n": 2_694_364, "s": 9_706_828, "m": 23_911_564, "l": 30_163_180, "x": 67_439_724}
V0_1 = {"n": 7_546_984, "s": 29_151_288, "m": 52_207_800, "l": 58_459_416, "x": 131_160_728}
BLOCKS = {"backbone": 4, "neck": 4, "both": 8, "none": 0}
TARGET = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}


def on_meta(name: str, **arguments: object) -> YOLOMaster:
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(model: YOLOMaster) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_all_scales_are_listed() -> None:
    assert list_models() == sorted(f"yolo_master_{scale}" for scale in RELEASED)


@pytest.mark.parametrize("scale", RELEASED)
def test_released_parameters(scale: str) -> None:
    assert count(on_meta(f"yolo_master_{scale}", variant="esmoe")) == RELEASED[scale]


@pytest.mark.parametrize("scale", V0_1)
def test_v0_1_parameters(scale: str) -> None:
    model = on_meta(f"yolo_master_{scale}", variant="v0_1")
    assert count(model) == V0_1[scale]
    assert [len(m.experts) for m in model.modules() if isinstance(m, ESMoE)] == [4, 8, 16]


@pytest.mark.parametrize(("classes", "parameters"), [(10, 7_516_742), (3, 7_515_377), (1, 7_514_987)])
def test_v0_1_parameters_by_classes(classes: int, parameters: int) -> None:
    assert count(on_meta("yolo_master_n", variant="v0_1", num_classes=classes)) == parameters


def test_v0_1_takes_no_kernels_and_no_neck() -> None:
    with pytest.raises(ValueError, match="kernel_sizes must be empty for block='pointwise'"):
        named_config("yolo_master_n", variant="v0_1", kernel_sizes=(3, 5, 7, 9))
    with pytest.raises(ValueError, match="placement must be backbone or none for block='pointwise', got 'both'"):
        named_config("yolo_master_n", variant="v0_1", placement="both")


@pytest.mark.parametrize("scale", RELEASED)
def test_paper_differs_from_released_by_the_fourth_expert(scale: str) -> None:
    name = f"yolo_master_{scale}"
    widths = [m.in_channels for m in on_meta(name).modules() if isinstance(m, ESMoE)]
    # Of a block: the depthwise 9 x 9, the pointwise, the norm, and the router's fourth row and bias.
    added = sum(81 * c + c * c + 2 * c + max(c // 8, 8) + 1 for c in widths)
    assert count(on_meta(name)) == RELEASED[scale] + added


@pytest.mark.parametrize("scale", RELEASED)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placement(placement: str, scale: str) -> None:
    model = on_meta(f"yolo_master_{scale}", placement=placement)
    assert sum(isinstance(module, ESMoE) for module in model.modules()) == BLOCKS[placement]
    assert any(isinstance(module, ESMoE) for module in model.backbone.modules()) == (placement in ("backbone", "both"))
    assert any(isinstance(module, ESMoE) for module in model.neck.modules()) == (placement in ("neck", "both"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_trains(placement: str) -> None:
    model = create_model("yolo_master_n", num_classes=3, placement=placement).train()
    terms = detect_loss(model, model(torch.rand(2, 3, 64, 64)), [TARGET, TARGET])
    assert ("balance" in terms) == (placement != "none")
    sum(terms.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("variant", ["esmoe", "v0_1"])
def test_released_variants_train_their_distribution(variant: str) -> None:
    model = create_model("yolo_master_n", num_classes=3, variant=variant).train()
    terms = detect_loss(model, model(torch.rand(2, 3, 64, 64)), [TARGET, TARGET])
    assert {"class", "box", "dfl", "balance"} == set(terms)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("scale", RELEASED)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_forward_of_every_scale(variant: str, scale: str) -> None:
    model = create_model(f"yolo_master_{scale}", num_classes=3, variant=variant).eval()
    with torch.inference_mode():
        output = model(torch.rand(2, 3, 64, 96))
    assert output.boxes.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4)
    assert output.boxes.isfinite().all()


@pytest.mark.parametrize("scale", RELEASED)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_configuration_round_trips(variant: str, scale: str) -> None:
    config = named_config(f"yolo_master_{scale}", variant=variant, placement="none")
    assert YOLOMasterConfig.from_json(config.to_json()) == config
