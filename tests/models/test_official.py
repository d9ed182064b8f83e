# SPDX-License-Identifier: Apache-2.0
"""Released weights: the networks of the measurements come out of every form of file; nothing else does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_vision import create_model, load_official
from moe_vision.models import YOLOMaster
from moe_vision.models.config import SCALES
from moe_vision.models.official.fit import match_tensors
from moe_vision.models.official.layers import group_by_layer
from moe_vision.models.official.recognize import recognize
from moe_vision.models.official.weights import Entry
from tests.models.official_states import (
    fixture_state,
    released_name,
    released_names,
    released_shape,
    released_state,
    renumbered,
    save_pickled,
)
from tests.models.reference_detector import FIXTURES, reference_facts, relative_error

State = dict[str, Tensor]
FIXTURE_NETWORKS = {
    "det-n": {"variant": "esmoe"},
    "seg-n": {"variant": "esmoe", "task": "segment"},
    "cls-n": {"variant": "esmoe", "task": "classify"},
    "v01-det-n": {"variant": "v0_1"},
}


@pytest.fixture(scope="module")
def detector() -> State:
    return fixture_state("det-n")


@pytest.fixture(scope="module")
def v0_1() -> State:
    return fixture_state("v01-det-n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "released.pt"


def measured_error(model: YOLOMaster, fixture: str) -> float:
    """Return the largest relative error of what a network says of the images of the measurements."""
    images = torch.from_numpy(np.random.default_rng(7).random((1, 3, 96, 128), dtype=np.float32))
    with np.load(FIXTURES / f"{fixture}.npz") as arrays:
        decoded = torch.from_numpy(arrays["out.0"])[0]
        raw = {name: torch.from_numpy(arrays[name])[0] for name in ("out.1.1", "out.1.2") if "seg" in fixture}
    with torch.inference_mode():
        output = model(images)
    if fixture == "cls-n":
        return relative_error(output.softmax(dim=1)[0], decoded)
    x, y, width, height = decoded[:4]
    boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
    pairs = [(output.boxes[0], boxes), (output.scores[0], decoded[4:84].T)]
    if raw:
        pairs += [(output.coefficients[0], raw["out.1.1"].T), (output.prototypes[0], raw["out.1.2"])]
    return max(relative_error(actual, expected) for actual, expected in pairs)


def entries(shapes: dict[str, tuple[int, ...]]) -> dict[str, Entry]:
    return {name: Entry(shape, lambda: torch.empty(0)) for name, shape in shapes.items()}


@pytest.mark.parametrize("fixture", FIXTURE_NETWORKS)
def test_networks_equal_the_measurements(fixture: str, path: Path) -> None:
    torch.save(fixture_state(fixture), path)
    model, report = load_official(path)
    assert measured_error(model, fixture) <= 1e-4
    assert not model.training
    assert model.config == create_model("yolo_master_n", **FIXTURE_NETWORKS[fixture]).config
    facts = reference_facts(fixture)
    assert report.matched == len(facts["state_dict"])
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} <= {
        "head.bins",
        "head.detection.bins",
    }


@pytest.mark.parametrize("prefix", ["", "module.", "model.model.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "ema"])
def test_prefixes_and_keys_around_do_not_matter(detector: State, path: Path, prefix: str, wrapper: str | None) -> None:
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in detector.items()}
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, path)
    model, _ = load_official(path)
    assert torch.equal(model.head.box_towers[2][2].weight, detector["model.25.cv2.2.2.weight"])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 0.2)])
def test_safetensors_of_any_precision(dtype: torch.dtype, bound: float, detector: State, tmp_path: Path) -> None:
    rounded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in detector.items()}
    save_file(rounded, tmp_path / "released.safetensors")
    model, _ = load_official(tmp_path / "released.safetensors")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(model.backbone.stem.conv.weight, rounded["model.0.conv.weight"].float())
    assert measured_error(model, "det-n") <= bound


@pytest.mark.parametrize("first", [3, 5])
def test_numbers_of_layers_do_not_matter(v0_1: State, path: Path, first: int) -> None:
    # The released v0.1-N has its blocks at 6, 9 and 12, where its configuration says 5, 8 and 11.
    state = renumbered(v0_1, first)
    assert "model.6.routing.router.0.weight" in state
    torch.save(dict(reversed(state.items())), path)
    model, report = load_official(path)
    assert (report.variant, report.num_experts, report.top_k) == ("v0_1", 4, 2)
    assert measured_error(model, "v01-det-n") <= 1e-4


@pytest.mark.parametrize("key", ["ema", "model"])
def test_a_pickled_network(detector: State, path: Path, key: str) -> None:
    names = {number: f"class {number}" for number in range(80)}
    blocks = {f"model.{layer}": {"num_experts": 3, "top_k": 3, "use_top_k": False} for layer in (3, 6, 9, 12)}
    save_pickled(detector, path, {"": {"names": names}, **blocks}, key, train_args={"imgsz": 640})
    model, report = load_official(path)
    assert model.class_names == report.class_names == tuple(names.values())
    assert (report.variant, report.top_k, report.notes) == ("esmoe", 3, ())
    assert measured_error(model, "det-n") <= 2e-2
    assert torch.equal(model.neck.downsample3.conv.weight, detector["model.19.conv.weight"].half().float())


def test_v0_1_as_released_has_a_second_csp_block_in_its_first_stage(path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("yolo_master_n", variant="v0_1", stage2_blocks=2).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_546_984 + 7_664  # the 7.555 M of the file
    blocks = {name: tensor for name, tensor in model.state_dict().items() if "stage2.blocks" in name}
    first, second = (
        {
            name.replace(f"2.blocks.{i}", "2.blocks"): tensor
            for name, tensor in blocks.items()
            if f"2.blocks.{i}" in name
        }
        for i in (0, 1)
    )
    others = {name: tensor for name, tensor in model.state_dict().items() if name not in blocks}
    state = renumbered(released_names({**others, **first}, model.config), 3)
    state |= {name.replace("model.2.", "model.3."): t for name, t in released_names(second, model.config).items()}
    assert {name.split(".")[1] for name in state if "experts" in name} == {"6", "9", "12"}
    torch.save(state, path)
    loaded, report = load_official(path)
    assert (report.variant, loaded.config) == ("v0_1", model.config)
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(loaded(images).boxes, model(images).boxes)


@pytest.mark.parametrize(
    ("attributes", "top_k", "variant"),
    [({"top_k": 2}, 2, "custom"), ({"top_k": None}, 3, "esmoe"), ({"top_k": 2, "use_top_k": False}, 3, "esmoe")],
)
def test_a_pickled_network_tells_how_many_experts_it_selects(
    detector: State, path: Path, attributes: dict[str, Any], top_k: int, variant: str
) -> None:
    save_pickled(detector, path, {f"model.{layer}": attributes for layer in (3, 6, 9, 12)})
    _, report = load_official(path)
    assert (report.top_k, report.variant) == (top_k, variant)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"model.3": {"top_k": 1}, "model.6": {"top_k": 2}}, "must all select as many experts, got"),
        ({f"model.{layer}": {"top_k": 4} for layer in (3, 6, 9, 12)}, r"top_k must be in \[1, num_experts=3\], got 4"),
        ({"model.9": {"add_residual": True}}, r"model.9 \(ES_MOE.*adds its input to its output"),
    ],
)
def test_pickled_blocks_that_are_not_ours(
    detector: State, path: Path, attributes: dict[str, Any], message: str
) -> None:
    save_pickled(detector, path, attributes)
    with pytest.raises(ValueError, match=message):
        load_official(path)


@pytest.mark.parametrize(
    ("changes", "variant", "top_k"),
    [
        ({"variant": "paper"}, "paper", 2),
        ({"num_experts": 2, "kernel_sizes": (3, 5)}, "custom", 2),
        ({"num_experts": 5, "kernel_sizes": (3, 5, 7, 9, 11)}, "custom", 2),
        ({"num_experts": 1, "top_k": 1, "kernel_sizes": (3,)}, "custom", 1),
    ],
)
def test_experts_are_read_off_the_shapes(changes: dict[str, Any], variant: str, top_k: int, path: Path) -> None:
    ours = create_model("yolo_master_n", num_classes=3, **changes).eval()
    torch.save(released_state(ours), path)
    model, report = load_official(path)
    assert (report.variant, report.top_k, report.num_classes) == (variant, top_k, 3)
    assert report.notes == (f"top_k {top_k} is assumed; weights don't show how many experts an image selects",)
    assert model.config.kernel_sizes == ours.config.kernel_sizes
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(images).scores, ours(images).scores)


@pytest.mark.parametrize("fixture", FIXTURE_NETWORKS)
def test_names_of_this_test_are_those_of_the_measurements(fixture: str) -> None:
    model = create_model("yolo_master_n", **FIXTURE_NETWORKS[fixture])
    shapes = {name: list(tensor.shape) for name, tensor in released_state(model).items()}
    assert shapes == reference_facts(fixture)["state_dict"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", ["paper", "esmoe", "v0_1"])
@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_every_network_is_recognised(scale: str, variant: str, task: str) -> None:
    with torch.device("meta"):
        ours = create_model(scale, task=task, variant=variant, num_classes=7)
    shapes = {
        released_name(name, ours.config): (name, released_shape(name, tuple(tensor.shape)))
        for name, tensor in ours.state_dict().items()
    }
    layers = group_by_layer(entries({name: shape for name, (_, shape) in shapes.items()}))
    name, config = recognize(layers)
    assert (name, config) == (scale, ours.config)
    assert {match.source: match.name for match in match_tensors(layers, ours)} == {
        source: name for source, (name, _) in shapes.items()
    }


@pytest.mark.parametrize("placement", ["neck", "both", "none"])
def test_placement_is_read_off_the_order(placement: str, path: Path) -> None:
    ours = create_model("yolo_master_n", num_classes=2, variant="esmoe", placement=placement)
    torch.save(_numbered_one_by_one(ours), path)
    model, report = load_official(path)
    assert report.placement == placement
    assert model.config == ours.config
    state = ours.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert ("none" in str(report).splitlines()[1]) == (placement == "none")


def _numbered_one_by_one(model: YOLOMaster) -> State:
    """Name tensors as released ones; a CSP block of the neck and the MoE block after it count as two layers."""
    state: State = {}
    for name, tensor in model.state_dict().items():
        place, *rest = name.split(".", 2) if name.startswith("neck") else ("", name)
        module = rest[0] if place else ""
        if place and rest[1].startswith(("0.", "1.")) and not module.startswith("downsample"):
            moe = rest[1].startswith("1.")
            inner = f"backbone.stage5.moe.{rest[1][2:]}" if moe else f"neck.{module}.{rest[1][2:]}"
            number = int(released_name(f"neck.{module}.x", model.config).split(".")[1]) * 2 + moe
        else:
            inner, number = name, int(released_name(name, model.config).split(".")[1]) * 2
        key = f"model.{number}.{released_name(inner, model.config).split('.', 2)[2]}"
        state[key] = tensor.reshape(released_shape(name, tuple(tensor.shape)))
    return state


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["yolo_master_s", "yolo_master_m", "yolo_master_l", "yolo_master_x"])
def test_every_tensor_of_a_larger_network_finds_its_place(scale: str, path: Path) -> None:
    ours = create_model(scale, variant="esmoe", num_classes=2)
    torch.save(released_state(ours), path)
    model, _ = load_official(path)
    state = ours.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def _without(*parts: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def _with(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, name: tensor}


def _with_layer_3_twice(state: State) -> State:
    moved = renumbered(state, 3)
    return moved | {name.replace("model.2.", "model.3."): moved[name] for name in moved if name.startswith("model.2.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.9.experts.1.conv.bn.bias"), "lacks, in model.9, what is backbone.stage4.moe.experts.1.norm"),
        (_without("model.12.experts.2"), "model.12, what is backbone.stage5.moe.experts.2.* more"),
        (_without("model.19."), r"lacks the layers neck.downsample3 \(Conv\)"),
        (_without("model.6.", "model.9."), "lacks the layers backbone.stage3.moe.*, backbone.stage4.moe"),
        (_without("model.25."), r"last layer must be one of Detect, Segment, Classify, got model.24 \(C3k2"),
        (_without("model.0."), "has the layers model.1 .Conv"),
        (_with_layer_3_twice, r"has model.3.cv1.conv.weight of shape \(32, 32, 1, 1\) for one of \(32, 64, 1, 1\)"),
        (_with("model.26.conv.weight", torch.ones(4, 4, 1, 1)), r"last layer must be one of .*, got model.26 \(Conv"),
        (_with("model.14.weight", torch.ones(2)), r"layer model.14 \(weight \(2,\)\) is none of Conv, C3k2"),
        (_with("model.3.extra", torch.ones(2)), "has model.3.extra, which our network lacks"),
        (_with("model.0.norm.bias", torch.ones(16)), "has model.0.norm.bias, which our network lacks"),
        (_with("epoch", torch.ones(1)), r"named model.\{layer\}.\{name\}, got epoch"),
        (_with("model.0.bn.bias", torch.ones(17)), r"model.0.bn.bias of shape \(17,\) for one of \(16,\)"),
        (_with("model.0.conv.weight", torch.ones(24, 3, 3, 3)), "stem has 24 channels .* known are 16 and 1"),
        (_with("model.0.conv.weight", torch.tensor(1.0)), "has no conv.weight"),
        (_with("model.4.bn.weight", torch.full((64,), torch.nan)), "model.4.bn.weight must be finite"),
        (_with("model.4.bn.weight", torch.full((64,), 1e300, dtype=torch.float64)), "model.4.bn.weight must be finite"),
        (_with("model.4.bn.bias", torch.ones(64, dtype=torch.int64)), "model.4.bn.bias must hold floating point"),
        (_with("model.4.bn.num_batches_tracked", torch.tensor(1.5)), "num_batches_tracked must hold whole numbers"),
        (_with("model.25.dfl.conv.weight", torch.ones(1, 16, 1, 1)), "dfl.conv.weight must count from 0, got"),
        (_with("model.3.experts.1.conv.depthwise.weight", torch.ones(64, 1, 4, 4)), "kernel_sizes must"),
    ],
)  # fmt: skip
def test_networks_that_are_not_ours(
    change: Callable[[State], State], message: str, detector: State, path: Path
) -> None:
    torch.save(change(detector), path)
    with pytest.raises(ValueError, match=rf"(?s)released.pt can't be converted: .*{message}"):
        load_official(path)


def test_a_classifier_divides_by_what_it_was_released_with(path: Path) -> None:
    # sqrt(variance + 1e-5) with the eps of ours, whatever that is; a pickled norm has its own.
    state = fixture_state("cls-n")
    for name, eps in (("plain", 1e-5), ("pickled", 1e-2)):
        torch.save(state, path) if name == "plain" else save_pickled(state, path, {"model.0.bn": {"eps": eps}})
        norm = load_official(path)[0].backbone.stem.norm
        released = state["model.0.bn.running_var"]
        torch.testing.assert_close(norm.running_var + norm.eps, released + eps, rtol=1e-3, atol=0)


@pytest.mark.parametrize("names", [["a"] * 79, {1: "a"}, "x" * 80, dict.fromkeys(range(80), 5), 7])
def test_class_names_that_are_not_whole_are_left_out(detector: State, path: Path, names: object) -> None:
    save_pickled(detector, path, {"": {"names": names}})
    model, report = load_official(path)
    assert report.class_names is None
    assert "class names are left out: they must be 80 texts" in str(report)
    assert model.class_names[79] == "79"


def test_report(detector: State, path: Path) -> None:
    torch.save({**detector, "epoch": 3}, path)
    _, report = load_official(path)
    assert str(report).splitlines() == [
        "network   yolo_master_n, detect, variant esmoe",
        "experts   3, 3 active, kernel sizes 3 5 7, in the backbone",
        "classes   80: without names",
        "tensors   811 matched, 1 ignored",
        "ignored   epoch",
        "note      top_k 3 is assumed; weights don't show how many experts an image selects",
    ]


def test_tensors_that_share_memory_in_the_file_do_not_in_the_network(detector: State, path: Path) -> None:
    shared = torch.rand(64)
    torch.save({**detector, "model.4.bn.weight": shared, "model.4.bn.bias": shared}, path)
    model, _ = load_official(path)
    norm = model.backbone.stage3.downsample.norm
    assert torch.equal(norm.weight, norm.bias)
    assert norm.weight.data_ptr() != norm.bias.data_ptr()
