# SPDX-License-Identifier: Apache-2.0
"""Alarms: what is wrong with a routing, and what to do about it."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from moe_vision.diagnostics.summary import RoutingSummary

REMEDIES = {
    "dead expert": (
        "raise the weight of the balance loss, check that it is added to the loss, or remove the expert with "
        "moe_vision.prune"
    ),
    "static routing": (
        "the router does not look at the image: lower the weight of the balance loss if usage is even, train longer, "
        "or use a dense block, which costs the same for every image"
    ),
    "collapse": "raise the weight of the balance loss or add router_z_loss, and lower the learning rate of the router",
    "no balance gradient": (
        "add moe_vision.auxiliary_loss to the loss, with a weight above 0 and computed from the forward that is "
        "trained; check that the router's parameters require a gradient"
    ),
}


class Alarm(NamedTuple):
    """Something that is wrong with the routing of a layer.

    Attributes:
        layer: Name of the layer.
        kind: ``dead expert``, ``static routing``, ``collapse`` or ``no balance gradient``.
        finding: What was measured, and against which threshold.

    Examples:
        >>> from moe_vision.diagnostics import Alarm
        >>> print(Alarm("stage2", "dead expert", "0.0% of images select expert 3, under 1.0%"))
        stage2: dead expert: 0.0% of images select expert 3, under 1.0%; raise the weight of the balance loss, ...
    """

    layer: str
    kind: str
    finding: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.kind}: {self.finding}; {REMEDIES[self.kind]}"


def find_alarms(
    summaries: Mapping[str, RoutingSummary],
    *,
    dead: float = 0.01,
    static: float = 0.05,
    collapse: float = 0.8,
    min_images: int = 64,
) -> list[Alarm]:
    """Return what is wrong with the routing that a `RoutingMonitor` has seen.

    Args:
        summaries: What `RoutingMonitor.summary` returned.
        dead: An expert is dead if a smaller share of the images than this selects it.
        static: Routing is static if image and selected expert share less information than this part of what they
            could; nearly all images then select the same experts. A layer that always runs all is not judged.
        collapse: A layer has collapsed if one expert has more than this of the weight of the mixture.
        min_images: Layers that have routed fewer images are not judged.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import RoutingMonitor, find_alarms
        >>> layer = ESMoE(8, num_experts=2, top_k=1).eval()
        >>> _ = torch.nn.init.constant_(layer.router.fc2.bias[:1], 50.0)
        >>> with RoutingMonitor(layer) as monitor:
        ...     _ = layer(torch.rand(64, 8, 4, 4))
        >>> [alarm.kind for alarm in find_alarms(monitor.summary())]
        ['dead expert', 'static routing', 'collapse']
    """
    judged = {name: summary for name, summary in summaries.items() if summary.images >= min_images}
    return [
        Alarm(name, kind, finding)
        for name, summary in judged.items()
        for kind, finding in _findings(summary, dead, static, collapse)
    ]


def _findings(summary: RoutingSummary, dead: float, static: float, collapse: float) -> Iterator[tuple[str, str]]:
    for expert, share in enumerate(summary.shares):
        if (images := share * summary.experts_per_image) < dead:
            yield "dead expert", f"{images:.1%} of images select expert {expert}, under {dead:.1%}"
    most = static * summary.information_limit
    if summary.information_limit > 1e-6 and summary.information < most:
        told = f"an image tells {summary.information:.3f} nat of the expert it selects, under {most:.3f}"
        yield "static routing", f"{told}, {static:.0%} of what it could"
    heaviest = max(range(len(summary.weights)), key=summary.weights.__getitem__)
    if len(summary.weights) > 1 and summary.weights[heaviest] > collapse:
        weight = summary.weights[heaviest]
        yield "collapse", f"expert {heaviest} has {weight:.0%} of the weight, more than {collapse:.0%}"
    if summary.balance_gradient is False:
        yield "no balance gradient", "no loss moved the probabilities of the experts in training"
