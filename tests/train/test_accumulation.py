# SPDX-License-Identifier: Apache-2.0
"""Steps of several batches: their routing is previewed without a trace, and they equal steps of one large batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from moe_vision import create_model
from moe_vision.losses.balance import routing_records
from moe_vision.models import YOLOMaster
from moe_vision.train import Trainer, TrainSettings
from moe_vision.train.accumulation import preview_routing
from tests.train.test_tasks import Textures
from tests.train.test_trainer import make_trainer, read_log


def make_classifier(norm: type[nn.Module] | None = None) -> YOLOMaster:
    """A small network in double precision, perhaps with norms that do not look at the batch."""
    torch.manual_seed(0)
    model = create_model("yolo_master_n", task="classify", num_classes=2, class_names=Textures.classes)
    for name, module in list(model.named_modules()):
        if norm is not None and isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, norm(module.num_features))
    return model.double().train()


def test_a_preview_leaves_no_trace() -> None:
    model = make_classifier()
    model.backbone.stage3.blocks = nn.Sequential(model.backbone.stage3.blocks, nn.Dropout(0.3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = torch.rand(2, 3, 3, 64, 64, dtype=torch.float64)
    random = torch.get_rng_state()
    preview = preview_routing(model, model, list(batches))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(norm.momentum > 0 for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
    for images, records in zip(batches, preview, strict=True):
        model(images)
        for name, routing in routing_records(model).items():
            assert torch.equal(routing.probs, records[name].probs)  # the same paths were dropped
            assert not records[name].probs.requires_grad


def train(out: Path, norm: type[nn.Module], **settings: Any) -> tuple[YOLOMaster, dict[str, Any]]:
    """One step or a few of the sixteen textures, the balance loss with a weight that matters."""
    model = make_classifier(norm)
    small = {"epochs": 1, "image_size": 64, "num_workers": 0, "warmup_epochs": 0, "optimizer": "sgd", "lr": 1e-3}
    small |= {"balance": 10.0, "clip_norm": 1e9}  # clipped gradients of any size would be alike
    trainer = Trainer(model, Textures(), None, out, TrainSettings(**{**small, **settings}))
    trainer.model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    trainer.fit()
    return model, json.loads((out / "log.jsonl").read_text())


def distance(one: YOLOMaster, other: YOLOMaster) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_two_batches_of_eight_make_the_step_of_one_of_sixteen(tmp_path: Path) -> None:
    start = make_classifier(FrozenBatchNorm2d)
    whole, whole_log = train(tmp_path / "whole", FrozenBatchNorm2d, batch_size=16)
    parts, parts_log = train(tmp_path / "parts", FrozenBatchNorm2d, batch_size=8, accumulate=2)
    assert whole_log["step"] == parts_log["step"] == 1
    assert parts_log["loss"] == pytest.approx(whole_log["loss"], rel=1e-6)
    assert parts_log["experts"] == whole_log["experts"]
    assert distance(whole, start) > 1e-3
    assert distance(parts, whole) < 1e-6


def test_steps_count_not_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, accumulate=2, eval_every=2, lr=2e-3)
    rates = []
    torch_optimizer = trainer.optimizer.optimizer
    torch_optimizer.register_step_pre_hook(lambda *_: rates.append(torch_optimizer.param_groups[0]["lr"]))
    trainer.fit()
    # Three batches an epoch: a step of two and one of one. Warm-up from a hundredth over the first epoch.
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4]
    assert rates[:2] == pytest.approx([2e-5, 2e-5 + (2e-3 - 2e-5) / 2])
    assert len(rates) == 4


def test_a_batch_that_is_not_finite_costs_its_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, accumulate=2, eval_every=2)
    count = 0

    def spoil(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal count
        count += torch.is_grad_enabled()
        return (inputs[0] * float("nan"),) if count == 2 else inputs

    trainer.model.register_forward_pre_hook(spoil)
    trainer.fit()
    assert [line["skipped_steps"] for line in read_log(tmp_path)] == [1, 0]
    for module in (trainer.model, trainer.ema.module):
        assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())
