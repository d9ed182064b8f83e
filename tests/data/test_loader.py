# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from moe_vision.data import DetectionPipeline, build_loader, collate
from moe_vision.data.loader import Batch

from .painted import PaintedSource


def batches(num_workers: int, epoch: int = 0, *, augment: bool = True, **options: bool) -> list[Batch]:
    pipeline = DetectionPipeline(PaintedSource(), 64, augment=augment, mosaic=0.5, seed=3)
    pipeline.set_epoch(epoch)
    return list(build_loader(pipeline, 5, num_workers=num_workers, seed=3, **options))


def ids(found: list[Batch]) -> list[int]:
    return [target["image_id"] for _, targets in found for target in targets]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return ids(one) == ids(other) and all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


def test_collate_stacks_images_and_lists_targets() -> None:
    pipeline = DetectionPipeline(PaintedSource(), 64)
    images, targets = collate([pipeline[0], pipeline[5]])
    assert images.shape == (2, 3, 64, 64)
    assert images.is_contiguous()
    assert torch.equal(images[1], pipeline[5][0])
    assert [target["image_id"] for target in targets] == [0, 5]
    assert torch.equal(targets[1]["boxes"], pipeline[5][1]["boxes"])


def test_masks_reach_the_batch() -> None:
    pipeline = DetectionPipeline(PaintedSource(masked=True), 64, augment=True)
    alone, shared = (list(build_loader(pipeline, 5, num_workers=workers)) for workers in (0, 2))
    for (_, one), (_, other) in zip(alone, shared, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a["masks"].shape == (len(a["boxes"]), 64, 64)
            assert torch.equal(a["masks"], b["masks"])


def test_workers_change_nothing() -> None:
    for epoch in (0, 7):
        alone, shared = (batches(workers, epoch, shuffle=True) for workers in (0, 2))
        assert same(alone, shared)
        for (_, one), (_, other) in zip(alone, shared, strict=True):
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a["boxes"], b["boxes"])
                assert torch.equal(a["labels"], b["labels"])
                assert a["size"] == b["size"]


@pytest.mark.parametrize(
    "options", [{"mixup": 0.5}, {"copy_paste": 0.5}, {"rotate": 20.0, "shear": 5.0}], ids=["mixup", "paste", "affine"]
)
def test_workers_change_nothing_in_any_augmentation(options: dict[str, float]) -> None:
    pipeline = DetectionPipeline(PaintedSource(masked=True), 64, augment=True, mosaic=0.5, seed=3, **options)
    pipeline.set_epoch(4)
    alone, one, two = (list(build_loader(pipeline, 5, shuffle=True, num_workers=workers)) for workers in (0, 1, 2))
    for others in (one, two):
        assert same(alone, others)
        for (_, a), (_, b) in zip(alone, others, strict=True):
            for mine, theirs in zip(a, b, strict=True):
                assert all(torch.equal(mine[key], theirs[key]) for key in ("boxes", "labels", "masks"))


def test_set_epoch_reaches_the_workers() -> None:
    pipeline = DetectionPipeline(PaintedSource(), 64, augment=True)
    loader = build_loader(pipeline, 4, num_workers=2)
    first = list(loader)
    pipeline.set_epoch(1)
    assert not same(first, list(loader))
    pipeline.set_epoch(0)
    assert same(first, list(loader))


def test_epochs_differ_in_order_and_can_be_repeated() -> None:
    orders = [ids(batches(0, epoch, augment=False, shuffle=True)) for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != list(range(12))


def test_without_shuffle_the_order_is_kept() -> None:
    assert ids(batches(0)) == list(range(12))


def test_drop_last_leaves_out_what_is_not_full() -> None:
    assert [len(targets) for _, targets in batches(0)] == [5, 5, 2]
    assert [len(targets) for _, targets in batches(0, drop_last=True)] == [5, 5]


def test_the_global_random_state_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    batches(0, shuffle=True)
    batches(2, shuffle=True)
    assert torch.equal(torch.get_rng_state(), before)
