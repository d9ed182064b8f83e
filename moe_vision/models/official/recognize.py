# SPDX-License-Identifier: Apache-2.0
"""Read the architecture off the kinds and shapes of the layers."""

from itertools import takewhile
from typing import Any

from moe_vision.models.config import SCALES, VARIANTS, YOLOMasterConfig, named_config
from moe_vision.models.official.layers import ATTENTION, CONV, CSP, ES_MOE, HEADS, POINTWISE_MOE, Layer


def recognize(layers: list[Layer], top_k: int | None = None) -> tuple[str, YOLOMasterConfig]:
    """Return the name and the configuration of the network that the layers make.

    Args:
        layers: Its layers, in order.
        top_k: Experts K that an image selects, which weights don't show. If None: as the variants of the same kernel
            sizes do, 3 of 3 for (3, 5, 7) and 2 of 4 for (3, 5, 7, 9); otherwise 2.

    Raises:
        ValueError: If they make no network that we have; the message says what is amiss.

    Examples:
        >>> from moe_vision.models.official.recognize import recognize
        >>> recognize([])
        Traceback (most recent call last):
        ...
        ValueError: its last layer must be one of Detect, Segment, Classify, got none
    """
    task = HEADS.get(layers[-1].kind) if layers else None
    if task is None:
        heads = ", ".join(kind.name for kind in HEADS)
        raise ValueError(f"its last layer must be one of {heads}, got {layers[-1] if layers else 'none'}")
    values: dict[str, Any] = _mixture(layers)
    if top_k is not None:
        values["top_k"] = top_k
    if task != "classify":
        values["reg_max"] = _first_axis(layers[-1], "cv2.0.2.weight") // 4
    values["num_classes"] = _first_axis(layers[-1], "linear.weight" if task == "classify" else "cv3.0.2.weight")
    values["placement"] = _placement(layers, task)
    values["stage2_blocks"] = _stage2_blocks(layers)
    scale = _scale(layers)
    return scale, named_config(scale, task=task, **values)


def _scale(layers: list[Layer]) -> str:
    """Return the named scale whose stem is as wide and whose first CSP block has as many inner blocks."""
    csp = next((layer for layer in layers if layer.kind is CSP), None)
    if layers[0].kind is not CONV or csp is None:
        raise ValueError(f"its first layer must be a Conv, and a C3k2 must follow, got {layers[0]}")
    found = _first_axis(layers[0], "conv.weight"), csp.count(r"m\.(\d+)\.")
    known = {(named_config(name).channels(64), named_config(name).repeats(2)): name for name in SCALES}
    if found not in known:
        raise ValueError(
            f"its stem has {found[0]} channels and its first C3k2 {found[1]} inner blocks; known are "
            + ", ".join(f"{width} and {depth} ({name})" for (width, depth), name in known.items())
        )
    return known[found]


def _mixture(layers: list[Layer]) -> dict[str, Any]:
    """Read the experts off the first MoE block; whether the others are alike, the fit of the shapes will tell."""
    block = next((layer for layer in layers if layer.kind in (ES_MOE, POINTWISE_MOE)), None)
    if block is None:  # without experts the variants are one network
        return {"variant": "esmoe"}
    experts = block.count(r"experts\.(\d+)\.")
    if block.kind is POINTWISE_MOE:
        return {"variant": "v0_1", "num_experts": experts, "top_k": min(2, experts)}
    sizes = tuple(_last_axis(block, f"experts.{expert}.conv.depthwise.weight") for expert in range(experts))
    for variant in ("esmoe", "paper"):
        if VARIANTS[variant]["kernel_sizes"] == sizes:
            return {"variant": variant}
    return {"variant": "esmoe", "num_experts": experts, "kernel_sizes": sizes, "top_k": min(2, experts)}


def _placement(layers: list[Layer], task: str) -> str:
    """Tell where the MoE blocks are: after the attention of the backbone, right before the head, or both."""
    moe = [layer.kind in (ES_MOE, POINTWISE_MOE) for layer in layers]
    backbone = any(moe[i + 1] for i, layer in enumerate(layers[:-1]) if layer.kind is ATTENTION)
    neck = task != "classify" and len(layers) > 1 and moe[-2]
    return {(True, True): "both", (True, False): "backbone", (False, True): "neck"}.get((backbone, neck), "none")


def _stage2_blocks(layers: list[Layer]) -> int:
    """Count the CSP blocks that follow one another first: released v0.1 networks n and s have one more than others."""
    start = next((index for index, layer in enumerate(layers) if layer.kind is CSP), len(layers))
    run = takewhile(lambda layer: layer.kind is CSP, layers[start:])
    return max(1, len(list(run)))


def _first_axis(layer: Layer, name: str) -> int:
    return _shape(layer, name)[0]


def _last_axis(layer: Layer, name: str) -> int:
    return _shape(layer, name)[-1]


def _shape(layer: Layer, name: str) -> tuple[int, ...]:
    entry = layer.entries.get(name)
    if entry is None or not entry.shape or 0 in entry.shape:  # of an empty tensor other sides may be any number
        raise ValueError(f"its layer {layer} has no {name} with values")
    return entry.shape
