# SPDX-License-Identifier: Apache-2.0
"""The layers of a released network: their kinds, and their names for what our modules hold.

A released network is one list, ``model.{i}``, of which our backbone, neck and head are parts. The number of a layer
tells its place in the order and nothing more; what it is shows in the names of its tensors.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from moe_vision.layers import ESMoE, PointwiseMoE
from moe_vision.layers.area_attention import A2C2f
from moe_vision.layers.convolution import ConvNormAct
from moe_vision.layers.csp import C3k2
from moe_vision.models.classify_head import ClassifyHead
from moe_vision.models.detect_head import DetectHead
from moe_vision.models.official.weights import Entry
from moe_vision.models.segment_head import SegmentHead

NAME = re.compile(r"(?P<prefix>(?:[A-Za-z_]\w*\.)*)(?P<index>0|[1-9][0-9]{0,3})\.(?P<name>.+)")


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Args:
        name: Its name in the published architectures.
        module: Our module for it.
        mark: A tensor that no other kind has.
        renames: Patterns in the names of its tensors, and what stands there in our names; applied in order.
    """

    name: str
    module: type[nn.Module]
    mark: str
    renames: tuple[tuple[str, str], ...]

    def rename(self, name: str) -> str:
        """Return our name of a tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


_NORM = (r"\bbn\b", "norm")
_CSP = (_NORM, (r"\bcv(\d)\b", r"conv\1"), (r"\bm\b", "blocks"))
_DETECT = (
    _NORM,
    (r"^cv2\.(\d)", r"box_towers.\1"),
    (r"^cv3\.(\d)\.0\.0", r"class_towers.\1.0"),
    (r"^cv3\.(\d)\.0\.1", r"class_towers.\1.1"),
    (r"^cv3\.(\d)\.1\.0", r"class_towers.\1.2"),
    (r"^cv3\.(\d)\.1\.1", r"class_towers.\1.3"),
    (r"^cv3\.(\d)\.2", r"class_towers.\1.4"),
    (r"^dfl\.conv\.weight$", "bins"),
)
CONV = Kind("Conv", ConvNormAct, "conv.weight", (_NORM,))
CSP = Kind("C3k2", C3k2, "m.0.cv1.conv.weight", _CSP)
ATTENTION = Kind("A2C2f", A2C2f, "m.0.0.attn.qkv.conv.weight", (*_CSP, (r"\bpe\b", "position")))
ES_MOE = Kind(
    "ES_MOE",
    ESMoE,
    "routing.routing_network.0.weight",
    (
        (r"^routing\.routing_network\.0", "router.fc1"),
        (r"^routing\.routing_network\.2", "router.fc2"),
        (r"^experts\.(\d+)\.conv\.depthwise", r"experts.\1.conv_dw"),
        (r"^experts\.(\d+)\.conv\.pointwise", r"experts.\1.conv_pw"),
        (r"^experts\.(\d+)\.conv\.bn", r"experts.\1.norm"),
        (r"^norm\.0", "norm"),
    ),
)
POINTWISE_MOE = Kind(
    "ModularRouterExpertMoE",
    PointwiseMoE,
    "routing.router.0.weight",
    (
        (r"^routing\.router\.0", "router.conv1"),
        (r"^routing\.router\.1", "router.norm1"),
        (r"^routing\.router\.3", "router.conv2"),
        (r"^routing\.router\.4", "router.norm2"),
        (r"^experts\.(\d+)\.conv\.0", r"experts.\1.conv1"),
        (r"^experts\.(\d+)\.conv\.1", r"experts.\1.norm1"),
        (r"^experts\.(\d+)\.conv\.3", r"experts.\1.conv2"),
        (r"^experts\.(\d+)\.conv\.4", r"experts.\1.norm2"),
    ),
)
DETECT = Kind("Detect", DetectHead, "cv3.0.2.weight", _DETECT)
SEGMENT = Kind(
    "Segment",
    SegmentHead,
    "proto.upsample.weight",
    (
        *_DETECT,
        (r"^(box_towers|class_towers|bins)", r"detection.\1"),
        (r"^cv4\.(\d)", r"coefficient_towers.\1"),
        (r"^proto\.cv1", "prototypes.0"),
        (r"^proto\.upsample", "prototypes.1"),
        (r"^proto\.cv2", "prototypes.2"),
        (r"^proto\.cv3", "prototypes.3"),
    ),
)
CLASSIFY = Kind("Classify", ClassifyHead, "linear.weight", (_NORM,))
KINDS = (CONV, CSP, ATTENTION, ES_MOE, POINTWISE_MOE, SEGMENT, DETECT, CLASSIFY)  # a Segment is a Detect and more
HEADS = {DETECT: "detect", SEGMENT: "segment", CLASSIFY: "classify"}


@dataclass(frozen=True)
class Layer:
    """A layer that has tensors.

    Args:
        prefix: What the names of its tensors start with in the file, such as ``model.3.``.
        kind: What it is.
        entries: Its tensors by the rest of their names.
    """

    prefix: str
    kind: Kind
    entries: dict[str, Entry]

    def __str__(self) -> str:
        return f"{self.prefix[:-1]} ({self.kind.name}: {_shapes(self.entries)})"

    def count(self, pattern: str) -> int:
        """Return how many different numbers stand in the pattern's group."""
        return len({match[1] for name in self.entries if (match := re.match(pattern, name))})


def group_by_layer(entries: dict[str, Entry]) -> list[Layer]:
    """Sort the tensors of a released network into its layers, in the order of their numbers.

    Args:
        entries: The tensors by their names, all behind the same prefix.

    Raises:
        ValueError: If a name does not have the form ``model.{i}.name``, or a layer is of no known kind.

    Examples:
        >>> from moe_vision.models.official.layers import group_by_layer
        >>> from moe_vision.models.official.weights import Entry
        >>> entries = {"model.7.conv.weight": Entry((16, 3, 3, 3), lambda: None)}
        >>> str(group_by_layer(entries)[0])
        'model.7 (Conv: conv.weight (16, 3, 3, 3))'
    """
    matches = {name: NAME.fullmatch(name) for name in entries}
    prefixes = Counter(match["prefix"] for match in matches.values() if match)
    prefix = prefixes.most_common(1)[0][0] if prefixes else "model."
    strangers = [name for name, match in matches.items() if match is None or match["prefix"] != prefix]
    if strangers:
        raise ValueError(f"its tensors must be named {prefix}{{layer}}.{{name}}, got {listed(strangers)}")
    layers: dict[int, dict[str, Entry]] = {}
    for name, match in matches.items():
        if match:
            layers.setdefault(int(match["index"]), {})[match["name"]] = entries[name]
    return [_layer(f"{prefix}{index}.", layers[index]) for index in sorted(layers)]


def _layer(prefix: str, entries: dict[str, Entry]) -> Layer:
    for kind in KINDS:
        if kind.mark in entries:
            return Layer(prefix, kind, entries)
    kinds = ", ".join(kind.name for kind in KINDS)
    raise ValueError(f"its layer {prefix[:-1]} ({_shapes(entries)}) is none of {kinds}")


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the names in a line, the first few of them and the number of the others.

    Examples:
        >>> from moe_vision.models.official.layers import listed
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shapes(entries: dict[str, Entry]) -> str:
    return listed((f"{name} {entry.shape}" for name, entry in entries.items()), most=3)
