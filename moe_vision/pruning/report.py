# SPDX-License-Identifier: Apache-2.0
"""What pruning did."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from moe_vision.diagnostics import Cost


class Removal(NamedTuple):
    """An expert that was removed.

    Attributes:
        layer: Name of the layer.
        expert: Its index before anything was removed.
        change: Mean relative change of the layer's output when it is removed and the rest renormalised.

    Examples:
        >>> from moe_vision.pruning import Removal
        >>> Removal("stage2", 3, 0.012).expert
        3
    """

    layer: str
    expert: int
    change: float


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What `moe_vision.prune` did; ``print`` shows it. Pairs are before and after.

    Attributes:
        removed: The experts that went, in this order.
        reason: Why no more went.
        parameters: Number of parameters.
        flops: Operations of an image.
        milliseconds: Median time of a forward with one image on this machine.
        accuracy: What ``evaluate`` gave, or None without it.

    Examples:
        >>> from moe_vision.diagnostics import Cost
        >>> from moe_vision.pruning import PruneReport
        >>> costs = {"parameters": (Cost(9, 5), Cost(7, 5)), "flops": (Cost(900, 500), Cost(700, 500))}
        >>> report = PruneReport(removed=(), reason="bound", **costs, milliseconds=(2.0, 2.0), accuracy=(0.5, 0.5))
        >>> print(report.as_dict()["parameters"]["after"])
        {'total': 7, 'active': 5}
    """

    removed: tuple[Removal, ...]
    reason: str
    parameters: tuple[Cost, Cost]
    flops: tuple[Cost, Cost]
    milliseconds: tuple[float, float]
    accuracy: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        pairs = {name: value for name, value in asdict(self).items() if isinstance(value, tuple) and name != "removed"}
        return {
            "removed": [removal._asdict() for removal in self.removed],
            "reason": self.reason,
            **{name: {"before": _plain(before), "after": _plain(after)} for name, (before, after) in pairs.items()},
        }

    def __str__(self) -> str:
        lines = [
            f"removed expert {removal.expert} of {removal.layer}: the layer's output changes by {removal.change:.1%}"
            for removal in self.removed
        ] or ["nothing was pruned"]
        lines.append(f"stopped: {self.reason}")
        rows = {
            "parameters": [f"{cost.total:,}" for cost in self.parameters],
            "active operations": [f"{cost.active:,}" for cost in self.flops],
            "milliseconds": [f"{time:.1f}" for time in self.milliseconds],
        }
        if self.accuracy is not None:
            rows["accuracy"] = [f"{accuracy:.4f}" for accuracy in self.accuracy]
        lines.append(f"{'':<18} {'before':>16} {'after':>16}")
        lines += [f"{name:<18} {before:>16} {after:>16}" for name, (before, after) in rows.items()]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return value._asdict() if isinstance(value, Cost) else value
