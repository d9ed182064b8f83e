# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: fair timing, and a record of where and how a figure was measured."""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

RESULTS = Path(__file__).parent / "results"


def interleaved_medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time the calls in turn, round after round, so that a drift of the machine's speed meets all; medians in ms."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def write_result(name: str, rows: list[dict[str, Any]], **about: Any) -> Path:
    """Write the rows and all it takes to judge them to benchmarks/results/NAME.json."""
    return _write(name, {**circumstances(), **about, "rows": rows})


def merge_row(name: str, row: dict[str, Any], *, key: tuple[str, ...]) -> Path:
    """Add a row to benchmarks/results/NAME.json with its circumstances, in place of an earlier one of the same key.

    For rows that take long: each can be measured alone. Processes that finish at once wait for each other.
    """
    with FileLock(Path(tempfile.gettempdir(), f"moe_vision-{name}.lock")):
        path = RESULTS / f"{name}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        kept = [other for other in rows if any(other[part] != row[part] for part in key)]
        ordered = sorted([*kept, {**row, **circumstances()}], key=lambda other: [other[part] for part in key])
        return _write(name, {"rows": ordered})


def circumstances() -> dict[str, Any]:
    """Say how and where this process measures: command, day, machine, versions."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folder, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("moe-vision", "torch")}},
    }


def _write(name: str, record: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _without_folder(argument: str) -> str:
    """Shorten a path: where somebody keeps data is no part of the record."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
