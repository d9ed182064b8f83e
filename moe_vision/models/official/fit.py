# SPDX-License-Identifier: Apache-2.0
"""Give each tensor of a released network its place in ours: all of them, and every place."""

import math
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_vision.models.official.layers import KINDS, Kind, Layer, listed
from moe_vision.models.official.weights import Entry


class Place(NamedTuple):
    """Where a layer goes: a module of our network."""

    prefix: str
    kind: Kind
    module: nn.Module

    def __str__(self) -> str:
        return f"{self.prefix[:-1]} ({self.kind.name})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors, by their names in it."""
        return {name: tuple(tensor.shape) for name, tensor in self.module.state_dict().items()}


class Match(NamedTuple):
    """A tensor of the file and its place."""

    source: str
    name: str
    entry: Entry
    shape: tuple[int, ...]


def match_tensors(layers: list[Layer], model: nn.Module) -> list[Match]:
    """Return the place of each tensor.

    Args:
        layers: The layers of the released network, in order.
        model: Our network; on the meta device will do.

    Raises:
        ValueError: If one has a layer or a tensor that the other lacks, or shapes differ; the message names them.

    Examples:
        >>> from moe_vision import create_model
        >>> from moe_vision.models.official.fit import match_tensors
        >>> match_tensors([], create_model("yolo_master_n", task="classify"))
        Traceback (most recent call last):
        ...
        ValueError: it lacks the layers backbone.stem (Conv), ... and 9 more
    """
    places = list(_places(model))
    _check_order(layers, places)
    matches: list[Match] = []
    problems: list[str] = []
    for layer, place in zip(layers, places, strict=True):
        shapes = place.shapes
        for source, entry in layer.entries.items():
            name = layer.kind.rename(source)
            shape = shapes.pop(name, None)  # a second tensor for the same place has none
            if shape is None:
                problems.append(f"has {layer.prefix}{source}, which our network lacks")
            elif not _fits(entry.shape, shape):
                problems.append(f"has {layer.prefix}{source} of shape {entry.shape} for one of {shape}")
            else:
                matches.append(Match(f"{layer.prefix}{source}", f"{place.prefix}{name}", entry, shape))
        problems += [f"lacks, in {layer.prefix[:-1]}, what is {place.prefix}{name} in ours" for name in shapes]
    if problems:
        raise ValueError(f"it {listed(problems)}")
    return matches


def read_tensor(match: Match) -> Tensor:
    """Read a tensor as our network holds it: floating point in 32 bits, all values finite.

    Args:
        match: The tensor and its place.

    Raises:
        ValueError: If its type does not suit its place or a value is not finite.

    Examples:
        >>> import torch
        >>> from moe_vision.models.official.fit import Match, read_tensor
        >>> from moe_vision.models.official.weights import Entry
        >>> half = Entry((1, 2, 1, 1), lambda: torch.ones(1, 2, 1, 1).half())
        >>> read_tensor(Match("model.0.dfl.conv.weight", "weight", half, (2,)))
        tensor([1., 1.])
    """
    tensor = match.entry.load()
    counts = match.name.endswith("num_batches_tracked")
    if tensor.is_complex() or tensor.is_floating_point() == counts:
        kind = "whole numbers" if counts else "floating point"
        raise ValueError(f"its {match.source} must hold {kind}, got {tensor.dtype}")
    # A copy, so that no two parameters share memory as views of the file might.
    tensor = tensor.to(torch.int64 if counts else torch.float32, copy=True).reshape(match.shape).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"its {match.source} must be finite, got NaN or infinity")
    if match.name.endswith(".bins") and not torch.equal(tensor, torch.arange(float(len(tensor)))):
        raise ValueError(f"its {match.source} must count from 0, got {tensor.tolist()}")
    return tensor


def _places(module: nn.Module, prefix: str = "") -> Iterator[Place]:
    """Walk our network down to the modules that are layers of the released one, which has them in the same order."""
    for name, child in module.named_children():
        kind = next((kind for kind in KINDS if type(child) is kind.module), None)
        if kind is None:
            yield from _places(child, f"{prefix}{name}.")
        else:
            yield Place(f"{prefix}{name}.", kind, child)


def _check_order(layers: list[Layer], places: list[Place]) -> None:
    """Raise ValueError unless the kinds of layers are ours, one by one."""
    if [layer.kind for layer in layers] == [place.kind for place in places]:
        return
    # Of several equal kinds in a row, the sizes tell which one is surplus.
    found = [(layer.kind.name, _size(entry.shape for entry in layer.entries.values())) for layer in layers]
    ours = [(place.kind.name, _size(place.shapes.values())) for place in places]
    surplus: list[str] = []
    missing: list[str] = []
    for change, start, end, our_start, our_end in SequenceMatcher(None, found, ours, autojunk=False).get_opcodes():
        if change != "equal":
            surplus += map(str, layers[start:end])
            missing += map(str, places[our_start:our_end])
    parts = [f"has the layers {listed(surplus)} beyond our network"] * bool(surplus)
    parts += [f"lacks the layers {listed(missing)}"] * bool(missing)
    raise ValueError(f"it {' and '.join(parts)}")


def _size(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes))


def _fits(found: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Tell whether the shapes agree; a 1 x 1 convolution fits a linear layer, the fixed one of the bins a vector."""
    return found in (ours, (*ours, 1, 1), (1, *ours, 1, 1))
