# SPDX-License-Identifier: Apache-2.0
"""The charts of the routing page, as SVG that takes its colours of text from the page."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

# Dark enough for white numbers on them, on a light page as on a dark one. An expert takes the colour of its number.
EXPERT_COLOURS = ("#3568a3", "#c2475a", "#23803a", "#92770f", "#1f7fa0", "#8e2f6c", "#b85418", "#00786b")
WIDTH = 560
ROW = 26


def expert_colour(expert: int) -> str:
    """Return the colour of an expert; the ninth has that of the first.

    Examples:
        >>> from moe_vision.visualize.svg import expert_colour
        >>> expert_colour(0) == expert_colour(8)
        True
    """
    return EXPERT_COLOURS[expert % len(EXPERT_COLOURS)]


def bars(values: Sequence[float], labels: Sequence[str]) -> str:
    """Draw a bar for each value in [0, 1], with its label before and its percentage behind.

    Args:
        values: Lengths of the bars.
        labels: A name for each.

    Examples:
        >>> from moe_vision.visualize.svg import bars
        >>> bars([0.25, 0.75], ["0", "1"]).count("<rect")
        4
    """
    width, left, right = 280, 76, 44
    room = width - left - right
    rows = []
    for row, (value, label) in enumerate(zip(values, labels, strict=True)):
        top = row * ROW
        place = f'x="{left}" y="{top + 4}" height="18" rx="3"'
        rows.append(
            f'<text x="0" y="{top + 17}">{escape(label)}</text>'
            f'<rect class="track" {place} width="{room}"/>'
            f'<rect fill="{expert_colour(row)}" {place} width="{room * value:.1f}"/>'
            f'<text x="{width - right + 8}" y="{top + 17}">{value:.0%}</text>'
        )
    return _svg(width, ROW * len(rows), rows)


def stacked_bars(groups: Mapping[str, Sequence[float]], notes: Mapping[str, str]) -> str:
    """Draw a bar for each group, divided among the experts by their shares.

    Args:
        groups: Shares of the experts that sum to 1, by the name of the group.
        notes: What stands behind each bar.

    Examples:
        >>> from moe_vision.visualize.svg import stacked_bars
        >>> stacked_bars({"cat": [0.5, 0.5]}, {"cat": "8 images"}).count("<rect")
        2
    """
    left, right = 110, 138
    room = WIDTH - left - right
    rows = []
    for row, (name, shares) in enumerate(groups.items()):
        top, x = row * ROW, float(left)
        short = name if len(name) <= 17 else name[:16] + "…"
        rows.append(f'<text x="0" y="{top + 17}"><title>{escape(name)}</title>{escape(short)}</text>')
        for expert, share in enumerate(shares):
            length = room * share
            rows.append(
                f'<rect fill="{expert_colour(expert)}" x="{x:.1f}" y="{top + 3}" width="{length:.1f}" height="20"/>'
            )
            if share >= 0.1:
                rows.append(
                    f'<text class="on" x="{x + length / 2:.1f}" y="{top + 17}" text-anchor="middle">{share:.0%}</text>'
                )
            x += length
        rows.append(f'<text class="soft" x="{WIDTH - right + 8}" y="{top + 17}">{escape(notes[name])}</text>')
    return _svg(WIDTH, ROW * len(groups), rows)


def histogram(values: Sequence[float], unit: str, *, bins: int = 24) -> str:
    """Draw how many values lie where.

    Args:
        values: At least one.
        unit: What stands behind the numbers of the axis.
        bins: Number of columns.

    Examples:
        >>> from moe_vision.visualize.svg import histogram
        >>> "3 GFLOPs" in histogram([1.0, 2.0, 3.0], "GFLOPs")
        True
    """
    width, height, bottom = 1160, 180, 24
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    step = width / bins
    columns = [
        f'<rect fill="{EXPERT_COLOURS[0]}" x="{index * step + 1:.1f}" y="{height * (1 - count / counts.max()):.1f}" '
        f'width="{step - 2:.1f}" height="{height * count / counts.max():.1f}"><title>{count} images, '
        f"{edges[index]:.3g} to {edges[index + 1]:.3g} {unit}</title></rect>"
        for index, count in enumerate(counts.tolist())
    ]
    places = (("start", 0, low), ("middle", width / 2, (low + high) / 2), ("end", width, high))
    axis = [
        f'<text x="{x}" y="{height + 17}" text-anchor="{anchor}">{value:.4g} {unit}</text>'
        for anchor, x, value in places
    ]
    return _svg(width, height + bottom, [*columns, *axis])


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
