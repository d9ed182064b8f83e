# SPDX-License-Identifier: Apache-2.0
"""Samples to classify, plain and mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_vision.data import ClassificationPipeline, Sample, build_loader
from moe_vision.data.loader import Batch


class Colours:
    """Seven images of one colour each, the colour of their class."""

    classes = ("red", "green", "blue")

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Sample:
        image = torch.zeros(3, 40 + index, 50, dtype=torch.uint8)
        image[index % 3] = 255
        return image, {"label": index % 3, "image_id": index}


class Noise(Colours):
    """Images whose pixels all differ."""

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 50 + index, 60 - index), generator=generator, dtype=torch.uint8)
        return image, {"label": index % 3, "image_id": index}


class Halves(Colours):
    """White above and left of the middle: a quarter of the pixels."""

    def __getitem__(self, index: int) -> Sample:
        image = torch.zeros(3, 64, 64, dtype=torch.uint8)
        image[:, :32, :32] = 255
        return image, {"label": 0, "image_id": index}


PLAIN = {"augment": True, "auto_augment": "none", "erasing": 0.0}


def batches(source: Colours, *, size: int = 3, workers: int = 0, epoch: int = 0, **options: object) -> list[Batch]:
    pipeline = ClassificationPipeline(source, 32, **{"augment": True, "seed": 3, **options})
    pipeline.set_epoch(epoch)
    return list(build_loader(pipeline, size, shuffle=True, num_workers=workers, seed=3))


def labels(targets: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([torch.as_tensor(target["label"]) for target in targets])


def test_the_defaults_draw_the_random_numbers_they_always_drew() -> None:
    pipeline = ClassificationPipeline(Noise(), 32, augment=True, seed=5)
    means = [pipeline[index][0].mean().item() for index in range(4)]
    assert means == pytest.approx([0.489134, 0.172452, 0.435659, 0.501315], abs=1e-3)
    assert pipeline[2][1] == {"label": 2, "image_id": 2}


@given(mixup=st.sampled_from([0.0, 0.3, 1.0]), cutmix=st.sampled_from([0.5, 1.0]), seed=st.integers(0, 1000))
def test_labels_are_mixed_as_the_pixels_are(mixup: float, cutmix: float, seed: int) -> None:
    for images, targets in batches(Colours(), mixup=mixup, cutmix=cutmix, seed=seed, **PLAIN):
        shares = labels(targets)
        assert shares.shape == (len(images), 3)
        # The images are of pure colours: the mean of a channel is the share of its class.
        torch.testing.assert_close(shares, images.mean(dim=(2, 3)), atol=1e-5, rtol=0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(images)))


def test_a_sample_is_the_same_in_any_batch_and_mixed_alone_too() -> None:
    whole, single = (batches(Colours(), size=size, mixup=1.0, cutmix=1.0, **PLAIN) for size in (7, 1))
    assert torch.equal(whole[0][0], torch.cat([images for images, _ in single]))
    shares = labels(whole[0][1])
    assert torch.equal(shares, torch.cat([labels(targets) for _, targets in single]))
    assert ((shares > 0) & (shares < 1)).any()


@pytest.mark.parametrize(
    "options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}, {"auto_augment": "rand", "vflip": 0.5}]
)
def test_workers_change_nothing(options: dict[str, object]) -> None:
    alone, *others = (batches(Noise(), workers=workers, epoch=2, **options) for workers in (0, 1, 2))
    for found in others:
        for (images, targets), (same_images, same_targets) in zip(alone, found, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels(targets), labels(same_targets))


def test_epochs_and_seeds_are_mixed_otherwise_and_nothing_else_is_drawn() -> None:
    before = torch.get_rng_state()
    ratios = [
        {round(share, 6) for share in labels(targets).flatten().tolist() if 0 < share < 1}
        for epoch in range(2)
        for seed in range(2)
        for _, targets in batches(Colours(), epoch=epoch, seed=seed, mixup=1.0, **PLAIN)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set().union(*ratios)) == sum(map(len, ratios)) > 20  # each ratio and its rest once


def test_the_other_image_is_any_of_the_data_set_and_both_are_augmented() -> None:
    pipeline = ClassificationPipeline(Noise(), 32, augment=True, mixup=1.0)
    partners = set()
    for epoch in range(20):
        pipeline.set_epoch(epoch)
        partners |= set(pipeline[0][1]["label"].nonzero().flatten().tolist())
    assert partners == {0, 1, 2}


def test_both_mixings_occur() -> None:
    kinds = set()
    for epoch in range(10):
        images, _ = batches(Colours(), epoch=epoch, mixup=1.0, cutmix=1.0, **PLAIN)[0]
        kinds.add(bool(((images > 0.01) & (images < 0.99)).any()))  # cutmix leaves all pixels pure
    assert kinds == {True, False}


def bright(**options: object) -> tuple[int, int]:
    """How many of 40 images are brighter above than below, and to the left than to the right."""
    pipeline = ClassificationPipeline(Halves(), 32, **{**PLAIN, **options})
    above = left = 0
    for epoch in range(40):
        pipeline.set_epoch(epoch)
        image = pipeline[0][0]
        above += bool(image[:, :16].sum() >= image[:, 16:].sum())
        left += bool(image[:, :, :16].sum() >= image[:, :, 16:].sum())
    return above, left


def test_flips() -> None:
    assert bright(hflip=0.0) == (40, 40)
    above, left = bright(hflip=1.0, vflip=1.0)
    assert above < 20  # the rest are crops of one colour
    assert left < 20
    above, left = bright()
    assert above == 40
    assert 5 < left < 40


def test_erasing_and_auto_augment() -> None:
    def zeros(**options: object) -> int:
        pipeline = ClassificationPipeline(Bright(), 32, augment=True, **options)
        return sum(bool((pipeline[index][0] == 0).any()) for index in range(7))

    class Bright(Colours):
        def __getitem__(self, index: int) -> Sample:
            return torch.full((3, 40, 40), 200, dtype=torch.uint8), {"label": 0, "image_id": index}

    assert zeros(auto_augment="none", erasing=1.0) == 7
    assert zeros(auto_augment="none", erasing=0.0) == 0
    changed = [
        ClassificationPipeline(Noise(), 32, **{**PLAIN, "auto_augment": kind})[0][0] for kind in ("none", "rand")
    ]
    assert not torch.equal(*changed)
    with pytest.raises(ValueError, match="auto_augment must be trivial or rand or none, got 'auto'"):
        ClassificationPipeline(Noise(), 32, augment=True, auto_augment="auto")
