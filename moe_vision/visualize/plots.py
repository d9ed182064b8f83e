# SPDX-License-Identifier: Apache-2.0
"""Plots of a training run and of what the experts do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from moe_vision.visualize.metric_names import METRIC_NAMES
from moe_vision.visualize.pictures import COLOURS


def plot_training(log: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot the loss terms and the accuracy of a run over its epochs.

    Args:
        log: Lines of a run's ``log.jsonl``.
        path: File to write; its ending chooses the format (png, svg, pdf).

    Examples:
        >>> import tempfile
        >>> from moe_vision.visualize import plot_training
        >>> log = [{"epoch": 1, "loss": {"box": 5.0}, "metrics": {"map": 0.1, "map50": 0.2}}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_training(log, f"{folder}/training.png")
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    losses.set_prop_cycle(color=COLOURS)
    accuracy.set_prop_cycle(color=COLOURS)
    for name in log[0]["loss"]:
        losses.plot([line["epoch"] for line in log], [line["loss"][name] for line in log], label=name)
    losses.set(title="Training loss", xlabel="epoch", ylabel="weighted term")
    losses.legend()
    evaluated = [line for line in log if "metrics" in line]
    for key, label in METRIC_NAMES.items():
        if evaluated and key in evaluated[0]["metrics"]:
            values = [line["metrics"][key] for line in evaluated]
            accuracy.plot([line["epoch"] for line in evaluated], values, marker="o", markersize=3, label=label)
    accuracy.set(title="Accuracy on held-out images", xlabel="epoch", ylim=(0, 1))
    if evaluated:
        accuracy.legend()
    figure.savefig(path, dpi=120)


def plot_routing(shares: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, title: str) -> None:
    """Plot, a panel for each layer, how groups of images share their selections among the experts.

    Args:
        shares: For each group of images, by its name, the share of each expert by the name of the layer, as
            `moe_vision.diagnostics.RoutingMonitor` counts them.
        path: File to write; its ending chooses the format (png, svg, pdf).
        title: What tells the groups apart.

    Examples:
        >>> import tempfile
        >>> from moe_vision.visualize import plot_routing
        >>> shares = {"1-3": {"stage2": [0.5, 0.3, 0.2]}, "4-9": {"stage2": [0.2, 0.3, 0.5]}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_routing(shares, f"{folder}/routing.png", title="objects in the image")
    """
    groups, layers = list(shares), list(next(iter(shares.values())))
    figure = Figure(figsize=(2.6 * len(layers) + 0.8, 0.5 * len(groups) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for panel, layer in zip(panels, layers, strict=True):
        table = [list(shares[group][layer]) for group in groups]
        image = panel.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                colour = "black" if value > 0.6 else "white"
                panel.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)
        panel.set(title=layer, xlabel="expert", xticks=range(len(table[0])), yticks=[])
    panels[0].set(yticks=range(len(groups)), yticklabels=groups, ylabel=title)
    figure.colorbar(image, ax=list(panels), label="share of selections")
    figure.savefig(path, dpi=120)


def plot_expert_usage(log: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot, a panel for each layer, how its selections were shared among the experts in each epoch.

    Args:
        log: Lines of a run's ``log.jsonl``.
        path: File to write; its ending chooses the format (png, svg, pdf).

    Raises:
        ValueError: If the network has no experts.

    Examples:
        >>> import tempfile
        >>> from moe_vision.visualize import plot_expert_usage
        >>> log = [{"epoch": 1, "experts": {"stage2": [0.5, 0.5]}}, {"epoch": 2, "experts": {"stage2": [0.4, 0.6]}}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_expert_usage(log, f"{folder}/experts.png")
    """
    layers = list(log[-1]["experts"])
    if not layers:
        raise ValueError("log must be that of a network with experts, got one without")
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.2 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, layer in zip(panels, layers, strict=False):
        _stack_shares(panel, log, layer)
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    panels[0].set(ylabel="share of selections")
    figure.suptitle("What each expert gets in training; its number is on the right", fontsize=10)
    figure.savefig(path, dpi=120)


def _stack_shares(panel: Any, log: Sequence[Mapping[str, Any]], layer: str) -> None:
    """Draw an area for each expert, the first at the bottom."""
    epochs = [line["epoch"] for line in log]
    shares = [list(values) for values in zip(*(line["experts"][layer] for line in log), strict=True)]
    colours = colormaps["viridis"].resampled(len(shares)).colors  # type: ignore[attr-defined]
    if len(epochs) == 1:  # an area needs a width
        epochs, shares = [epochs[0] - 0.5, epochs[0] + 0.5], [values * 2 for values in shares]
    panel.stackplot(epochs, *shares, colors=colours, edgecolor="white", linewidth=0.6)
    panel.set(title=layer, xlabel="epoch", xlim=(epochs[0], epochs[-1]), ylim=(0, 1))
    panel.xaxis.get_major_locator().set_params(integer=True)
    for expert, values in enumerate(shares):  # its number stands where its area ends
        middle = sum(other[-1] for other in shares[:expert]) + values[-1] / 2
        place = panel.get_yaxis_transform()
        panel.text(1.02, middle, expert, transform=place, va="center", fontsize=8)
