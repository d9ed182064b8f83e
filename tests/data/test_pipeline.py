# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_vision.data import DetectionPipeline, Sample, undo_letterbox
from moe_vision.data.masks import mask_boxes
from moe_vision.data.seeded import derive_seed

from .painted import PaintedSource, check_mask, extent, grown, painted


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


ALL = {"mixup": 0.5, "copy_paste": 0.7, "rotate": 30.0, "shear": 10.0, "vflip": 0.5}


@given(seed=st.integers(0, 10**6), index=st.integers(0, 11), mosaic=st.sampled_from([0.0, 1.0]))
def test_masks_boxes_and_labels_follow_the_pixels_through_all_augmentations(
    seed: int, index: int, mosaic: float
) -> None:
    source = PaintedSource(masked=True)
    image, target = DetectionPipeline(source, 128, augment=True, mosaic=mosaic, seed=seed, **ALL)[index]
    masks, labels = target["masks"], target["labels"]
    assert image.shape == (3, 128, 128)
    assert len(masks) == len(labels) == len(target["boxes"])
    torch.testing.assert_close(mask_boxes(masks), target["boxes"], atol=2, rtol=0)
    for mask, channel in zip(masks, labels.tolist(), strict=True):
        others = [other for other in range(3) if other != channel]
        excess = image[channel] - image[others].amax(dim=0)
        shone_through = masks[labels != channel].any(dim=0)  # by mixup: there another colour may prevail
        inner = -F.max_pool2d(-mask.float()[None], 3, stride=1, padding=1)[0] > 0
        assert (excess[inner & ~grown(shone_through)] > 0.02).all()


def test_the_defaults_draw_the_random_numbers_they_always_drew() -> None:
    pipeline = DetectionPipeline(PaintedSource(), 96, augment=True, seed=1)
    image, target = pipeline[5]
    expected = torch.tensor([[58.354836, 6.5, 88.161293, 28.5], [60.168068, 40.0, 81.596642, 49.944443]])
    torch.testing.assert_close(target["boxes"], expected, atol=1e-4, rtol=0)
    assert target["labels"].tolist() == [2, 0]
    assert image.mean().item() == pytest.approx(0.0435686, abs=1e-4)


@pytest.mark.parametrize("name", ["mixup", "copy_paste", "rotate", "shear"])
def test_each_augmentation_changes_samples_and_is_off_by_default(name: str) -> None:
    options = {"augment": True, "mosaic": 0.0, "seed": 3}
    plain, off, on = (
        DetectionPipeline(PaintedSource(masked=True), 96, **options, **{name: value} if value is not None else {})
        for value in (None, 0.0, 1.0)
    )
    assert equal(plain[2], off[2])
    assert not any(equal(plain[index], on[index]) for index in range(3))


def test_copy_paste_needs_masks() -> None:
    with pytest.raises(
        ValueError, match=r"copy_paste must be 0 for data without masks, got 0.5; open the data with masks"
    ):
        DetectionPipeline(PaintedSource(), 96, augment=True, copy_paste=0.5)
    DetectionPipeline(PaintedSource(), 96, copy_paste=0.5)[0]  # to evaluate, nothing is pasted


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
    for mixup, count in [(0.0, 4), (1.0, 8)]:  # mixup is closed with it
        pipeline = DetectionPipeline(source, 96, augment=True, mosaic=1.0, mosaic_epochs=2, mixup=mixup)
        for epoch, reads in [(0, count), (1, count), (2, 1), (3, 1)]:
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
