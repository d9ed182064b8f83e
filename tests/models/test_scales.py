# SPDX-License-Identifier: Apache-2.0
"""Every scale, variant and placement builds what its name says."""

from pathlib import Path

import pytest
import torch

from moe_vision import ESMoE, create_model, list_models
from moe_vision.diagnostics import count_flops, count_parameters
from moe_vision.models import YOLOMaster, YOLOMasterConfig, named_config
from moe_vision.models.config import PLACEMENTS
from moe_vision.tasks import classify_loss, detect_loss, segment_loss

# Section 2.4 of the reference facts, for 80 classes, and for 1000 to classify.
SCALES = ("n", "s", "m", "l", "x")
PARAMETERS = {
    ("detect", "esmoe"): (2_694_364, 9_706_828, 23_911_564, 30_163_180, 67_439_724),
    ("segment", "esmoe"): (2_910_268, 10_287_596, 26_217_772, 32_469_388, 72_616_204),
    ("classify", "esmoe"): (3_372_212, 8_770_932, 16_087_988, 19_563_540, 41_587_476),
    ("detect", "v0_1"): (7_546_984, 29_151_288, 52_207_800, 58_459_416, 131_160_728),
    ("segment", "v0_1"): (7_762_888, 29_732_056, 54_514_008, 60_765_624, 136_337_208),
    ("classify", "v0_1"): (8_224_832, 28_215_392, 44_384_224, 47_859_776, 105_308_480),
}
# What the fourth expert adds to the four blocks of the variant `paper`: a depthwise 9 x 9, a pointwise and a norm each,
# and the router's row and bias, 81 c + c^2 + 2 c + max(c // 8, 8) + 1, at c = 64, 128, 128, 256 for the scale n.
FOURTH_EXPERT = (9_417 + 27_025 + 27_025 + 86_817, 505_364, 1_000_932, 1_000_932, 2_140_372)
NUM_CLASSES = {"detect": 80, "segment": 80, "classify": 1000}
BLOCKS = {"backbone": 4, "neck": 4, "both": 8, "none": 0}
OTHERS = [pytest.param(f"yolo_master_{scale}", marks=pytest.mark.slow) for scale in "mlx"]
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "models.md"
TARGET = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}


def on_meta(name: str, **arguments: object) -> YOLOMaster:
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(model: YOLOMaster) -> int:
    return count_parameters(model).total


def test_all_scales_are_listed() -> None:
    assert list_models() == sorted(f"yolo_master_{scale}" for scale in SCALES)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_parameters(task: str, variant: str, scale: str) -> None:
    place = SCALES.index(scale)
    model = on_meta(f"yolo_master_{scale}", task=task, variant=variant, num_classes=NUM_CLASSES[task])
    if variant == "paper":
        assert count(model) == PARAMETERS[task, "esmoe"][place] + FOURTH_EXPERT[place]
    else:
        assert count(model) == PARAMETERS[task, variant][place]


@pytest.mark.parametrize(
    ("scale", "expected"),
    list(zip(SCALES, (2_193_692, 7_592_412, 14_909_468, 18_385_020, 40_408_956), strict=True)),
)
def test_parameters_to_classify_80(scale: str, expected: int) -> None:
    assert count(on_meta(f"yolo_master_{scale}", task="classify", variant="esmoe", num_classes=80)) == expected


@pytest.mark.parametrize(
    ("scale", "expected"),
    list(zip(SCALES, (3_325_032, 12_318_776, 29_071_544, 35_323_160, 79_154_840), strict=True)),
)
def test_active_parameters_of_v0_1(scale: str, expected: int) -> None:
    model = on_meta(f"yolo_master_{scale}", variant="v0_1")
    assert count_parameters(model).active == expected
    assert [len(m.experts) for m in model.modules() if isinstance(m, ESMoE)] == [4, 8, 16]


@pytest.mark.parametrize(("classes", "parameters"), [(10, 7_516_742), (3, 7_515_377), (1, 7_514_987)])
def test_v0_1_parameters_by_classes(classes: int, parameters: int) -> None:
    assert count(on_meta("yolo_master_n", variant="v0_1", num_classes=classes)) == parameters


