# SPDX-License-Identifier: Apache-2.0
"""Suppression within an ONNX graph: outputs are what is left of the boxes of all images, in one list.

Axes: B images, N anchor points, D boxes left in all images together.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from moe_vision.models import YOLOMaster
from moe_vision.runtime.suppression import check_limits

if TYPE_CHECKING:
    import onnx


class Suppression(NamedTuple):
    """What boxes to keep.

    The file then has the outputs ``detected_images`` (D,), which image each box is in, ``detected_boxes`` (D, 4),
    ``detected_scores`` (D,), ``detected_labels`` (D,) and, to segment, ``detected_coefficients`` (D, 32) and
    ``prototypes``; ordered by image, then label, then score.

    Attributes:
        score: Lowest score to keep, in [0, 1].
        iou: Overlap with a better box of the same class above which a box is dropped, in [0, 1].
        max_detections: Most boxes to keep of a class in an image.

    Examples:
        >>> from moe_vision.exporting import Suppression
        >>> Suppression(score=0.4)
        Suppression(score=0.4, iou=0.7, max_detections=300)
    """

    score: float = 0.25
    iou: float = 0.7
    max_detections: int = 300


def check_suppression(limits: Suppression, module: nn.Module) -> None:
    """Raise ValueError unless the module finds boxes and the limits are in range."""
    if not isinstance(module, YOLOMaster) or module.config.task == "classify":
        raise ValueError(
            "suppress must be None unless the module detects or segments, got limits for one without boxes"
        )
    check_limits(*limits)


def add_suppression(model: "onnx.ModelProto", limits: Suppression) -> None:
    """Replace the outputs ``boxes``, ``scores`` and ``coefficients`` by those of the boxes that are left."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    outputs = {output.name: output for output in graph.output}

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"suppression.{name}"))
        return f"suppression.{name}"

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def leave(name: str, inputs: list[str], kind: int, *sizes: int, operator: str = "GatherND") -> None:
        """Add an output (D, *sizes)."""
        node(operator, inputs, f"detected_{name}", **({"axis": 1} if operator == "Gather" else {}))
        graph.output.append(helper.make_tensor_value_info(f"detected_{name}", kind, ["detections", *sizes]))

    by_class = node("Transpose", ["scores"], "suppression.by_class", perm=[0, 2, 1])
    bounds = [
        constant("max_detections", np.int64(limits.max_detections)),
        constant("iou", np.float32(limits.iou)),
        constant("score", np.float32(limits.score)),
    ]
    kept = node("NonMaxSuppression", ["boxes", by_class, *bounds], "suppression.kept")  # (D, 3): image, label, point
    points = node("Gather", [kept, constant("image_and_point", np.array([0, 2]))], "suppression.points", axis=1)

    for name in ("boxes", "scores", "coefficients"):
        if name in outputs:
            graph.output.remove(outputs[name])
    leave("images", [kept, constant("image", np.int64(0))], TensorProto.INT64, operator="Gather")
    leave("boxes", ["boxes", points], TensorProto.FLOAT, 4)
    leave("scores", [by_class, kept], TensorProto.FLOAT)
    leave("labels", [kept, constant("label", np.int64(1))], TensorProto.INT64, operator="Gather")
    if "coefficients" in outputs:
        width = outputs["coefficients"].type.tensor_type.shape.dim[2].dim_value
        leave("coefficients", ["coefficients", points], TensorProto.FLOAT, width)
