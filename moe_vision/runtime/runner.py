# SPDX-License-Identifier: Apache-2.0
"""A network in an ONNX file, from images to detections, masks or classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_vision.runtime.checks import check_metadata
from moe_vision.runtime.images import Pixels, centre_crop, check_pixels, letterboxed, read_pixels
from moe_vision.runtime.letterbox import undo_letterbox
from moe_vision.runtime.masks import render_masks
from moe_vision.runtime.suppression import check_limits, suppress

FORMAT = "moe_vision-onnx-1"
ROUTING = "routing."  # an output that begins so is the logits of a block

Result = dict[str, Any]
Outputs = dict[str, NDArray[Any]]


class Runner:
    """A network that `moe_vision.export` wrote, run by ONNX Runtime; it gives what `moe_vision.predict` gives.

    Args:
        path: The file.
        providers: Where ONNX Runtime runs it, best first, such as ``["CUDAExecutionProvider"]``.
        threads: Threads of ONNX Runtime, as many as there are cores if 0.

    Attributes:
        task: ``detect``, ``segment`` or ``classify``.
        class_names: Names of the classes.
        image_size: Side in pixels of the square that images are fitted to.
        metadata: All that the file says about itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no network of `moe_vision.export`.

    Examples:
        >>> from moe_vision.runtime import Runner
        >>> runner = Runner("cells.onnx")  # doctest: +SKIP
        >>> (result,) = runner.predict("blood.jpg")  # doctest: +SKIP
        >>> [runner.class_names[label] for label in result["labels"]], result["boxes"].shape  # doctest: +SKIP
        (['RBC', 'RBC', 'Platelets'], (3, 4))
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        self._session, stored = _open(Path(path), providers, threads)
        self.metadata: dict[str, Any] = {key: _parsed(value) for key, value in stored.items()}
        self._path = path
        try:
            check_metadata(self.metadata)
        except ValueError as error:
            raise ValueError(f"file {path} is damaged: {error}") from error
        self.task: str = self.metadata["task"]
        self.class_names: list[str] = self.metadata["class_names"]
        self.image_size: int = self.metadata["image_size"]
        self._names = [output.name for output in self._session.get_outputs()]

    def predict(
        self,
        images: str | Path | Pixels | Sequence[str | Path | Pixels],
        *,
        score: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
        image_size: int | None = None,
    ) -> list[Result]:
        """Detect, segment or classify images, one after the other.

        A file with suppression has dropped boxes by its own limits already.

        Args:
            images: One image or several, each of any size: a path, or an RGB array (H, W, 3) of uint8.
            score: Lowest score to report, in [0, 1]; a classifier reports all.
            iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
            max_detections: Most detections to report for an image.
            image_size: Side in pixels of the square, a multiple of 32; that of the file if None.

        Returns:
            For each image what `moe_vision.predict` returns, as numpy arrays: ``boxes``, ``scores``, ``labels`` and, to
            segment, ``masks``; to classify ``label``, ``score`` and ``scores``.

        Raises:
            FileNotFoundError: If an image's file does not exist.
            ValueError: If an image can't be read, or an argument is out of its range.
        """
        check_limits(score, iou, max_detections)
        size = self.image_size if image_size is None else image_size
        self._check_size(size)
        waiting = list(images) if isinstance(images, list | tuple) else [images]
        return [self._predict_one(image, size, score, iou, max_detections) for image in waiting]

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Return the outputs of the file by name for images (B, 3, H, W) in the range that it takes.

        Raises:
            ValueError: If ONNX Runtime can't run the file on them.
        """
        try:
            return dict(zip(self._names, self._session.run(None, {"images": images}), strict=True))
        except Exception as error:  # it has many kinds
            raise ValueError(f"file {self._path} can't be run by ONNX Runtime: {error}") from error

    def _predict_one(self, image: Any, size: int, score: float, iou: float, most: int) -> Result:
        pixels = check_pixels(image) if isinstance(image, np.ndarray) else read_pixels(image)
        outputs = self.run(self._prepare(pixels, size))
        try:
            return self._result(outputs, pixels, size, score, iou, most)
        except (IndexError, KeyError, TypeError, ValueError) as error:  # of names, types and shapes
            raise ValueError(f"file {self._path} must give what a network of its task does: {error!r}") from error

    def _result(self, outputs: Outputs, pixels: Pixels, size: int, score: float, iou: float, most: int) -> Result:
        """Return what the outputs say of an image, in its own pixels."""
        if self.task == "classify":
            return _class_scores(outputs["output"][0])
        boxes, scores, coefficients = _candidates(outputs, len(self.class_names))
        if self.task == "segment" and coefficients is None:
            raise KeyError("coefficients")
        points, values, labels = suppress(boxes, scores, score, iou, most)
        height, width = pixels.shape[:2]
        in_image = undo_letterbox(boxes[points], height, width, size)
        visible = (in_image[:, 2:] > in_image[:, :2]).all(axis=1)  # the others lie in the border
        result: Result = {"boxes": in_image[visible], "scores": values[visible], "labels": labels[visible]}
        if coefficients is not None:
            found = coefficients[points[visible]]
            result["masks"] = render_masks(found, outputs["prototypes"][0], result["boxes"], height, width, size)
        return result

    def _prepare(self, pixels: Pixels, size: int) -> NDArray[np.float32]:
        """Return an image as the file takes it, (1, 3, size, size)."""
        about = self.metadata["input"]
        fill = round(255 * about["letterbox"])
        square = centre_crop(pixels, size) if self.task == "classify" else letterboxed(pixels, size, fill)
        low, high = about["range"]
        values = square.astype(np.float32) / np.float32(255) * (high - low) + low
        values = (values - np.float32(about["mean"])) / np.float32(about["std"])
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)

    def _check_size(self, size: int) -> None:
        if size < 32 or size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {size}")
        if not self.metadata["dynamic"] and self._session.get_inputs()[0].shape != [1, 3, size, size]:
            takes = self._session.get_inputs()[0].shape
            raise ValueError(f"image_size must be that of the file, which takes {takes}, got {size}: {self._path}")


def _open(path: Path, providers: Sequence[str], threads: int) -> tuple[Any, dict[str, str]]:
    """Return the session of a file and what it says of itself, if it is one of ours."""
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # it warns about what it leaves out of a graph; errors are raised
    try:
        session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # it has many kinds
        raise ValueError(f"file {path} can't be opened by ONNX Runtime: {error}") from error
    if about.get("format") != FORMAT or "task" not in about:
        raise ValueError(f"file {path} must be a network that moe_vision.export wrote, got one without a task")
    return session, about


def _parsed(value: str) -> Any:
    """Return what a piece of metadata says; other tools write texts that are not JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _candidates(outputs: Outputs, num_classes: int) -> tuple[Any, Any, Any]:
    """Return boxes (N, 4), scores (N, C) and coefficients (N, 32), or None, of the one image."""
    if "boxes" in outputs:
        coefficients = outputs["coefficients"][0] if "coefficients" in outputs else None
        return outputs["boxes"][0], outputs["scores"][0], coefficients
    boxes, labels = outputs["detected_boxes"], outputs["detected_labels"]
    scores = np.zeros((len(boxes), num_classes), np.float32)
    scores[np.arange(len(boxes)), labels] = outputs["detected_scores"]
    return boxes, scores, outputs.get("detected_coefficients")


def _class_scores(logits: NDArray[np.float32]) -> Result:
    exponentials = np.exp(logits - logits.max())
    scores = exponentials / exponentials.sum()
    label = int(scores.argmax())
    return {"label": label, "score": float(scores[label]), "scores": scores}
