# SPDX-License-Identifier: Apache-2.0
"""The check of an exported graph: in its runtime it gives what the module gives in eager, with every expert.

Each shape of images is run twice. First the routers choose. Then the check does: the logits of every block are an
input of the graph, and replace the routers' own in eager, so that all experts have their turn in the whole network,
also those that no image at hand would select. Axes: B images, E experts, K selected experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_vision.exporting.blocks import SparseForm, forced_logits, form_of, recorded_logits
from moe_vision.exporting.graph import named_outputs
from moe_vision.exporting.inputs import Shape, random_images
from moe_vision.exporting.report import BlockReport, Comparison
from moe_vision.exporting.runs import Runs
from moe_vision.layers import TopKGate
from moe_vision.layers.esmoe import esmoe_layers


class Turn(NamedTuple):
    """Outputs by name and the logits of each call of a block, of one run."""

    outputs: dict[str, Tensor]
    logits: list[Tensor]


class GraphCheck:
    """Run an exported graph against the module it was made of.

    Args:
        runs: The graph in its runtime.
        names: Names of its outputs, without the logits.
        module: The module in eval and fp32.
        calls: Names of the blocks in the order in which they run.
        sparse: Form of the export.
        tolerance: Largest error to allow, in units of the largest value of an output (at least 1).
    """

    def __init__(
        self,
        runs: Runs,
        names: Sequence[str],
        module: nn.Module,
        calls: Sequence[str],
        sparse: SparseForm,
        tolerance: float,
    ) -> None:
        self.runs = runs
        self.names = list(names)
        self.module = module
        self.calls = list(calls)
        self.blocks = esmoe_layers(module)
        self.sparse = sparse
        self.tolerance = tolerance
        self.selected = {name: [0] * len(block.experts) for name, block in self.blocks.items() if name in self.calls}
        self.turn = 0
        self.generator = torch.Generator().manual_seed(0)

    def run(self, shapes: Sequence[Shape]) -> list[Comparison]:
        """Compare on images of each shape, and then on the smallest ones until every expert has had its turn.

        Raises:
            ValueError: If an output differs by more than the tolerance, which names it and the images.
        """
        runs = [run for shape in shapes for run in (self.compare_chosen(shape), self.compare_forced(shape))]
        while any(0 in counts for counts in self.selected.values()):
            runs.append(self.compare_forced(shapes[0]))
        return runs if self.calls else [run for run in runs if run.routing == "chosen"]

    def reports(self) -> tuple[BlockReport, ...]:
        """Return what each block was seen to do."""
        return tuple(
            BlockReport(name, form_of(block, self.sparse), block.gate.top_k, tuple(self.selected[name]))
            for name, block in self.blocks.items()
            if name in self.selected
        )

    def compare_chosen(self, shape: Shape) -> Comparison:
        """Let the routers choose; leave out images where rounding decides between two experts."""
        images = random_images(shape, self.generator)
        with torch.inference_mode(), recorded_logits(self.module) as record:
            expected = Turn(named_outputs(self.module(images)), [logits for _, logits in record])
            values = self.runs.chosen([images])
        count = len(self.names)
        actual = Turn(dict(zip(self.names, values[:count], strict=True)), values[count:])
        kept = self._decided(actual.logits, expected.logits, shape)
        error = self._error(actual.outputs, expected.outputs, kept, shape, "chosen")
        return Comparison(shape, "chosen", int(kept.sum()), error)

    def compare_forced(self, shape: Shape) -> Comparison:
        """Choose for the routers, the next experts in turn for each image."""
        images = random_images(shape, self.generator)
        logits = [self._next_logits(name, shape[0]) for name in self.calls]
        self.turn += shape[0]
        with torch.inference_mode(), forced_logits(self.module, logits):
            expected = named_outputs(self.module(images))
            values = self.runs.forced([images, *logits])
        actual = dict(zip(self.names, values, strict=True))
        everything = torch.ones(shape[0], dtype=torch.bool)
        return Comparison(shape, "forced", shape[0], self._error(actual, expected, everything, shape, "forced"))

    def _next_logits(self, name: str, batch: int) -> Tensor:
        """Return logits (B, E) that select K experts after the other K, image by image."""
        gate, num_experts = self.blocks[name].gate, len(self.blocks[name].experts)
        step = gate.top_k if isinstance(gate, TopKGate) else 1  # of the other gate, the first is sure to be selected
        logits = torch.full((batch, num_experts), -2.0)
        for image in range(batch):
            for place in range(gate.top_k):
                expert = ((self.turn + image) * step + place) % num_experts
                logits[image, expert] = 1.0 - place / num_experts
        self._count(name, gate(logits).selected)
        return logits

    def _count(self, name: str, selected: Tensor) -> None:
        """Note which experts images, (B, E), were seen to select."""
        for expert, count in enumerate(selected.sum(dim=0).tolist()):
            self.selected[name][expert] += count

    def _decided(self, actual: Sequence[Tensor], expected: Sequence[Tensor], shape: Shape) -> Tensor:
        """Tell for which images (B,) both chose the same experts; others must have been near a tie."""
        same = torch.ones(shape[0], dtype=torch.bool)
        for name, ours, theirs in zip(self.calls, actual, expected, strict=True):
            gate = self.blocks[name].gate
            allowed = self.tolerance * theirs.abs().amax(dim=1).clamp(min=1)
            selected = gate(theirs).selected
            agree = (gate(ours).selected == selected).all(dim=1)
            # After a block where another expert was taken, an image's logits say nothing.
            wrong = same & ((ours - theirs).abs().amax(dim=1) > allowed)
            if wrong.any():
                raise ValueError(
                    f"the router of {name!r} must give in {self.runs.runtime} what it gives in eager, got logits "
                    f"{ours[wrong][0].tolist()} and {theirs[wrong][0].tolist()} on images {shape}"
                )
            self._count(name, selected[same & agree])
            same &= agree
        return same

    def _error(
        self, actual: dict[str, Tensor], expected: dict[str, Tensor], kept: Tensor, shape: Shape, routing: str
    ) -> float:
        """Return the largest error over the images kept; raise where it is more than the tolerance."""
        largest = 0.0
        for name, theirs in expected.items():
            ours = actual[name]
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"output {name!r} must have shape {tuple(theirs.shape)} in {self.runs.runtime}, "
                    f"got {tuple(ours.shape)}"
                )
            if theirs.ndim and len(theirs) == len(kept):
                ours, theirs = ours[kept], theirs[kept]
            elif not kept.all():
                continue
            if theirs.numel() == 0:
                continue
            ours, theirs = ours.double(), theirs.double()
            error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
            if not error <= self.tolerance:  # NaN is not
                raise ValueError(
                    f"output {name!r} must be in {self.runs.runtime} what it is in eager, within "
                    f"{self.tolerance:.0e} of its largest value; it is off by {error:.1e} on images {shape} with "
                    f"experts {routing}"
                )
            largest = max(largest, error)
        return largest
