# SPDX-License-Identifier: Apache-2.0
"""The tables of what accuracy.py measured, for the documentation: mean and range over the seeds of each cell.

    python benchmarks/accuracy_table.py

reads benchmarks/results/accuracy-EXPERIMENT.json and writes accuracy-EXPERIMENT.md beside each.
"""

import json
from collections.abc import Sequence
from statistics import mean
from typing import Any

from accuracy import EXPERIMENTS
from measure import RESULTS
from speed_table import circumstances

from moe_vision.visualize.metric_names import METRIC_NAMES


def main() -> None:
    for name, experiment in EXPERIMENTS.items():
        path = RESULTS / f"accuracy-{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            text = table(record["rows"], list(experiment.cells), experiment.metrics)
            path.with_suffix(".md").write_text(f"{text}\n{circumstances(record)}\n")
            print(f"{name}\n\n{text}")


def table(rows: Sequence[dict[str, Any]], cells: Sequence[str], metrics: Sequence[str]) -> str:
    """Return a Markdown table with a line for each cell that was measured."""
    titles = ["cell", *(METRIC_NAMES[name] for name in metrics), "sparse - dense", "information, nat", "seeds"]
    lines = [titles, ["---"] * len(titles)]
    for cell in cells:
        if seeds := [row for row in rows if row["cell"] == cell]:
            figures = [_spread([row[name] for row in seeds]) for name in metrics]
            numbers = ", ".join(str(row["seed"]) for row in seeds)
            lines.append([cell, *figures, _agreement(seeds), _information(seeds), numbers])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _agreement(seeds: Sequence[dict[str, Any]]) -> str:
    """Say by how much the metrics of the sparse and the dense executor differ at most."""
    return f"{max(abs(row[name] - value) for row in seeds for name, value in row['dense'].items()):.4f}"


def _information(seeds: Sequence[dict[str, Any]]) -> str:
    """Return each block's mutual information of image and selected expert, the mean over the seeds."""
    blocks = [[layer["information"] for layer in row["routing"].values()] for row in seeds]
    return " ".join(f"{mean(values):.2f}" for values in zip(*blocks, strict=True)) or "-"


if __name__ == "__main__":
    main()
