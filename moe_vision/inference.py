# SPDX-License-Identifier: Apache-2.0
"""Prediction: from images of any size to detections, masks or classes, in the images' own pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_vision.data import ImageLike, eval_transform, letterbox_geometry, to_image, undo_letterbox
from moe_vision.data.transforms import Transform, classify_transform
from moe_vision.models import YOLOMaster
from moe_vision.models.yolo_master import check_image_size
from moe_vision.tasks import class_scores, mask_polygons, render_masks
from moe_vision.tasks.masks import mask_windows
from moe_vision.tasks.postprocess import suppress

BATCH_SIZE = 16

Result = dict[str, Any]


@torch.inference_mode()
def predict(
    model: YOLOMaster,
    images: ImageLike | Sequence[ImageLike],
    *,
    score: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
    image_size: int | None = None,
    polygons: bool = False,
) -> list[Result]:
    """Detect, segment or classify images. The network predicts in eval mode and is left in the mode it was in.

    Args:
        model: A network of any task.
        images: One image or several, each of any size: a path, an array (H, W, 3) of uint8 or a tensor (3, H, W) of
            uint8 or of floats in [0, 1]; RGB. A tensor (B, 3, H, W) is B images.
        score: Lowest score to report, in [0, 1]; a classifier reports all.
        iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
        max_detections: Most detections to report for an image.
        image_size: Side in pixels to which images are letterboxed, a multiple of 32; that of the model if None. To
            classify, the shorter side is resized to it and the centre cropped.
        polygons: Report the outlines of segmented objects in place of their masks, which never exist all at once: for
            images so large that (D, H, W) bytes are too many.

    Shape:
        - Output, ``detect``: for each image ``boxes`` (D, 4), xyxy in pixels of that image, ``scores`` (D,), in [0, 1]
          and descending, ``labels`` (D,), int64, an index into ``model.class_names``; on the CPU
        - Output, ``segment``: besides, ``masks`` (D, H, W), bool, in the pixels of that image, or ``polygons``: for
          each object what `moe_vision.tasks.mask_polygons` returns
        - Output, ``classify``: for each image ``label``, an index into ``model.class_names``, ``score``, a float in
          [0, 1], and ``scores`` (num_classes,)

    Raises:
        FileNotFoundError: If an image's file does not exist.
        ValueError: If an image can't be read or holds values that are no pixels (NaN for one), or an argument is out
            of its range.

    Examples:
        >>> import torch
        >>> from moe_vision import create_model, predict
        >>> model = create_model("yolo_master_n", num_classes=3, image_size=64)
        >>> [result["boxes"].shape for result in predict(model, [torch.rand(3, 40, 60), torch.rand(3, 64, 64)])]
        [torch.Size([0, 4]), torch.Size([0, 4])]
    """
    waiting, task = _listed(images), model.config.task
    size = model.image_size if image_size is None else image_size
    check_image_size(size)
    if polygons and task != "segment":
        raise ValueError(f"polygons must be False for a network of task={task!r}, which finds no masks")
    limits = {"score": score, "iou": iou, "max_detections": max_detections}
    results: list[Result] = []
    with _in_eval(model):
        for start in range(0, len(waiting), BATCH_SIZE):
            chunk = [to_image(image) for image in waiting[start : start + BATCH_SIZE]]
            if task == "classify":
                results += _classify(model, chunk, size)
            elif task == "segment":
                results += _segment(model, chunk, size, polygons, limits)
            else:
                results += _detect(model, chunk, size, limits)
    return results


def _detect(model: YOLOMaster, images: list[Tensor], size: int, limits: dict[str, Any]) -> list[Result]:
    found = suppress(_forward(model, images, eval_transform(size)), **limits)
    return [in_original(one, image.shape[1], image.shape[2], size) for one, image in zip(found, images, strict=True)]


def _segment(
    model: YOLOMaster, images: list[Tensor], size: int, polygons: bool, limits: dict[str, Any]
) -> list[Result]:
    output = _forward(model, images, eval_transform(size))
    results: list[Result] = []
    for one, prototypes, image in zip(suppress(output, **limits), output.prototypes.cpu(), images, strict=True):
        height, width = image.shape[1:]
        result: Result = in_original(one, height, width, size)
        place = letterbox_geometry(height, width, size)
        scale, offset = (place.width / width, place.height / height), (float(place.left), float(place.top))
        masks = (result.pop("coefficients"), prototypes, result["boxes"], (height, width))
        if polygons:
            windows = mask_windows(*masks, scale=scale, offset=offset)
            result["polygons"] = [mask_polygons(mask, left=left, top=top) for mask, left, top in windows]
        else:
            result["masks"] = render_masks(*masks, scale=scale, offset=offset)
        results.append(result)
    return results


def _classify(model: YOLOMaster, images: list[Tensor], size: int) -> list[Result]:
    return class_scores(_forward(model, images, classify_transform(size)).cpu())


def _forward(model: YOLOMaster, images: list[Tensor], transform: Transform) -> Any:
    device = next(model.parameters()).device
    return model(torch.stack([transform(image) for image in images]).to(device))


def _listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while; parts that were frozen in it stay so."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def in_original(objects: dict[str, Tensor], height: int, width: int, size: int) -> dict[str, Tensor]:
    """Take objects from the letterboxed square to the height x width image, without those in the border, to the CPU."""
    boxes = undo_letterbox(objects["boxes"], height, width, size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {name: value[visible].cpu() for name, value in {**objects, "boxes": boxes}.items()}
