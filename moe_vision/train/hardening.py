# SPDX-License-Identifier: Apache-2.0
"""The gates of a network on their way from soft to hard, over the epochs of a run."""

import math

from torch import nn

from moe_vision.layers import BiasedTopKGate, TopKGate, TopPGate
from moe_vision.layers.esmoe import esmoe_layers

START, END = 0.5, 0.05  # temperatures
HARD_FROM = 0.8  # of the epochs: the norms need some to gather the statistics of the function that is deployed


class Hardening:
    """Drive the gates of every `ESMoE` of a model, epoch by epoch.

    ``relaxed`` gates cool from 0.5 to 0.05 as a cosine over the first 80 % of the epochs; then they are ``masked``, the
    function that inference evaluates. Other modes stay as they are: their forward is that function all along.

    Args:
        model: Any module that holds ESMoE layers.
        soft: Weights in training, see `moe_vision.soft_top_k`.
        epochs: Epochs of the run.

    Raises:
        ValueError: If ``soft`` is not ``masked`` and a gate is one that has no other mode.

    Examples:
        >>> from moe_vision import ESMoE
        >>> from moe_vision.train.hardening import Hardening
        >>> layer = ESMoE(8)
        >>> hardening = Hardening(layer, "relaxed", epochs=10)
        >>> for epoch in (0, 4, 8):
        ...     hardening.set_epoch(epoch)
        ...     layer.gate.soft, round(layer.gate.temperature, 3)
        ('relaxed', 0.5)
        ('relaxed', 0.275)
        ('masked', 0.275)
    """

    def __init__(self, model: nn.Module, soft: str, epochs: int) -> None:
        gates = [layer.gate for layer in esmoe_layers(model).values()]
        if soft != "masked" and any(isinstance(gate, TopPGate | BiasedTopKGate) for gate in gates):
            raise ValueError(f"soft must be masked for networks with top_p below 1 or selection_bias, got {soft!r}")
        self.gates = [gate for gate in gates if isinstance(gate, TopKGate)]
        self.soft = soft
        self.soft_epochs = math.ceil(epochs * HARD_FROM)

    def set_epoch(self, epoch: int) -> None:
        """Set the gates for an epoch, counted from 0."""
        hard = self.soft == "relaxed" and epoch >= self.soft_epochs
        for gate in self.gates:
            gate.soft = "masked" if hard else self.soft  # type: ignore[assignment]
            if self.soft == "relaxed" and not hard:
                cooled = (1 - math.cos(math.pi * epoch / self.soft_epochs)) / 2
                gate.temperature = START + (END - START) * cooled
