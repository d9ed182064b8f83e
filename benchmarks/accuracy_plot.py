# SPDX-License-Identifier: Apache-2.0
"""The plot of accuracy against latency, for the documentation: a panel for each data set.

    python benchmarks/accuracy_plot.py

reads benchmarks/results/accuracy-*.json and network.json and writes docs/assets/accuracy-latency.svg. It shows the runs
of which both are known: the network as it is, the same weights with every expert running, and the twin without experts.
Peers that were timed but not trained stand as lines. The names of tasks, cells and times are those of the records.
"""

import json
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import RESULTS
from speed_plots import BLUE, PURPLE, RED, save

from moe_vision.visualize.metric_names import METRIC_NAMES

Row = dict[str, Any]
PANELS = {
    "bccd": ("detect", "map"),
    "bccd-tables": ("detect", "map"),
    "nuclei": ("segment", "mask_map"),
    "clothing": ("classify", "top1"),
}
# Which time belongs to which run: the title, cells of accuracy.py, the name in network.json, the colour, the marker.
POINTS = (
    ("as it is", ("paper",), "sparse, fused", BLUE, "o"),
    ("every expert runs", ("paper",), "every expert, fused", RED, "x"),
    ("twin without experts", ("none", "placement none"), "twin, fused", PURPLE, "s"),
)


def main() -> None:
    times = {row["task"]: row for row in _rows("network") if _is_shown(row)}
    panels = {name: _rows(f"accuracy-{name}") for name in PANELS}
    shown = [name for name, rows in panels.items() if list(points(rows, times, name))]
    lines = (len(shown) + 1) // 2
    figure = Figure(figsize=(8, 3.4 * lines), layout="constrained")
    places = figure.subplots(lines, 2, squeeze=False).flat
    for name, panel in zip(shown, places, strict=False):
        plot(panel, panels[name], times, name)
    for panel in places:  # those that are left
        panel.set_axis_off()
    save(figure, "accuracy-latency.svg")


def points(rows: list[Row], times: dict[str, Row], name: str) -> Iterator[tuple[str, float, float, str, str]]:
    """Yield title, milliseconds, accuracy, colour and marker of each run that both are known of."""
    task, metric = PANELS[name]
    for title, cells, time, colour, marker in POINTS:
        for row in rows:
            if row["cell"] in cells and task in times:
                found = row["dense"] if time.startswith("every expert") else row
                yield title, times[task]["ms"][time]["median"], found[metric], colour, marker


def plot(panel: Axes, rows: list[Row], times: dict[str, Row], name: str) -> None:
    """Plot the runs of a data set, and when peers would have answered."""
    task, metric = PANELS[name]
    known: set[str] = set()
    for title, ms, accuracy, colour, marker in points(rows, times, name):
        panel.plot(ms, accuracy, marker, color=colour, label=None if title in known else title)
        known.add(title)
    row, settings = times[task], rows[0]["settings"]
    for peer in [
        key.removesuffix(", fused") for key in row["ms"] if key.startswith("yolo") and key.endswith(", fused")
    ]:
        ms = row["ms"][f"{peer}, fused"]["median"]
        panel.axvline(ms, color="gray", linestyle=":")
        panel.text(
            ms, 0.02, peer, rotation=90, ha="right", color="gray", fontsize=8, transform=panel.get_xaxis_transform()
        )
    panel.margins(x=0.2, y=0.4)
    panel.set_xlim(left=0)
    panel.set(title=f"{name}: {settings['image_size']}², {settings['epochs']} epochs", ylabel=METRIC_NAMES[metric])
    panel.set(xlabel=f"ms for an image of {row['image_size']}², {row['threads']} threads")
    panel.legend(fontsize=8)


def _rows(name: str) -> list[Row]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []  # type: ignore[no-any-return]


def _is_shown(row: Row) -> bool:
    return bool(row["scale"] == "n" and row["batch"] == 1 and row["threads"] == 2)


if __name__ == "__main__":
    main()
