# SPDX-License-Identifier: Apache-2.0
"""Prediction: from images of any size to detections, masks or classes, in the images' own pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_vision.data import ImageLike, eval_transform, letterbox_geometry, to_image, undo_letterbox
from moe_vision.data.transforms import classify_transform
from moe_vision.models import DetectOutput, ExportedNetwork, SegmentOutput, YOLOMaster
from moe_vision.models.exported import device_of
from moe_vision.models.yolo_master import check_image_size
from moe_vision.tasks import class_scores, mask_polygons
from moe_vision.tasks.masks import mask_windows, paste_windows
from moe_vision.tasks.postprocess import suppress

BATCH_SIZE = 16

Result = dict[str, Any]


@torch.inference_mode()
def predict(
    model: YOLOMaster | ExportedNetwork,
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
        model: A network of any task, or a file of one.
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
    transform = classify_transform(size) if task == "classify" else eval_transform(size)
    device = device_of(model)
    results: list[Result] = []
    with _in_eval(model):
        for start in range(0, len(waiting), BATCH_SIZE):
            chunk = [to_image(image) for image in waiting[start : start + BATCH_SIZE]]
            output = model(torch.stack([transform(image) for image in chunk]).to(device))
            if task == "classify":
                results += class_scores(output.cpu())
                continue
            sizes = [(image.shape[1], image.shape[2]) for image in chunk]
            for result, place in zip(results_in_original(output, sizes, size, **limits), sizes, strict=True):
                results.append(_with_masks(result, place, polygons) if task == "segment" else result)
    return results


def results_in_original(
    output: DetectOutput | SegmentOutput, sizes: Sequence[tuple[int, int]], image_size: int, **limits: Any
) -> Iterator[Result]:
    """Suppress repetitions and take what is left from letterboxed squares to the images they were made of.

    Args:
        output: A network's output in eval.
        sizes: Height and width of each image.
        image_size: Side of the squares in pixels.
        limits: ``score``, ``iou`` and ``max_detections``, as of `moe_vision.tasks.postprocess`.

    Shape:
        - Output: for each image ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), on the CPU, and of a
          `moe_vision.models.SegmentOutput` ``windows``, D instances of `moe_vision.tasks.masks.Window`, each rendered
          when it is asked for
    """
    for index, (found, (height, width)) in enumerate(zip(suppress(output, **limits), sizes, strict=True)):
        result: Result = _in_original(found, height, width, image_size)
        if isinstance(output, SegmentOutput):
            place = letterbox_geometry(height, width, image_size)
            result["windows"] = mask_windows(
                result.pop("coefficients"),
                output.prototypes[index].cpu(),
                result["boxes"],
                (height, width),
                scale=(place.width / width, place.height / height),
                offset=(float(place.left), float(place.top)),
            )
        yield result


def _with_masks(result: Result, size: tuple[int, int], polygons: bool) -> Result:
    windows = result.pop("windows")
    if polygons:
        return {**result, "polygons": [mask_polygons(mask, left=left, top=top) for mask, left, top in windows]}
    return {**result, "masks": paste_windows(windows, len(result["boxes"]), size)}


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


def _in_original(objects: dict[str, Tensor], height: int, width: int, size: int) -> dict[str, Tensor]:
    """Take objects from the letterboxed square to the height x width image, without those in the border, to the CPU."""
    boxes = undo_letterbox(objects["boxes"], height, width, size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {name: value[visible].cpu() for name, value in {**objects, "boxes": boxes}.items()}
