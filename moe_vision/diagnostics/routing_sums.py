# SPDX-License-Identifier: Apache-2.0
"""What a `RoutingMonitor` keeps of a layer: sums over images, whose size does not grow with their number.

Axes: B images, E experts, G groups of images.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from moe_vision.diagnostics.summary import GroupRouting, RoutingSummary
from moe_vision.layers.routing import Routing


class RoutingSums:
    """Sums over the images that one layer has routed.

    Args:
        num_experts: Number of experts E.
        groups: Names of the groups that images may belong to, by the kind of the grouping.
        device: Where the sums are kept: that of the layer, so that nothing waits for it.

    Examples:
        >>> import torch
        >>> from moe_vision import TopKGate
        >>> from moe_vision.diagnostics.routing_sums import RoutingSums
        >>> sums = RoutingSums(2, {}, torch.device("cpu"))
        >>> sums.add(TopKGate(top_k=1)(torch.tensor([[1.0, 0.0], [3.0, 0.0]])), {})
        >>> sums.summary(sync=False).shares
        [1.0, 0.0]
    """

    def __init__(self, num_experts: int, groups: Mapping[str, Sequence[str]], device: torch.device) -> None:
        self.groups = groups
        zeros = {name: torch.zeros(num_experts, device=device) for name in ("probabilities", "weights", "previous")}
        numbers = ("entropy", "choice_entropy", "hard_gap", "forwards_in_training", "gradient")
        zeros |= {name: torch.zeros(1, device=device) for name in numbers}
        # A row: number of images, experts used by them, and the share of each expert, summed over the images.
        sizes = {"all": 1, **{kind: len(names) for kind, names in groups.items()}}
        self.sums = zeros | {kind: torch.zeros(size, 2 + num_experts, device=device) for kind, size in sizes.items()}

    @torch.no_grad()
    def add(self, routing: Routing, members: Mapping[str, Tensor], hard_weights: Tensor | None = None) -> None:
        """Add a forward.

        Args:
            routing: What the gate decided.
            members: Which images belong to which groups, (B, G) of 0 and 1, by the kind of the grouping.
            hard_weights: The weights of hard gating, (B, E), if they differ from the ones used.
        """
        # An image without a valid number would spoil every sum.
        valid = routing.weights.isfinite().all(dim=1, keepdim=True)
        selected = (routing.selected & valid).float()
        used = selected.sum(dim=1, keepdim=True)
        weights = routing.weights.float()
        self._add("probabilities", routing.probs, valid)
        self._add("weights", weights / weights.sum(dim=1, keepdim=True), valid)
        self._add("entropy", torch.special.entr(routing.probs).sum(dim=1, keepdim=True), valid)
        self._add("choice_entropy", used.clamp(min=1).log(), valid)
        if hard_weights is not None:
            self._add("hard_gap", (weights - hard_weights).abs().sum(dim=1, keepdim=True), valid)
        rows = torch.cat([valid.float(), used, selected / used.clamp(min=1)], dim=1)
        self.sums["all"] += rows.sum(dim=0)
        for kind, member in members.items():
            self.sums[kind] += member.to(rows).T @ rows

    def start_epoch(self) -> None:
        """Keep what the next epoch is compared with, and start anew."""
        shares = self.sums["all"][0, 2:].clone()
        for values in self.sums.values():
            values.zero_()
        self.sums["previous"] += shares

    def summary(self, sync: bool) -> RoutingSummary | None:
        """Return what the images of this process, or of all, say, or None if there were none."""
        found = self._over_processes() if sync else self.sums
        sums = {name: values.double().cpu() for name, values in found.items()}
        whole = _group(sums["all"][0])
        if whole is None:
            return None
        shares, probabilities = torch.tensor(whole.shares, dtype=torch.double), sums["probabilities"] / whole.images
        means = {name: (sums[name] / whole.images).item() for name in ("entropy", "choice_entropy", "hard_gap")}
        previous = sums["previous"]
        agreement = torch.minimum(shares, previous / previous.sum()).sum().item() if previous.any() else None
        return RoutingSummary(
            **vars(whole),
            probabilities=probabilities.tolist(),
            weights=(sums["weights"] / whole.images).tolist(),
            entropy=means["entropy"],
            information=max(_entropy(shares) - means["choice_entropy"], 0.0),
            information_limit=_entropy(torch.full_like(shares, 1 / len(shares))) - means["choice_entropy"],
            soft_information=max(_entropy(probabilities) - means["entropy"], 0.0),
            dead=[expert for expert, share in enumerate(whole.shares) if share == 0],
            hard_gap=means["hard_gap"],
            agreement=agreement,
            balance_gradient=bool(sums["gradient"] > 0) if sums["forwards_in_training"] > 0 else None,
            by_class=self._table("by_class", sums),
            by_objects=self._table("by_objects", sums),
        )

    def _add(self, name: str, values: Tensor, valid: Tensor) -> None:
        self.sums[name] += torch.where(valid, values, 0).sum(dim=0)

    def _over_processes(self) -> dict[str, Tensor]:
        if not (dist.is_available() and dist.is_initialized()):
            return self.sums
        flat = torch.cat([values.flatten() for values in self.sums.values()])
        dist.all_reduce(flat)
        parts = torch.split(flat, [values.numel() for values in self.sums.values()])
        return {name: part.view_as(self.sums[name]) for name, part in zip(self.sums, parts, strict=True)}

    def _table(self, kind: str, sums: Mapping[str, Tensor]) -> dict[str, GroupRouting]:
        """Return the groups that have images."""
        rows = {name: _group(row) for name, row in zip(self.groups.get(kind, ()), sums.get(kind, ()), strict=True)}
        return {name: group for name, group in rows.items() if group is not None}


def _group(row: Tensor) -> GroupRouting | None:
    images, experts, *shares = row.tolist()
    if images == 0:
        return None
    return GroupRouting(
        images=round(images), shares=[share / images for share in shares], experts_per_image=experts / images
    )


def _entropy(distribution: Tensor) -> float:
    return float(torch.special.entr(distribution).sum())
