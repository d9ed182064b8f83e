# SPDX-License-Identifier: Apache-2.0
"""Prediction: from images of any size to detections in their own pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_vision.data import ImageLike, eval_transform, to_image, undo_letterbox
from moe_vision.models import YOLOMaster
from moe_vision.models.yolo_master import check_image_size
from moe_vision.tasks import postprocess

BATCH_SIZE = 16


@torch.inference_mode()
def predict(
    model: YOLOMaster,
    images: ImageLike | Sequence[ImageLike],
    *,
    score: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
    image_size: int | None = None,
) -> list[dict[str, Tensor]]:
    """Detect objects in images. The network predicts in eval mode and is left in the mode it was in.

    Args:
        model: A detector.
        images: One image or several, each of any size: a path, an array (H, W, 3) of uint8 or a tensor (3, H, W) of
            uint8 or of floats in [0, 1]; RGB. A tensor (B, 3, H, W) is B images.
        score: Lowest score to report, in [0, 1].
        iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
        max_detections: Most detections to report for an image.
        image_size: Side in pixels to which images are letterboxed, a multiple of 32; that of the model if None.

    Shape:
        - Output: for each image ``boxes`` (D, 4), xyxy in pixels of that image, ``scores`` (D,), in [0, 1] and
          descending, ``labels`` (D,), int64, an index into ``model.class_names``; on the CPU

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
    waiting = _listed(images)
    size = model.image_size if image_size is None else image_size
    check_image_size(size)
    device = next(model.parameters()).device
    transform = eval_transform(size)
    results = []
    modes = [(module, module.training) for module in model.modules()]  # parts may be frozen in eval
    model.eval()
    try:
        for start in range(0, len(waiting), BATCH_SIZE):
            chunk = [to_image(image) for image in waiting[start : start + BATCH_SIZE]]
            batch = torch.stack([transform(image) for image in chunk]).to(device)
            found = postprocess(model(batch), score=score, iou=iou, max_detections=max_detections)
            for one, image in zip(found, chunk, strict=True):
                height, width = image.shape[1:]
                results.append(in_original(one, height, width, size))
    finally:
        for module, mode in modes:
            module.training = mode
    return results


def _listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def in_original(objects: dict[str, Tensor], height: int, width: int, size: int) -> dict[str, Tensor]:
    """Take objects from the letterboxed square to the height x width image, without those in the border, to the CPU."""
    boxes = undo_letterbox(objects["boxes"], height, width, size)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return {name: value[visible].cpu() for name, value in {**objects, "boxes": boxes}.items()}
