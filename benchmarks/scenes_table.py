# SPDX-License-Identifier: Apache-2.0
"""The table of what scenes.py measured, for the documentation: means over the seeds of each cell.

    python benchmarks/scenes_table.py

reads benchmarks/results/scenes.json and writes scenes.md beside it.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from scenes import NETWORKS
from speed_table import markdown, write_tables

Row = dict[str, Any]


def scenes(rows: Sequence[Row]) -> str:
    """Tabulate accuracy, cost and routing of each cell."""
    titles = ["cell", "mAP 50:95", "mAP 50", "experts an image", "MFLOP an image", "ms an image"]
    lines = [[*titles, "rank correlation with the number of objects", "information, nat", "seeds"]]
    seeds_of = {cell: [row for row in rows if row["cell"] == cell] for cell in NETWORKS}
    lines += [[cell, *_figures(seeds)] for cell, seeds in seeds_of.items() if seeds]
    return markdown(lines)


def _figures(seeds: Sequence[Row]) -> list[str]:
    return [
        *(f"{mean(row[name] for row in seeds):.3f}" for name in ("map", "map50")),
        f"{mean(row['experts'] for row in seeds):.2f}",
        f"{1e3 * mean(row['gflops'] for row in seeds):.0f}",
        _mean_of_known([row.get("milliseconds") for row in seeds], ".1f"),
        _mean_of_known([row["spearman"] for row in seeds], ".2f"),
        f"{mean(value for row in seeds for value in row['information'].values()):.2f}",
        ", ".join(str(row["seed"]) for row in seeds),
    ]


def _mean_of_known(values: Sequence[float | None], form: str) -> str:
    """Average what there is: a rank correlation with a constant is none, and times come when all cells have learnt."""
    known = [value for value in values if value is not None]
    return format(mean(known), form) if known else "-"


if __name__ == "__main__":
    write_tables({"scenes": scenes})