def test_v0_1_takes_no_kernels_and_no_neck() -> None:
    with pytest.raises(ValueError, match="kernel_sizes must be empty for block='pointwise'"):
        named_config("yolo_master_n", variant="v0_1", kernel_sizes=(3, 5, 7, 9))
    with pytest.raises(ValueError, match="placement must be backbone or none for block='pointwise', got 'both'"):
        named_config("yolo_master_n", variant="v0_1", placement="both")
    with pytest.raises(ValueError, match="expert_init must be independent for block='pointwise', got 'shared'"):
        named_config("yolo_master_n", variant="v0_1", expert_init="shared")
    with pytest.raises(ValueError, match="shared_expert and residual must be False for block='pointwise'"):
        named_config("yolo_master_n", variant="v0_1", residual=True)


def test_a_classifier_has_no_neck() -> None:
    with pytest.raises(ValueError, match="placement must be backbone or none for task='classify', got 'neck'"):
        named_config("yolo_master_n", task="classify", placement="neck")
    assert not hasattr(on_meta("yolo_master_n", task="classify"), "neck")


@pytest.mark.parametrize("scale", SCALES)
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
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_forward_of_every_scale(variant: str, scale: str) -> None:
    model = create_model(f"yolo_master_{scale}", num_classes=3, variant=variant).eval()
    with torch.inference_mode():
        output = model(torch.rand(2, 3, 64, 96))
    assert output.boxes.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 4)
    assert output.boxes.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["n", "s"])
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_forward_and_backward(task: str, variant: str, scale: str) -> None:
    # Experts that start as one function tell the router nothing, and a batch of two may be balanced to a zero gradient.
    independent = {"variant": variant, "expert_init": "independent"}
    model = create_model(f"yolo_master_{scale}", task=task, num_classes=3, **independent).train()
    output = model(torch.rand(2, 3, 64, 96))
    if task == "detect":
        terms = detect_loss(model, output, [TARGET, TARGET])
    elif task == "segment":
        terms = segment_loss(model, output, [{**TARGET, "masks": torch.ones(1, 64, 96, dtype=torch.bool)}] * 2)
    else:
        terms = classify_loss(model, output, torch.tensor([0, 2]))
    sum(terms.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    routers = [gradient for name, gradient in gradients.items() if "router" in name]
    assert routers
    assert all(gradient.abs().sum() > 0 for gradient in routers)
    assert model.eval()(torch.rand(2, 3, 64, 96))[0].isfinite().all()


@pytest.mark.parametrize("name", ["yolo_master_n", "yolo_master_s", *OTHERS])
def test_model_table_of_the_documentation(name: str) -> None:
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines()[2:]]
    assert {row[0] for row in rows} == set(list_models())
    own = [row for row in rows if row[0] == name]
    assert len(own) == 9
    for _, task, variant, *figures in own:
        model = on_meta(name, task=task, variant=variant, num_classes=NUM_CLASSES[task])
        side = model.image_size
        parameters, flops = count_parameters(model), count_flops(model, (3, side, side))
        expected = [
            f"{cost.total / unit:.2f} ({cost.active / unit:.2f})" for cost, unit in ((parameters, 1e6), (flops, 1e9))
        ]
        strides = "32" if task == "classify" else "8, 16, 32"
        assert figures == [*expected, f"{side}²", strides]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
def test_configuration_round_trips(variant: str, scale: str) -> None:
    config = named_config(f"yolo_master_{scale}", variant=variant, placement="none")
    assert YOLOMasterConfig.from_json(config.to_json()) == config


def test_shared_expert_and_residual_reach_every_block() -> None:
    plain, changed = on_meta("yolo_master_n"), on_meta("yolo_master_n", shared_expert=True, residual=True)
    blocks = [module for module in changed.modules() if isinstance(module, ESMoE)]
    assert all(block.residual for block in blocks)
    # A pointwise convolution C x C and the scale and shift of its norm, in the four blocks of 64, 128, 128 and 256.
    assert count(changed) - count(plain) == sum(width * width + 2 * width for width in (64, 128, 128, 256))
