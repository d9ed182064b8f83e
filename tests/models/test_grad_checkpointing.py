# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing of the networks: the same gradients and statistics of norms, from less memory."""

import copy

import pytest
import torch
from torch import Tensor

from moe_vision import auxiliary_loss, create_model
from moe_vision.models import YOLOMaster
from tests.memory import peak_megabytes


def loss(model: YOLOMaster, images: Tensor) -> Tensor:
    """Return a number that every map of the output has a part in, with the balance loss of the blocks."""
    output = model(images)
    if model.config.task == "segment":
        output = (*output.detection, output.coefficients, output.prototypes)
    maps = [output] if isinstance(output, Tensor) else [part for part in output if part.requires_grad]
    return torch.stack([part.square().mean() for part in maps]).sum() + auxiliary_loss(model)


def twins(**settings: object) -> tuple[YOLOMaster, YOLOMaster]:
    torch.manual_seed(0)
    plain = create_model("yolo_master_n", num_classes=3, **settings).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    return plain, saving


def assert_same_step(plain: YOLOMaster, saving: YOLOMaster) -> None:
    images, losses = torch.rand(3, 3, 64, 96), []
    for model in (plain, saving):
        torch.manual_seed(1)  # of what is dropped at random
        losses.append(loss(model, images))
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    # The norms count the batch once.
    for (name, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_changes_neither_gradients_nor_statistics(task: str) -> None:
    assert_same_step(*twins(task=task))


@pytest.mark.parametrize("dispatch", ["grouped", "static"])
def test_with_other_executors(dispatch: str) -> None:
    models = twins(task="classify")
    for model in models:
        for layer in (model.backbone.stage2.moe, model.backbone.stage5.moe):
            layer.dispatch = dispatch
    assert_same_step(*models)


def test_a_step_needs_less_memory() -> None:
    images = torch.rand(1, 3, 256, 256)
    plain, saving = (peak_megabytes(lambda model=model: loss(model, images).backward()) for model in twins())
    assert saving < 0.55 * plain  # 35 and 73 MiB, of which 11 are the gradients of the weights
    _, saving_model = twins()
    saving_model.set_grad_checkpointing(False)
    assert peak_megabytes(lambda: loss(saving_model, images).backward()) == pytest.approx(plain, rel=0.01)


def test_a_timm_backbone_without_batch_norms() -> None:
    plain, saving = twins(backbone="convnextv2_atto")
    assert_same_step(plain, saving)
    images = torch.rand(1, 3, 256, 256)
    peaks = [peak_megabytes(lambda model=model: loss(model, images).backward()) for model in (plain, saving)]
    assert peaks[1] < 0.65 * peaks[0]  # 49 and 92 MiB


def test_a_timm_backbone_with_batch_norms_is_refused() -> None:
    model = create_model("yolo_master_n", num_classes=3, backbone="test_resnet")
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="grad_checkpointing must be False for a timm backbone with batch norms"):
        model.set_grad_checkpointing()
