# SPDX-License-Identifier: Apache-2.0
"""Relaxed gates cool and harden during a run, and end as the function that inference evaluates."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_vision import BiasedTopKGate, ESMoE, TopPGate
from moe_vision.train.hardening import Hardening
from tests.train.test_resume import assert_same, make_trainer


def test_temperature_falls_as_a_cosine_until_the_gates_are_hard() -> None:
    layer = ESMoE(8)
    hardening = Hardening(layer, "relaxed", epochs=5)
    seen = []
    for epoch in range(5):
        hardening.set_epoch(epoch)
        seen.append((layer.gate.soft, layer.gate.temperature))
    # Four soft epochs: 0.05 + 0.45 (1 + cos(pi epoch / 4)) / 2
    expected = [0.05 + 0.45 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [soft for soft, _ in seen] == ["relaxed"] * 4 + ["masked"]
    assert [temperature for _, temperature in seen[:4]] == pytest.approx(expected)


@pytest.mark.parametrize("soft", ["masked", "straight_through"])
def test_other_modes_stay(soft: str) -> None:
    layer = ESMoE(8)
    hardening = Hardening(layer, soft, epochs=2)
    hardening.set_epoch(1)
    assert layer.gate.soft == soft


@pytest.mark.parametrize("gate", [TopPGate(0.7, max_k=4), BiasedTopKGate(2, 4)])
def test_gates_without_other_modes_are_refused(gate: nn.Module) -> None:
    layer = ESMoE(8)
    layer.gate = gate
    with pytest.raises(ValueError, match="soft must be masked for networks with top_p below 1 or selection_bias"):
        Hardening(layer, "relaxed", epochs=2)
    Hardening(layer, "masked", epochs=2).set_epoch(0)


@pytest.mark.slow
def test_a_relaxed_run_ends_hard_and_can_be_resumed(tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    make_trainer(whole, epochs=5, soft="relaxed").fit()
    gaps = [json.loads(line)["hard_gap"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert gaps[-1] == pytest.approx(0, abs=1e-6)
    assert all(gap > 0.01 for gap in gaps[:3])
    assert gaps[3] < gaps[0]

    trainer = make_trainer(interrupted, epochs=5, soft="relaxed")
    forwards = 0

    def stop(module: torch.nn.Module, inputs: object) -> None:
        nonlocal forwards
        forwards += module.training
        if forwards == 8:
            raise KeyboardInterrupt

    trainer.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    make_trainer(interrupted, epochs=5, soft="relaxed", resume=True).fit()
    assert_same(interrupted, whole)
