# SPDX-License-Identifier: Apache-2.0
"""Watching the gates of a model: which images go to which experts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_vision.diagnostics.routing_sums import RoutingSums
from moe_vision.diagnostics.summary import RoutingSummary
from moe_vision.layers.esmoe import esmoe_layers
from moe_vision.layers.gating import TopKGate, hard_top_k
from moe_vision.layers.routing import Routing

# Numbers of objects in an image: none, one, and then doubling.
OBJECT_GROUPS = ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64 and more")


class RoutingMonitor:
    """Watch every `ESMoE` of a model while it is open, over any number of forwards and epochs.

    It hooks on the gates, keeps sums alone and leaves the layers as they are. In training, forwards without a gradient
    are previews of batches to come, and those within backward repeat one: neither counts. Nor does an image whose
    weights are not finite. Under several processes each watches its own images, and `summary` adds them up.

    Args:
        model: Any module that holds ESMoE layers.
        classes: Class names in the order of their labels, for the table by class.

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import RoutingMonitor
        >>> layer = ESMoE(8, num_experts=4, top_k=2).eval()
        >>> with RoutingMonitor(layer, classes=["cat", "dog"]) as monitor:
        ...     monitor.announce([{"labels": torch.tensor([0])}, {"labels": torch.tensor([0, 1, 1])}])
        ...     _ = layer(torch.rand(2, 8, 6, 6))
        >>> summary = monitor.summary()[""]
        >>> summary.experts_per_image, summary.by_class["cat"].images, list(summary.by_objects)
        (2.0, 2, ['1', '2-3'])
    """

    def __init__(self, model: nn.Module, classes: Sequence[str] = ()) -> None:
        self._layers = esmoe_layers(model)
        self._groups = {"by_class": tuple(classes), "by_objects": OBJECT_GROUPS}
        self._sums = {
            name: RoutingSums(len(layer.experts), self._groups, next(layer.parameters()).device)
            for name, layer in self._layers.items()
        }
        self._members: dict[str, dict[str, Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "RoutingMonitor":
        self._hooks = [layer.gate.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def announce(self, targets: Sequence[Mapping[str, Any]]) -> None:
        """Tell what the images of the next forward show.

        Args:
            targets: For each image its ``labels``, one an object, or its ``label``.
        """
        members = self._membership(targets)
        self._members = dict.fromkeys(self._layers, members)

    def start_epoch(self) -> None:
        """Start to count anew; what was counted so far is the previous epoch."""
        for sums in self._sums.values():
            sums.start_epoch()

    def summary(self, *, sync: bool = True) -> dict[str, RoutingSummary]:
        """Return what each layer did, by its name; one that has routed no image is left out.

        Args:
            sync: Under torch.distributed, add up the images of all processes, each of which must call this and gets
                the same; if False, those of this process alone.
        """
        summaries = {name: sums.summary(sync) for name, sums in self._sums.items()}
        return {name: summary for name, summary in summaries.items() if summary is not None}

    def _hook(self, name: str) -> Callable[..., None]:
        def watch(gate: nn.Module, inputs: Any, routing: Routing) -> None:
            preview = gate.training and not torch.is_grad_enabled()
            repeated = torch._C._current_graph_task_id() != -1  # checkpointing computes it again in backward
            if preview or repeated:
                return
            sums = self._sums[name]
            sums.add(routing, self._members.pop(name, {}), _hard_weights(gate, routing))
            if gate.training:
                _watch_gradient(routing, sums)

        return watch

    def _membership(self, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return for each kind of grouping which images belong to which groups, (B, G)."""
        members = {kind: torch.zeros(len(targets), len(names)) for kind, names in self._groups.items()}
        for row, target in enumerate(targets):
            labels = torch.as_tensor(target["labels"] if "labels" in target else [target["label"]]).long()
            if self._groups["by_class"]:
                members["by_class"][row, labels] = 1
            if "labels" in target:
                members["by_objects"][row, min(len(labels).bit_length(), len(OBJECT_GROUPS) - 1)] = 1
        return members


def _hard_weights(gate: nn.Module, routing: Routing) -> Tensor | None:
    """Return the weights of inference if those in training are others."""
    if isinstance(gate, TopKGate) and gate.training and gate.soft == "relaxed":
        return hard_top_k(routing.logits, gate.top_k)
    return None


def _watch_gradient(routing: Routing, sums: RoutingSums) -> None:
    """Note that gradients reach the probabilities, which the balance losses read and nothing else."""
    sums.sums["forwards_in_training"] += 1
    if routing.probs.requires_grad:
        routing.probs.register_hook(lambda gradient: _note(gradient, sums))  # type: ignore[no-untyped-call]


@torch.no_grad()
def _note(gradient: Tensor, sums: RoutingSums) -> None:
    sums.sums["gradient"] += torch.nan_to_num(gradient, 0.0, 0.0, 0.0).abs().sum()
