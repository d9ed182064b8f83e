# SPDX-License-Identifier: Apache-2.0
"""Training in half precision: routers stay in fp32, and what a device can not do is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moe_vision.layers import ESMoE
from tests.train.test_trainer import make_trainer, read_log


def test_routing_is_in_fp32_when_features_are_in_bf16(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, precision="bf16", epochs=1, accumulate=2)
    layers = [module for module in trainer.model.modules() if isinstance(module, ESMoE)]
    seen = set()

    def see(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if torch.is_autocast_enabled("cpu"):  # not in the evaluation
            routing = layer.routing
            seen.add((inputs[0].dtype, routing.logits.dtype, routing.probs.dtype, routing.weights.dtype))

    for layer in layers:
        layer.register_forward_hook(see)
    trainer.fit()
    assert seen == {(torch.bfloat16, torch.float32, torch.float32, torch.float32)}
    # The routers' parameters, too: fp32 gradients, so fp32 steps.
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_losses_are_near_those_of_fp32(tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        make_trainer(tmp_path / precision, precision=precision, lr=1e-4, mosaic=0.0, eval_every=2).fit()
    full, half = (read_log(tmp_path / precision) for precision in ("no", "bf16"))
    for line, expected in zip(half, full, strict=True):
        assert line["skipped_steps"] == 0
        for name in ("class", "balance"):
            assert line["loss"][name] == pytest.approx(expected["loss"][name], rel=0.05)
            assert line["loss"][name] != expected["loss"][name]


def test_fp16_needs_an_accelerator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision must be no or bf16 on the CPU, got 'fp16'"):
        make_trainer(tmp_path, precision="fp16")
    make_trainer(tmp_path, epochs=1).fit()  # and the refusal is over with it
