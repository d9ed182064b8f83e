# SPDX-License-Identifier: Apache-2.0
"""The plots of what network.py, network_profile.py, esmoe.py and scaling.py measured, for the documentation.

    python benchmarks/speed_plots.py

reads their JSON in benchmarks/results and writes docs/assets/speed-*.svg.
"""

import json
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from measure import RESULTS

from moe_vision.models.config import TASKS
from moe_vision.visualize.pictures import COLOURS

ASSETS = RESULTS.parent.parent / "docs" / "assets"
BARS = ("sparse, built", "sparse, fused", "every expert, fused", "twin, fused")
# As dark on a light page as they are light on a dark one.
BLUE, RED, GREEN, PURPLE = (COLOURS[index] for index in (0, 1, 2, 5))
# The same figures give the same file; a frame would have a background.
matplotlib.rcParams.update({"svg.hashsalt": "moe_vision", "svg.fonttype": "none", "legend.frameon": False})


def main() -> None:
    for name, (source, plot) in PLOTS.items():
        path = RESULTS / f"{source}.json"
        if path.exists():
            save(plot(json.loads(path.read_text())["rows"]), f"speed-{name}.svg")


def save(figure: Figure, name: str) -> None:
    """Write a figure without a background: on a dark page the style sheet turns its lightness over."""
    figure.savefig(ASSETS / name, metadata={"Date": None}, transparent=True)
    print(f"written to {name}")


def plot_scaling(rows: list[dict[str, Any]]) -> Figure:
    """Plot how the time grows in each sweep, sparse and dense."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for panel, row in zip(figure.subplots(2, 3).flat, rows, strict=True):
        values = [point[row["varied"]] for point in row["points"]]
        for name, colour in (("sparse", BLUE), ("dense", RED)):
            panel.plot(values, [p["growth"][name] for p in row["points"]], "o-", markersize=3, color=colour, label=name)
        held = ", ".join(f"{name} {value}" for name, value in row["fixed"].items())
        panel.set_title(held, fontsize=8)
        panel.set(xlabel=row["varied"], ylabel="time, relative", xticks=values)
        if row["varied"] in ("batch", "side"):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_xticks(values, [str(value) for value in values])
        else:
            panel.set_ylim(bottom=0)
        panel.legend(fontsize=8)
    return figure


def plot_network(rows: list[dict[str, Any]]) -> Figure:
    """Plot the time for an image of every network, one at a time, on all threads, with the quartiles."""
    threads = max(row["threads"] for row in rows)
    shown = [row for row in rows if row["batch"] == 1 and row["threads"] == threads]
    tasks = [task for task in TASKS if any(row["task"] == task for row in shown)]
    figure = Figure(figsize=(3.3 * len(tasks) + 1, 3.4), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        cases = sorted((row for row in shown if row["task"] == task), key=lambda row: "nsmlx".index(row["scale"]))
        for index, name in enumerate(BARS):
            times = [row["ms"][name] for row in cases]
            heights = [time["median"] for time in times]
            below = [time["median"] - time["lower"] for time in times]
            above = [time["upper"] - time["median"] for time in times]
            places = [number + 0.2 * (index - 1.5) for number in range(len(cases))]
            panel.bar(places, heights, 0.2, yerr=(below, above), color=(BLUE, RED, GREEN, PURPLE)[index], label=name)
        panel.set_xticks(range(len(cases)), [row["scale"] for row in cases])
        panel.set(title=task, ylabel=f"ms an image, {threads} threads")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(BARS))
    return figure


def plot_floor(rows: list[dict[str, Any]]) -> Figure:
    """Plot the time of the sparse layer by that of its floor, for each map and batch."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    cases = sorted({(-row["size"], row["channels"], row["batch"]) for row in rows})
    for index, layer in enumerate(("built", "fused")):
        for layout, marker in (("contiguous", "o"), ("channels_last", "^")):
            shown = [row for row in rows if row["layer"] == layer and row["format"] == layout]
            places = [cases.index((-row["size"], row["channels"], row["batch"])) for row in shown]
            ratios = [row["sparse/floor"] for row in shown]
            panel.plot(ratios, places, marker, color=(BLUE, RED)[index], alpha=0.8, label=f"{layer}, {layout}")
    panel.axvline(1, color="black", linewidth=1, label="the floor")
    panel.axvline(1.05, color="black", linewidth=1, linestyle=":", label="our aim, 1.05")
    panel.set_yticks(range(len(cases)), [f"{channels} x {-size}², batch {batch}" for size, channels, batch in cases])
    panel.invert_yaxis()
    panel.set(xlabel="time of the sparse layer by that of its router and two experts, called directly")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_profile(rows: list[dict[str, Any]]) -> Figure:
    """Plot the parts of the fused n detector on all threads; the blocks have their floors within."""
    row = max((row for row in rows if row["layer"] == "fused"), key=lambda row: row["threads"])
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    names = [part["part"] for part in row["parts"]]
    panel.barh(names, [part["ms"] for part in row["parts"]], color=BLUE, label="part")
    floors = {part["part"]: part["floor_ms"] for part in row["parts"] if "floor_ms" in part}
    panel.barh(list(floors), list(floors.values()), 0.3, color=PURPLE, label="floor of a block")
    panel.invert_yaxis()
    panel.set(xlabel=f"ms of {row['total_ms']:.0f}, fused, {row['threads']} threads")
    panel.legend()
    return figure


PLOTS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Figure]]] = {
    "scaling": ("scaling", plot_scaling),
    "network": ("network", plot_network),
    "profile": ("network_profile", plot_profile),
    "floor": ("esmoe", plot_floor),
}


if __name__ == "__main__":
    main()
