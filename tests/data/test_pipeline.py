# SPDX-License-Identifier: Apache-2.0
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.data import DetectionPipeline, Sample, undo_letterbox
from moe_vision.data.seeded import derive_seed

from .painted import PaintedSource, check_mask, extent, painted


def equal(one: Sample, other: Sample) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1]["boxes"], other[1]["boxes"])


def test_sample_contract() -> None:
    for augment in (False, True):
        image, target = DetectionPipeline(PaintedSource(), 96, augment=augment)[4]
        assert type(image) is type(target["boxes"]) is type(target["labels"]) is torch.Tensor
        assert (image.shape, image.dtype) == ((3, 96, 96), torch.float32)
        assert image.amin() >= 0
        assert image.amax() <= 1
        assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
        assert target["image_id"] == 4
        assert target["size"] == (130, 164)  # 90 + 10 * 4, 200 - 9 * 4


def test_an_image_that_needs_no_resize_is_contiguous_too() -> None:
    image, _ = DetectionPipeline([painted(64, 64, (5, 5, 20, 20), 0)], 64)[0]
    assert image.is_contiguous()


def test_evaluation_boxes_go_back_to_the_original() -> None:
    source = PaintedSource()
    for index, (_, target) in enumerate(DetectionPipeline(source, 96)[index] for index in range(len(source))):
        back = undo_letterbox(target["boxes"], *target["size"], 96)
        torch.testing.assert_close(back, source[index][1]["boxes"].as_subclass(torch.Tensor), atol=1e-3, rtol=0)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 11), epoch=st.integers(0, 300))
def test_augmented_boxes_follow_the_pixels(seed: int, index: int, epoch: int) -> None:
    pipeline = DetectionPipeline(PaintedSource(), 128, augment=True, mosaic=0.0, vflip=0.5, seed=seed)
    pipeline.set_epoch(epoch)
    image, target = pipeline[index]
    for box in target["boxes"]:
        found = torch.tensor(extent(image, index % 3), dtype=torch.float32)
        torch.testing.assert_close(found, box, atol=2, rtol=0)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 11), augment=st.booleans(), mosaic=st.sampled_from([0.0, 1.0]))
def test_masks_follow_the_pixels(seed: int, index: int, augment: bool, mosaic: float) -> None:
    options = {"augment": augment, "mosaic": mosaic, "vflip": 0.5, "seed": seed}
    image, target = DetectionPipeline(PaintedSource(masked=True), 128, **options)[index]
    masks = target["masks"]
    assert type(masks) is torch.Tensor
    assert (masks.shape, masks.dtype) == ((len(target["boxes"]), 128, 128), torch.bool)
    if not mosaic:  # it may show a colour more than once
        for mask in masks:
            check_mask(mask, image, index % 3)
    plain_image, plain = DetectionPipeline(PaintedSource(), 128, **options)[index]
    assert "masks" not in plain
    assert torch.equal(image, plain_image)
    assert torch.equal(target["boxes"], plain["boxes"])


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    pipeline, again = (DetectionPipeline(PaintedSource(), 96, augment=True, mosaic=0.5, seed=1) for _ in range(2))
    first = [pipeline[index] for index in range(12)]
    torch.manual_seed(99)
    assert all(equal(first[index], again[index]) for index in reversed(range(12)))
    pipeline.set_epoch(1)
    assert not any(equal(first[index], pipeline[index]) for index in range(12))
    pipeline.set_epoch(0)
    assert all(equal(first[index], pipeline[index]) for index in range(12))
    other = DetectionPipeline(PaintedSource(), 96, augment=True, mosaic=0.5, seed=2)
    assert not any(equal(first[index], other[index]) for index in range(12))


def test_the_global_random_state_is_left_as_it_was() -> None:
    pipeline = DetectionPipeline(PaintedSource(), 96, augment=True)
    before = torch.get_rng_state()
    pipeline[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_mosaic_can_be_closed() -> None:
    class Counting(PaintedSource):
        reads = 0

        def __getitem__(self, index: int) -> Sample:
            self.reads += 1
            return super().__getitem__(index)

    source = Counting()
    pipeline = DetectionPipeline(source, 96, augment=True, mosaic=1.0, mosaic_epochs=2)
    for epoch, reads in [(0, 4), (1, 4), (2, 1), (3, 1)]:
        source.reads = 0
        pipeline.set_epoch(epoch)
        pipeline[0]
        assert source.reads == reads


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 2**40), min_size=3, max_size=3, unique=True))
def test_seeds_differ_by_order(numbers: list[int]) -> None:
    seed = derive_seed(*numbers)
    assert 0 <= seed < 2**64
    assert seed == derive_seed(*numbers)
    assert seed != derive_seed(*reversed(numbers))
