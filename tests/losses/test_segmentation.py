# SPDX-License-Identifier: Apache-2.0
"""The mask loss, with the arithmetic by hand, against a naive one, and its memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_vision.losses import segmentation
from moe_vision.losses.assign import BatchAssignment
from moe_vision.losses.segmentation import mask_loss
from tests.memory import peak_megabytes

Target = dict[str, Tensor]
EMPTY = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 8, 8, dtype=torch.bool)}


def rectangle(left: int, top: int, right: int, bottom: int, size: int = 8) -> Target:
    """An object that fills its box."""
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return {"boxes": torch.tensor([[left, top, right, bottom]], dtype=torch.float32), "masks": mask}


def assignment(rows: list[tuple[int, int, int, float]]) -> BatchAssignment:
    """Build an assignment of (image, point, object, quality)."""
    images, points, objects, quality = zip(*rows, strict=True) if rows else ((), (), (), ())
    indices = (torch.tensor(values, dtype=torch.int64) for values in (images, points, objects))
    return BatchAssignment(*indices, torch.tensor(quality))


# Probabilities 3/4 and 1/4 in the upper cells, and nearly 1 in the lower ones, for the coefficient 1.
PROTOTYPE = torch.tensor([[math.log(3), -math.log(3)], [50.0, 50.0]])[None, None]
ONE = torch.ones(1, 1, 1)


def test_literally() -> None:
    # The object covers the left upper cell and half of the right one: its box touches these two alone.
    # BCE: -log 3/4 = 0.287682 and -(log 1/4 + log 3/4) / 2 = 0.836988, mean 0.562335; 7.5 * 0.5 * 0.562335 = 2.108756
    loss = mask_loss(ONE, PROTOTYPE, [rectangle(0, 0, 6, 4)], assignment([(0, 0, 0, 0.5)]))
    assert loss.item() == pytest.approx(2.108756, rel=1e-6)


def test_box_that_is_larger_than_the_mask_counts_its_background() -> None:
    target = rectangle(0, 0, 4, 4)
    target["boxes"] = torch.tensor([[0.0, 0.0, 4.5, 4.0]])  # touches the right upper cell
    # -log 3/4 = 0.287682 for object and background alike
    loss = mask_loss(ONE, PROTOTYPE, [target], assignment([(0, 0, 0, 1.0)]))
    assert loss.item() == pytest.approx(7.5 * 0.287682, rel=1e-5)


def test_points_count_by_their_quality_and_their_image() -> None:
    # Objects 0 and 1 of the batch are the only ones of images 0 and 2; of point 1 all probabilities are 1/2.
    coefficients, prototypes = torch.tensor([[1.0], [0.0]]).expand(3, 2, 1), PROTOTYPE.expand(3, 1, 2, 2)
    targets = [rectangle(0, 0, 4, 4), EMPTY, rectangle(4, 0, 8, 4)]
    loss = mask_loss(coefficients, prototypes, targets, assignment([(0, 0, 0, 0.9), (0, 1, 0, 0.6), (2, 0, 1, 1.0)]))
    # -log 3/4 for the left cell, log 2, and -log 1/4 for the right cell
    expected = 7.5 * (0.9 * math.log(4 / 3) + 0.6 * math.log(2) + 1.0 * math.log(4)) / (0.9 + 0.6 + 1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_bytes_are_masks_too() -> None:
    target, assigned = rectangle(0, 0, 6, 4), assignment([(0, 0, 0, 1.0)])
    expected = mask_loss(ONE, PROTOTYPE, [target], assigned)
    for value in (1, 255):
        masks = target["masks"].to(torch.uint8) * value
        assert torch.equal(mask_loss(ONE, PROTOTYPE, [{**target, "masks": masks}], assigned), expected)


def test_without_objects_it_is_zero_and_connected() -> None:
    maps = [torch.rand(2, 5, 3, requires_grad=True), torch.rand(2, 3, 2, 2, requires_grad=True)]
    loss = mask_loss(*maps, [EMPTY, EMPTY], assignment([]))
    assert loss.item() == 0
    loss.backward()
    assert all(part.grad is not None and not part.grad.any() for part in maps)


def crowd(size: int = 32) -> tuple[Tensor, Tensor, list[Target], BatchAssignment]:
    """Two images with 7 objects, of which 20 points answer for some."""
    boxes = torch.rand(7, 2, 2).mul(size - 2).sort(dim=1).values.flatten(1) + torch.tensor([0, 0, 2, 2])
    masks = torch.rand(7, size, size) > 0.4
    targets = [{"boxes": boxes[:3], "masks": masks[:3]}, {"boxes": boxes[3:], "masks": masks[3:]}]
    objects = torch.arange(20) // 3
    quality = torch.rand(20)
    assigned = BatchAssignment((objects >= 3).long(), torch.randperm(50)[:20], objects, quality)
    return torch.randn(2, 50, 4), torch.randn(2, 4, size // 4, size // 4), targets, assigned


def naive(coefficients: Tensor, prototypes: Tensor, targets: list[Target], assigned: BatchAssignment) -> Tensor:
    boxes, masks = (torch.cat([target[name] for target in targets]) for name in ("boxes", "masks"))
    pooled = F.avg_pool2d(masks.to(coefficients.dtype), 4)
    loss = torch.zeros((), dtype=coefficients.dtype)
    for image, point, index, quality in zip(*assigned, strict=True):
        logits = (coefficients[image, point][:, None, None] * prototypes[image]).sum(dim=0)
        x1, y1, x2, y2 = boxes[index].tolist()
        window = (slice(math.floor(y1 / 4), math.ceil(y2 / 4)), slice(math.floor(x1 / 4), math.ceil(x2 / 4)))
        loss = loss + quality * F.binary_cross_entropy_with_logits(logits[window], pooled[index][window])
    return 7.5 * loss / assigned.quality.sum()


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_equals_the_naive_loss_and_its_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "CHUNK", chunk)
    coefficients, prototypes, targets, assigned = crowd()
    maps = [coefficients.requires_grad_(), prototypes.requires_grad_()]
    loss, expected = mask_loss(*maps, targets, assigned), naive(*(part.double() for part in maps), targets, assigned)
    torch.testing.assert_close(loss, expected.float())
    for gradient, wanted in zip(torch.autograd.grad(loss, maps), torch.autograd.grad(expected, maps), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_masks_are_mixed_in_fp32_under_autocast() -> None:
    coefficients, prototypes, targets, assigned = crowd()
    expected = mask_loss(coefficients.bfloat16().float(), prototypes.bfloat16().float(), targets, assigned)
    with torch.autocast("cpu", torch.bfloat16):
        maps = [part.bfloat16().requires_grad_() for part in (coefficients, prototypes)]
        loss = mask_loss(*maps, targets, assigned)
        loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert all(part.grad.isfinite().all() for part in maps)


@pytest.mark.parametrize(("size", "most"), [(256, 20), pytest.param(640, 80, marks=pytest.mark.slow)])
def test_memory_is_bounded_with_500_objects(size: int, most: int) -> None:
    # A float for each cell of the 5000 masks would be 82 MB at 256 pixels and 512 MB at 640, several times over.
    target = {"boxes": torch.tensor([[0.0, 0.0, size, size]]).expand(500, 4)}
    target["masks"] = torch.ones(500, size, size, dtype=torch.bool)
    points = torch.arange(5000)
    assigned = BatchAssignment(points * 0, points, points // 10, torch.ones(5000))
    maps = [torch.randn(1, 8400, 32), torch.randn(1, 32, size // 4, size // 4)]
    maps = [part.requires_grad_() for part in maps]
    assert peak_megabytes(lambda: mask_loss(*maps, [target], assigned).backward()) < most
    assert all(part.grad.isfinite().all() for part in maps)
