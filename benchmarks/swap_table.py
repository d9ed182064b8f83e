# SPDX-License-Identifier: Apache-2.0
"""The tables of what swap.py measured, for the documentation.

    python benchmarks/swap_table.py

reads benchmarks/results/swap-MODE.json and writes swap-MODE.md beside each.
"""

from collections.abc import Sequence
from itertools import product
from statistics import mean, stdev
from typing import Any

from speed_table import markdown, write_tables
from swap import CELLS, INITS

Row = dict[str, Any]


def main() -> None:
    write_tables({f"swap-{name}": table for name, table in TABLES.items()})


def weights(rows: Sequence[Row]) -> str:
    lines = [["start", "sites", "different routes of 32 images", "relative change of the logits", "same top-5"]]
    for row in rows:
        same = "yes" if row["same_top5"] else "no"
        lines.append(
            [row["init"], str(row["sites"]), str(row["distinct_routes"]), f"{row['relative_change']:.0e}", same]
        )
    return markdown(lines)


def latency(rows: Sequence[Row]) -> str:
    clocks = " or ".join(sorted({row["clock"] for row in rows}))
    lines = [["model", "batch", f"dense, ms ({clocks} clock)", *(f"{init} / dense" for init in INITS)]]
    for row in rows:
        ratios = [f"{row['ratio'][init]:.2f}" if init in row["ratio"] else "-" for init in INITS]
        lines.append([row["model"], str(row["batch"]), f"{row['ms']['dense']['median']:.1f}", *ratios])
    return markdown(lines)


def fine_tune(rows: Sequence[Row]) -> str:
    lines = [["cell", "epochs", "top-1", "top-5", "MFLOP an image", "parameters, million", "information, nat", "seeds"]]
    for cell, epochs in product(CELLS, sorted({row["epochs"] for row in rows})):
        if seeds := [row for row in rows if (row["cell"], row["epochs"]) == (cell, epochs)]:
            numbers = ", ".join(str(row["seed"]) for row in seeds)
            lines.append([cell, str(epochs), *_figures(seeds), numbers])
    return markdown(lines)


def _figures(seeds: Sequence[Row]) -> list[str]:
    """Return accuracies with standard errors, costs, and what a class says of its experts, the mean over the layers."""
    information = [layer["information"] for row in seeds for layer in row["by_class"].values()]
    return [
        *(_with_error([row[name] for row in seeds]) for name in ("top1", "top5")),
        f"{seeds[0]['flops'] / 1e6:.0f}",
        f"{seeds[0]['parameters'] / 1e6:.2f}",
        f"{mean(information):.2f}" if information else "-",
    ]


def _with_error(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {stdev(values) / len(values) ** 0.5:.3f}"


TABLES = {"weights": weights, "latency": latency, "fine-tune": fine_tune}


if __name__ == "__main__":
    main()
