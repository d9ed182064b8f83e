# SPDX-License-Identifier: Apache-2.0
"""The tables of what the benchmarks of speed measured, for the documentation.

    python benchmarks/speed_table.py

reads their JSON in benchmarks/results and writes a .md beside each.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from measure import RESULTS

from moe_vision.models.config import TASKS

Row = dict[str, Any]


def main() -> None:
    write_tables(TABLES)


def write_tables(tables: Mapping[str, Callable[[Sequence[Row]], str]]) -> None:
    """Write the table of each result that there is, by its name, beside it, with what it was measured on."""
    for name, table in tables.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            text = f"{table(record['rows'])}\n{circumstances(record)}\n"
            path.with_suffix(".md").write_text(text)
            print(f"{name}\n\n{text}")


def circumstances(record: Row) -> str:
    """Say on what the rows were measured, each machine and version once."""
    sources = [record] if "machine" in record else record["rows"]
    places = {_machine(**row["machine"]) for row in sources}
    versions = {f"{name} {number}" for row in sources for name, number in row["versions"].items()}
    versions |= {row["peers"] for row in sources if "peers" in row}
    versions |= {f"{name}={value}" for row in sources for name, value in row.get("environment", {}).items()}
    days = sorted({row["date"] for row in sources})
    period = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"{'; '.join(sorted(places))}; {', '.join(sorted(versions))}; {period}."


def _machine(cpu: str, cores: int, gpu: str = "", **_: Any) -> str:
    return f"{cpu}, {cores} cores" + (f", {gpu}" if gpu else "")


def esmoe(rows: Sequence[Row]) -> str:
    """Tabulate the layer: ratios of times, and megabytes at the peak."""
    titles = ["map", "batch", "format", "layer", "sparse / dense", "sparse / floor", "MB sparse, dense, floor"]
    lines = [[*titles, "training: sparse / dense", "MB sparse, dense"]]
    for row in sorted(rows, key=lambda row: (-row["size"], row["batch"], row["format"], row["layer"])):
        about = [f"{row['channels']} x {row['size']}²", str(row["batch"]), row["format"], row["layer"]]
        ratios = [f"{row[name]:.2f}" for name in ("sparse/dense", "sparse/floor")]
        memory = " ".join(f"{row['peak_mb'][name]:.1f}" for name in ("sparse", "dense", "floor"))
        training = ["", ""]
        if row["layer"] == "built":
            peak = row["train_peak_mb"]
            training = [f"{row['train sparse/dense']:.2f}", f"{peak['sparse']:.1f} {peak['dense']:.1f}"]
        lines.append([*about, *ratios, memory, *training])
    return markdown(lines)


def network(rows: Sequence[Row]) -> str:
    """Tabulate networks of ours, then those of peers beside the one of ours of the same scale."""
    titles = ["network", "batch", "threads", "built, ms", "fused, ms", "fused / built"]
    lines = [[*titles, "fused: sparse / every expert", "sparse / twin", "channels_last / contiguous"]]
    peers = [["network", "batch", "threads", "ms", "peer", "its ms", "ratio", "its ms in channels_last"]]
    for row in sorted(
        rows, key=lambda row: (TASKS.index(row["task"]), "nsmlx".index(row["scale"]), row["batch"], row["threads"])
    ):
        about = [f"{row['task']} {row['scale']}", str(row["batch"]), str(row["threads"])]
        times, ratios = row["ms"], row["ratios"]
        shown = [_spread(times["sparse, built"]), _spread(times["sparse, fused"])]
        names = ("fused/built", "fused sparse/every expert", "fused sparse/twin")
        formats = times["sparse, fused"]["median"] / times["sparse, fused, contiguous"]["median"]
        lines.append([*about, *shown, *(f"{ratios[name]:.2f}" for name in names), f"{formats:.2f}"])
        for name in _peers(row):
            ours, theirs, other = (
                times[key] for key in ("sparse, fused", f"{name}, fused", f"{name}, fused, channels_last")
            )
            ratio = ours["median"] / theirs["median"]
            peers.append([*about, _spread(ours), name, _spread(theirs), f"{ratio:.2f}", f"{other['median']:.1f}"])
    return markdown(lines) + (f"\n{markdown(peers)}" if len(peers) > 1 else "")


def profile(rows: Sequence[Row]) -> str:
    """Tabulate the parts of the n detector, a table for each number of threads."""
    text = ""
    for threads in sorted({row["threads"] for row in rows}):
        cases = {row["layer"]: row for row in rows if row["threads"] == threads}
        lines = [["part", *(f"{kind}: {title}" for kind in cases for title in ("ms", "share", "floors"))]]
        for parts in zip(*(case["parts"] for case in cases.values()), strict=True):
            cells = [cell for part in parts for cell in _part(part)]
            lines.append([parts[0]["part"], *cells])
        totals = [cell for case in cases.values() for cell in (f"{case['total_ms']:.1f}", "100 %", "")]
        text += f"{threads} {'thread' if threads == 1 else 'threads'}:\n\n{markdown([*lines, ['all', *totals]])}\n"
    return text.rstrip("\n") + "\n"


def scaling(rows: Sequence[Row]) -> str:
    """Tabulate each sweep: growth of sparse and dense, and the milliseconds of sparse."""
    text = ""
    for row in rows:
        points = row["points"]
        held = ", ".join(f"{name} {value}" for name, value in row["fixed"].items())
        lines = [[f"{row['varied']} ({held})", *(str(point[row["varied"]]) for point in points)]]
        for name in ("sparse", "dense"):
            growth = [f"{point['growth'][name]:.2f}" for point in points]
            lines.append([f"{name}, relative", *growth])
        lines.append(["sparse, ms", *(f"{point['ms']['sparse']['median']:.2f}" for point in points)])
        text += f"{markdown(lines)}\n"
    return text.rstrip("\n") + "\n"


def executors(rows: Sequence[Row]) -> str:
    """Tabulate the milliseconds of the executors of a mixture, the fastest of each row in bold."""
    names = list(rows[0]["ms"])
    lines = [["map", "batch", "format", *names]]
    for row in rows:
        about = [f"{row['channels']} x {row['size']}²", str(row["batch"]), row["memory_format"].split("_format")[0]]
        best = min(row["ms"].values())
        lines.append([*about, *(f"**{ms:.2f}**" if ms == best else f"{ms:.2f}" for ms in row["ms"].values())])
    return markdown(lines)


def training(rows: Sequence[Row]) -> str:
    """Tabulate a training step: milliseconds an image and peak memory, also relative to the network without experts."""
    lines = [["step", "batch", "ms an image", "relative", "MB at the peak", "relative"]]
    for row in rows:
        for name, ms in row["ms_per_image"].items():
            relative, peak = row["time/none"][name], row["peak_mib"][name]
            figures = [f"{ms:.0f}", f"{relative:.2f}", f"{peak:.0f}", f"{row['peak/none'][name]:.2f}"]
            lines.append([name, str(row["batch"]), *figures])
    return markdown(lines)


def gpu(rows: Sequence[Row]) -> str:
    """Tabulate the milliseconds on a GPU: called from Python, and replayed as a CUDA graph."""
    columns = ("dense", "grouped", "static", "none")
    graphs = [f"{name}, graph" for name in columns if name != "grouped"]
    lines = [["what", "batch", "type", *columns, *graphs]]
    for row in sorted(rows, key=lambda row: (row["what"], row["batch"], row["type"])):
        size = f"{row['channels']} x {row['size']}²" if row["what"] == "block" else f"{row['what']}, {row['size']}²"
        times = [f"{row['ms'][name]['median']:.2f}" if name in row["ms"] else "-" for name in (*columns, *graphs)]
        lines.append([size, str(row["batch"]), row["type"], *times])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first line has the titles."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in ruled)


def _spread(time: dict[str, float]) -> str:
    return f"{time['median']:.1f} ({time['lower']:.1f} to {time['upper']:.1f})"


def _part(part: Row) -> list[str]:
    floors = f"{part['block/floor']:.2f}" if "block/floor" in part else ""
    return [f"{part['ms']:.1f}", f"{part['share']:.0%}".replace("%", " %"), floors]


def _peers(row: Row) -> list[str]:
    return [
        name.removeprefix("fused/") for name in row["ratios"] if name.startswith("fused/") and name != "fused/built"
    ]


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "esmoe": esmoe,
    "network": network,
    "network_profile": profile,
    "scaling": scaling,
    "executors": executors,
    "training": training,
    "gpu": gpu,
}


if __name__ == "__main__":
    main()
