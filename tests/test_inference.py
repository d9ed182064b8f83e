# SPDX-License-Identifier: Apache-2.0
"""Prediction: every kind of input, boxes and masks in the pixels of the original image, classes, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moe_vision import create_model, predict
from moe_vision.data import eval_transform
from moe_vision.models import YOLOMaster
from moe_vision.tasks import mask_polygons, postprocess, render_masks
from moe_vision.tasks.postprocess import suppress
from tests.memory import peak_megabytes
from tests.models.reference_detector import busy_detector, busy_segmenter

LIMITS = {"score": 0.5, "iou": 0.5, "max_detections": 50}


@pytest.fixture(scope="module")
def model() -> YOLOMaster:
    return busy_detector()


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    assert torch.equal(found["labels"], expected["labels"])


@pytest.mark.parametrize(
    ("height", "width", "scale", "left", "top"),
    [(64, 64, 1.0, 0, 0), (40, 80, 0.8, 0, 16), (128, 32, 0.5, 24, 0), (20, 15, 3.2, 8, 0)],
)
def test_boxes_are_in_pixels_of_the_image(
    model: YOLOMaster, height: int, width: int, scale: float, left: int, top: int
) -> None:
    image = photo(height, width)
    (found,) = predict(model, image, **LIMITS)
    # By hand: what the network sees is the image times `scale`, moved by (left, top) to the centre of 64 x 64.
    with torch.inference_mode():
        (square,) = postprocess(model(eval_transform(64)(image)[None]), **LIMITS)
    boxes = (square["boxes"] - torch.tensor([left, top, left, top])) / scale
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    expected = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
    visible = (expected[:, 0] < expected[:, 2]) & (expected[:, 1] < expected[:, 3])
    assert visible.sum() > 5
    assert_equal(found, {name: part[visible] for name, part in {**square, "boxes": expected}.items()})


def test_what_lies_in_the_grey_border_is_no_detection(model: YOLOMaster) -> None:
    image = photo(8, 64)  # in rows 28 to 36 of the square
    with torch.inference_mode():
        (square,) = postprocess(model(eval_transform(64)(image)[None]), score=0.5)
    (found,) = predict(model, image, score=0.5)
    in_image = (square["boxes"][:, 1] < 36) & (square["boxes"][:, 3] > 28)
    assert 0 < in_image.sum() < len(in_image)
    assert torch.equal(found["labels"], square["labels"][in_image])
    assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()


def test_every_kind_of_image_gives_the_same(model: YOLOMaster, tmp_path: Path) -> None:
    image = photo(40, 60)
    pixels = image.permute(1, 2, 0).numpy()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    (expected,) = predict(model, image, **LIMITS)
    for kind in (path, str(path), pixels, image.float() / 255, (image.double() / 255).requires_grad_(), [image]):
        (found,) = predict(model, kind, **LIMITS)
        assert_equal(found, expected)


def test_several_images_of_any_size_and_kind(model: YOLOMaster) -> None:
    images = [photo(40, 60), photo(64, 64, seed=1), photo(90, 30, seed=2).permute(1, 2, 0).numpy()] * 6
    together = predict(model, images, **LIMITS)  # more than one batch
    assert len(together) == 18
    for index in (0, 1, 2, 17):
        assert_equal(together[index], predict(model, images[index], **LIMITS)[0])


def test_a_batch_is_a_list(model: YOLOMaster) -> None:
    batch = torch.stack([photo(40, 60, seed) for seed in range(3)])
    found = predict(model, batch, **LIMITS)
    assert len(found) == 3
    for one, image in zip(found, batch, strict=True):
        assert_equal(one, predict(model, image, **LIMITS)[0])


def test_no_images(model: YOLOMaster) -> None:
    assert predict(model, []) == []


def test_limits_reach_the_post_processing(model: YOLOMaster) -> None:
    image = photo(64, 64)
    (few,) = predict(model, image, score=0.5, max_detections=3)
    assert len(few["scores"]) == 3
    assert (few["scores"].diff() <= 0).all()
    (high,) = predict(model, image, score=0.9)
    assert (high["scores"] > 0.9).all()


def test_image_size_may_be_chosen(model: YOLOMaster) -> None:
    image = photo(128, 128)
    (found,) = predict(model, image, **LIMITS, image_size=128)
    with torch.inference_mode():
        (expected,) = postprocess(model(image[None] / 255), **LIMITS)
    assert_equal(found, {**expected, "boxes": expected["boxes"].clamp(0, 128)})


@pytest.fixture(scope="module")
def segmenter() -> YOLOMaster:
    return busy_segmenter()


@pytest.mark.parametrize(("height", "width", "scale", "left", "top"), [(64, 64, 1, 0, 0), (24, 32, 2, 0, 8)])
def test_masks_are_in_pixels_of_the_image(
    segmenter: YOLOMaster, height: int, width: int, scale: int, left: int, top: int
) -> None:
    image = photo(height, width)
    (found,) = predict(segmenter, image, **LIMITS)
    with torch.inference_mode():
        (square,) = postprocess(segmenter(eval_transform(64)(image)[None]), **LIMITS)
    visible = (square["boxes"][:, 1] < 64 - top) & (square["boxes"][:, 3] > top)
    assert visible.sum() > 5
    assert set(found) == {"boxes", "scores", "labels", "masks"}
    torch.testing.assert_close(found["scores"], square["scores"][visible], rtol=1e-4, atol=1e-5)
    masks = square["masks"][visible, top : top + height * scale, left : left + width * scale]
    # By hand: a pixel of the image is scale x scale of those the network sees; where these agree, it is as they are.
    shares = torch.nn.functional.avg_pool2d(masks.float(), scale)
    certain = (shares == 0) | (shares == 1)
    assert found["masks"].shape == (visible.sum(), height, width)
    assert torch.equal(found["masks"][certain], shares[certain] == 1)
    sizes = found["boxes"][:, 2:] - found["boxes"][:, :2]
    shares_of_boxes = found["masks"].sum(dim=(1, 2)) / sizes.prod(dim=1)
    assert ((shares_of_boxes > 0.2) & (shares_of_boxes < 0.8)).float().mean() > 0.4  # they have outlines of their own
    assert certain.float().mean() > 0.95


def test_masks_of_an_image_whose_sides_shrink_unevenly(segmenter: YOLOMaster) -> None:
    image = photo(9, 200)  # to 3 x 64 pixels: by 3.125 across, and 3 down
    (found,) = predict(segmenter, image, **LIMITS)
    with torch.inference_mode():
        output = segmenter(eval_transform(64)(image)[None])
    coefficients = suppress(output, **LIMITS)[0]
    visible = (coefficients["boxes"][:, 1] < 33) & (coefficients["boxes"][:, 3] > 30)
    maps = torch.einsum("dk,khw->dhw", coefficients["coefficients"][visible], output.prototypes[0])
    # Rows 30 to 33 of the square are the image; pixel (y, x) is centred at (30 + (y + 1/2) / 3, (x + 1/2) / 3.125).
    y, x = 30 + (torch.arange(9) + 0.5) / 3, (torch.arange(200) + 0.5) / 3.125
    grid = torch.stack(torch.meshgrid(x / 32 - 1, y / 32 - 1, indexing="xy"), dim=-1)[None]
    logits = torch.nn.functional.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0]
    certain = logits.abs() > 1e-3
    within = render_masks(torch.ones(len(maps), 32), torch.ones(32, 4, 4), found["boxes"], (9, 200))
    assert torch.equal(found["masks"][certain], ((logits > 0) & within)[certain])
    assert (within & ~found["masks"]).any()
    assert found["masks"].any()


def test_polygons_are_those_of_the_masks(segmenter: YOLOMaster) -> None:
    images = [photo(90, 61), photo(40, 80)]
    for masked, outlined in zip(
        predict(segmenter, images, **LIMITS), predict(segmenter, images, **LIMITS, polygons=True), strict=True
    ):
        assert set(outlined) == {"boxes", "scores", "labels", "polygons"}
        assert len(outlined["polygons"]) == len(masked["masks"]) > 5
        for polygons, mask in zip(outlined["polygons"], masked["masks"], strict=True):
            expected = mask_polygons(mask)
            assert len(polygons) == len(expected)
            assert all(torch.equal(polygon, other) for polygon, other in zip(polygons, expected, strict=True))


def test_polygons_need_no_masks_in_memory(segmenter: YOLOMaster) -> None:
    image, most = photo(1500, 2000), {"score": 0.5, "iou": 0.9, "max_detections": 50}
    assert len(predict(segmenter, image, **most, polygons=True)[0]["polygons"]) > 40
    # The masks are 50 x 3 MB; the image itself and what it is resized through are about 20 MB.
    assert peak_megabytes(lambda: predict(segmenter, image, **most, polygons=True)) < 60
    assert peak_megabytes(lambda: predict(segmenter, image, **most)) > 110


def test_nothing_to_segment(segmenter: YOLOMaster) -> None:
    (found,) = predict(segmenter, photo(40, 60), score=1.0)
    assert found["masks"].shape == (0, 40, 60)
    assert predict(segmenter, photo(40, 60), score=1.0, polygons=True)[0]["polygons"] == []


def test_polygons_are_of_segmentation_alone(model: YOLOMaster) -> None:
    with pytest.raises(ValueError, match="polygons must be False for a network of task='detect'"):
        predict(model, photo(64, 64), polygons=True)


@pytest.fixture(scope="module")
def classifier() -> YOLOMaster:
    """A network whose norms know noise, so that images differ in their scores."""
    torch.manual_seed(0)
    model = create_model("yolo_master_n", task="classify", num_classes=7, image_size=64).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(8, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100), (131, 64)])
def test_classes_are_those_of_the_centre(classifier: YOLOMaster, height: int, width: int) -> None:
    image = photo(height, width)
    (found,) = predict(classifier, image)
    # The shorter side fits already: what the network sees is a crop of 64 pixels.
    top, left = round((height - 64) / 2), round((width - 64) / 2)
    with torch.inference_mode():
        scores = classifier(image[None, :, top : top + 64, left : left + 64] / 255).softmax(dim=1)[0]
    torch.testing.assert_close(found["scores"], scores, rtol=0, atol=1e-3)
    assert found["label"] == scores.argmax()
    assert found["score"] == pytest.approx(scores.max().item(), abs=1e-3)
    (other,) = predict(classifier, photo(64, 64, seed=1))
    assert (other["scores"].log() - scores.log()).abs().max() > 0.1  # far beyond the tolerance, as another image is


def test_many_images_to_classify(classifier: YOLOMaster) -> None:
    images = [photo(30 + index, 50, seed=index) for index in range(17)]
    together = predict(classifier, images)  # more than one batch
    assert len(together) == 17
    for index in (0, 16):
        torch.testing.assert_close(
            together[index]["scores"], predict(classifier, images[index])[0]["scores"], rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_also_after_an_error(model: YOLOMaster, training: bool) -> None:
    model.train(training)
    try:
        predict(model, photo(64, 64), **LIMITS)
        assert model.training is training
        with pytest.raises(ValueError, match="score"):
            predict(model, photo(64, 64), score=2.0)
        assert model.training is training
        statistics = model.backbone.stem.norm.num_batches_tracked.item()
        assert statistics == 0  # no training forward happened
    finally:
        model.eval()


def test_parts_frozen_in_eval_stay_so() -> None:
    model = busy_detector().train()
    model.backbone.eval()
    predict(model, photo(64, 64))
    assert not any(module.training for module in model.backbone.modules())
    assert model.training
    assert all(module.training for module in model.head.modules())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 40, 40), float("nan")), r"must be finite and in \[0, 1\] for a float tensor, got \[nan, nan\]"),
        (torch.full((3, 40, 40), 255.0), r"got \[255, 255\]; scale 0 to 255 down"),
        (torch.zeros(3, 40, 40, dtype=torch.int64), "must be a tensor of uint8 or of floats"),
        (torch.zeros(40, 40), r"must be a tensor \(3, H, W\), got \(40, 40\)"),
        (torch.zeros(1, 4, 40, 40), r"must be a tensor \(3, H, W\), got \(4, 40, 40\)"),
        (np.zeros((40, 40), np.uint8), r"must be an array \(H, W, 3\) of uint8, got \(40, 40\)"),
        (np.zeros((40, 40, 3)), "got .* of float64"),
        ([photo(40, 40), torch.zeros(3, 0, 40)], r"must be a tensor \(3, H, W\), got \(3, 0, 40\)"),
    ],
)
def test_images_that_are_none(model: YOLOMaster, image: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"image must .*{message}|image {message}"):
        predict(model, image)


def test_files_that_are_no_images(model: YOLOMaster, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        predict(model, tmp_path / "none.jpg")
    broken, cut = tmp_path / "broken.jpg", tmp_path / "cut.png"
    broken.write_bytes(b"no image")
    Image.fromarray(photo(64, 64).permute(1, 2, 0).numpy()).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for path in (broken, cut):
        with pytest.raises(ValueError, match=f"must be a readable image, got '{path}'"):
            predict(model, path)


@pytest.mark.parametrize("size", [0, -32, 100])
def test_bad_image_size(model: YOLOMaster, size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size must be a multiple of 32, got {size}"):
        predict(model, photo(64, 64), image_size=size)
