# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: fair timing, and a record of where and how a figure was measured."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from moe_vision.diagnostics import Latency, compare_latency
from moe_vision.layers.esmoe import esmoe_layers

RESULTS = Path(__file__).parent / "results"


def interleaved_medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time the calls in turn and return the medians in ms."""
    return {name: time.median for name, time in compare_latency(calls, rounds=rounds).items()}


def quartiles(times: Mapping[str, Latency]) -> dict[str, dict[str, float]]:
    """Return times in ms as a record: by name the median, the lower and the upper quartile."""
    return {name: {key: round(value, 3) for key, value in time._asdict().items()} for name, time in times.items()}


class EveryPair:
    """A hook that lets images select all pairs (or sets of K) of experts in turn, whatever the router says.

    Experts differ in cost, and routers with random weights choose the same few for every image. The router still runs.
    """

    def __init__(self, top_k: int, start: int) -> None:
        self.top_k = top_k
        self.next = start

    def __call__(self, router: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        """Return logits that select the next sets."""
        sets = list(combinations(range(logits.shape[1]), self.top_k))
        chosen = torch.tensor([sets[(self.next + image) % len(sets)] for image in range(len(logits))])
        self.next += 1
        return torch.zeros_like(logits).scatter(1, chosen, 5.0)


def select_every_pair(model: nn.Module) -> None:
    """Let images select every set of experts in turn, at each ES-MoE block of a model; each block starts elsewhere."""
    layers = list(esmoe_layers(model).values())
    for index, layer in enumerate(layers):
        layer.router.register_forward_hook(EveryPair(layer.gate.top_k, start=index))


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
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), **_gpu()},
        # Threads and allocator: https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("MALLOC_", "OMP_", "GOMP_"))},
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


def _gpu() -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
