# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: precision by recall, and which class is taken for which."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from moe_vision.visualize.pictures import COLOURS

MOST_NAMED = len(COLOURS)  # curves that are told apart by colour
MOST_COUNTED = 20  # classes whose cells have room for a number


def plot_precision_recall(curves: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> None:
    """Plot, a panel for each kind of object, the precision of each class by recall, and their mean.

    Args:
        curves: For each kind, such as ``boxes``, by class name the precisions in [0, 1] at equal steps of recall from 0
            to 1, as `moe_vision.train.metrics.precision_curves` returns them; their mean is the average precision.
        path: File to write; its ending chooses the format (png, svg, pdf).

    Raises:
        ValueError: If a kind has no class.

    Examples:
        >>> import tempfile
        >>> from moe_vision.visualize import plot_precision_recall
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_precision_recall({"boxes": {"cell": [1.0, 0.9, 0.2]}}, f"{folder}/precision-recall.png")
    """
    figure = Figure(figsize=(5.5 * len(curves), 4.5), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (kind, by_class) in zip(panels, curves.items(), strict=True):
        if not by_class:
            raise ValueError(f"curves must have a class for {kind}, got none: there are no objects")
        _draw_curves(panel, by_class)
        panel.set(title=f"Precision by recall, {kind}", xlabel="recall", ylabel="precision")
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
        panel.legend(title="average precision", fontsize=8, title_fontsize=8, loc="lower left")
    figure.savefig(path, dpi=120)


def _draw_curves(panel: Any, by_class: Mapping[str, Sequence[float]]) -> None:
    curves = torch.tensor(list(by_class.values()), dtype=torch.float64)
    recall = torch.linspace(0, 1, curves.shape[1]).tolist()
    named = len(by_class) <= MOST_NAMED
    for index, (name, curve) in enumerate(zip(by_class, curves, strict=True)):
        colour, label = (COLOURS[index], f"{curve.mean():.3f} {name}") if named else ("#BBBBBB", None)
        panel.plot(recall, curve.tolist(), color=colour, linewidth=1.2, label=label)
    if len(by_class) > 1:
        label = f"{curves.mean():.3f} mean of {len(by_class)} classes"
        panel.plot(recall, curves.mean(dim=0).tolist(), color="black", linewidth=2, label=label)


def plot_confusion(counts: Tensor, names: Sequence[str], path: str | Path, *, title: str) -> None:
    """Plot how often each class was taken for each, in colours by the share of its row.

    Args:
        counts: True classes by predicted ones.
        names: Names of the rows and columns.
        path: File to write; its ending chooses the format (png, svg, pdf).
        title: What was counted.

    Shape:
        - counts: (N, N)

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from moe_vision.visualize import plot_confusion
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_confusion(torch.tensor([[3, 1], [0, 4]]), ["cat", "dog"], f"{folder}/pets.png", title="images")
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(14.0, 2.5 + 0.55 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.tolist(), vmin=0, vmax=1, cmap="cividis")
    places, size = range(len(names)), max(4.0, 9 - len(names) / 16)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle(title, fontsize=10)
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    if len(names) <= MOST_COUNTED:
        _write_counts(axes, counts, shares)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    figure.savefig(path, dpi=120)


def _write_counts(axes: Any, counts: Tensor, shares: Tensor) -> None:
    for row, column in counts.nonzero().tolist():
        colour = "black" if shares[row, column] > 0.6 else "white"
        axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
