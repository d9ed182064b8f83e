# SPDX-License-Identifier: Apache-2.0
"""Configurations: written and read without loss, and strict about what they take."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_vision import create_model
from moe_vision.models import YOLOMasterConfig, named_config


@st.composite
def configs(draw: st.DrawFn) -> YOLOMasterConfig:
    sizes = draw(st.lists(st.sampled_from([1, 3, 5, 7, 9, 11]), min_size=1, max_size=6))
    dfl = draw(st.booleans())
    return YOLOMasterConfig(
        num_classes=draw(st.integers(1, 1000)),
        depth=draw(st.floats(0.01, 2)),
        width=draw(st.floats(0.01, 2)),
        max_channels=draw(st.integers(1, 2048)),
        num_experts=len(sizes),
        top_k=draw(st.integers(1, len(sizes))),
        kernel_sizes=tuple(sizes),
        expert_init=draw(st.sampled_from(["shared", "independent"])),
        reg_max=draw(st.integers(1 + dfl, 32)),
        dfl=dfl,
    )


@given(config=configs())
def test_json_round_trip(config: YOLOMasterConfig) -> None:
    assert YOLOMasterConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("experts", 4, r"unknown fields \['experts'\]; known are \['attention_residual', 'backbone', 'block', 'c3k'"),
        ("num_classes", "80", "num_classes must be a value like 80, got '80'"),
        ("num_classes", 3.5, "num_classes must be a value like 80, got 3.5"),
        ("num_classes", True, "num_classes must be a value like 80, got True"),
        ("num_classes", 0, "num_classes must be at least 1, got 0"),
        ("depth", None, "depth must be a value like 0.5, got None"),
        ("width", 0.0, "width must be positive and finite, got 0.0"),
        ("width", float("nan"), "width must be positive and finite, got nan"),
        ("max_channels", 0, "max_channels must be at least 1, got 0"),
        ("dfl", "yes", "dfl must be a value like False, got 'yes'"),
        ("kernel_sizes", 3, r"kernel_sizes must be a value like \(3, 5, 7, 9\), got 3"),
        ("kernel_sizes", [3, 5, 7, 9.0], r"kernel_sizes must be a value like .*, got \(3, 5, 7, 9.0\)"),
        ("kernel_sizes", [3, 5, 7, 8], "kernel_sizes must be odd and positive, got 8"),
        ("kernel_sizes", [3, 5], r"kernel_sizes must name num_experts=4 sizes, got \(3, 5\)"),
        ("top_k", 5, r"top_k must be in \[1, num_experts=4\], got 5"),
        ("reg_max", 0, "reg_max must be at least 1, and 2 with dfl, got 0"),
        ("expert_init", "same", "expert_init must be one of independent, shared, got 'same'"),
        ("task", "juggle", "task must be one of detect, segment, classify, got 'juggle'"),
    ],
)
def test_bad_fields(field: str, value: object, message: str) -> None:
    values = {**json.loads(YOLOMasterConfig().to_json()), field: value}
    with pytest.raises(ValueError, match=message):
        YOLOMasterConfig.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "must be a JSON object, got list"), ("{", "Expecting"), ("null", "got NoneType")]
)
def test_text_that_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOMasterConfig.from_json(text)


def test_dfl_needs_two_bins() -> None:
    with pytest.raises(ValueError, match="reg_max must be at least 1, and 2 with dfl, got 1"):
        YOLOMasterConfig(reg_max=1, dfl=True)


def test_configuration_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        YOLOMasterConfig().top_k = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "yolo_master_q"},
            "name must be one of yolo_master_n, yolo_master_s, .*, got 'yolo_master_q'",
        ),
        ({"variant": "papier"}, "variant must be one of paper, esmoe, v0_1, got 'papier'"),
        ({"task": "juggle"}, "task must be one of detect, segment, classify, got 'juggle'"),
        ({"experts": 4}, r"changes must be fields of YOLOMasterConfig, got \['experts'\]"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "yolo_master_n", **arguments})


def test_changes_reach_the_configuration() -> None:
    config = named_config("yolo_master_n", num_classes=7, top_k=3, dfl=True)
    assert config == replace(named_config("yolo_master_n"), num_classes=7, top_k=3, dfl=True)


def test_scaling_rounds_channels_up_to_8_and_blocks_to_at_least_1() -> None:
    config = YOLOMasterConfig(width=0.25, depth=0.5, max_channels=512)
    # 8 ceil(100 * 0.25 / 8) = 8 ceil(3.125) = 32; 1024 is bounded by 512 first: 128
    assert [config.channels(base) for base in (64, 100, 1024)] == [16, 32, 128]
    # round(0.5) = 0 -> 1; round(1.5) = 2
    assert [config.repeats(base) for base in (1, 2, 3, 4)] == [1, 1, 2, 2]
