# SPDX-License-Identifier: Apache-2.0
"""What a `RoutingMonitor` has to say about a layer. Axes: E experts."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GroupRouting:
    """How a group of images was routed by one layer.

    Attributes:
        images: Number of images.
        shares: Share of the selections that each of the E experts got; an image with K experts gives each 1 / K.
        experts_per_image: Mean number of experts that an image used.

    Examples:
        >>> from moe_vision.diagnostics import GroupRouting
        >>> GroupRouting(images=8, shares=[0.75, 0.25], experts_per_image=1.0).images
        8
    """

    images: int
    shares: list[float]
    experts_per_image: float


@dataclass(frozen=True, kw_only=True)
class RoutingSummary(GroupRouting):
    """How all images were routed by one layer; entropies and information are in nat.

    Attributes:
        probabilities: Mean probability of each expert.
        weights: Mean weight of each expert in the mixture, the weights of an image scaled to a sum of 1.
        entropy: Mean entropy of an image's probabilities, from 0 (sure) to log E (no preference).
        information: Mutual information of image and selected expert: 0 if all images select the same experts.
        information_limit: The most that ``information`` can be for this many experts an image: log E - mean log K.
        soft_information: Mutual information of image and an expert drawn from the router's probabilities; it is nearly
            0 if images differ by near ties alone.
        dead: Experts that no image selected.
        hard_gap: Mean L1 distance of the weights from hard ones, in [0, 2]; above 0 for ``relaxed`` training alone.
        agreement: Overlap of ``shares`` with those of the previous epoch, in [0, 1]; None in the first. Memory is
            constant, so that it compares how the selections are shared, not image by image.
        balance_gradient: Whether a balance loss has moved the probabilities in training; None without training.
        by_class: The images that show each class, by its name, if targets were given.
        by_objects: The images by their number of objects, such as ``"4-7"``, if targets were given.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import RoutingMonitor
        >>> layer = ESMoE(8, num_experts=2, top_k=2).eval()
        >>> with RoutingMonitor(layer) as monitor:
        ...     _ = layer(torch.rand(3, 8, 6, 6))
        >>> summary = monitor.summary()[""]
        >>> summary.images, summary.shares, summary.dead
        (3, [0.5, 0.5], [])
    """

    probabilities: list[float]
    weights: list[float]
    entropy: float
    information: float
    information_limit: float
    soft_information: float
    dead: list[int]
    hard_gap: float
    agreement: float | None
    balance_gradient: bool | None
    by_class: dict[str, GroupRouting]
    by_objects: dict[str, GroupRouting]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return asdict(self)
