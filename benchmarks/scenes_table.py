# SPDX-License-Identifier: Apache-2.0
"""The tables of what scenes.py measured, for the documentation: means over the seeds of each cell.

    python benchmarks/scenes_table.py

reads benchmarks/results/scenes.json and scenes-bccd.json and writes scenes.md and scenes-bccd.md beside them. Behind ±
is the standard deviation over the seeds.
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from scenes import NETWORKS
from speed_table import markdown, write_tables

Row = dict[str, Any]


def scenes(rows: Sequence[Row]) -> str:
    """Tabulate accuracy, cost and routing of each cell."""
    titles = ["cell", "mAP 50:95", "mAP 50", "experts an image", "MFLOP an image", "ms an image"]
    lines = [[*titles, "rank correlation with the number of objects, by seed", "information, nat", "seeds"]]
    seeds_of = {cell: [row for row in rows if row["cell"] == cell] for cell in NETWORKS}
    lines += [[cell, *_figures(seeds)] for cell, seeds in seeds_of.items() if seeds]
    return markdown(lines)


def _figures(seeds: Sequence[Row]) -> list[str]:
    return [
        *(_spread([row[name] for row in seeds]) for name in ("map", "map50")),
        f"{mean(row['experts'] for row in seeds):.2f}",
        f"{1e3 * mean(row['gflops'] for row in seeds):.0f}",
        f"{mean(row['milliseconds'] for row in seeds):.1f}",
        # A fixed K can fall by one where a weight is too small for its type.
        ", ".join(f"{row['spearman']:.2f}" for row in seeds) if seeds[0]["cell"].startswith("top-p") else "-",
        f"{mean(value for row in seeds for value in row['information'].values()):.2f}",
        ", ".join(str(row["seed"]) for row in seeds),
    ]


def _spread(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation if there is more than one value, on one line."""
    return f"{mean(values):.3f}" + (
        f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{stdev(values):.3f}" if len(values) > 1 else ""
    )


if __name__ == "__main__":
    write_tables({"scenes": scenes, "scenes-bccd": scenes})
