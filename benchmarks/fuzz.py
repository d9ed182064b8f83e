# SPDX-License-Identifier: Apache-2.0
"""Feed every reader of foreign files with hostile ones, and count how it takes them.

    python -m benchmarks.fuzz                                          # all readers, 100,000 inputs in all
    python -m benchmarks.fuzz --reader "VOC XML" --engine hypothesis --inputs 2000
    python -m benchmarks.fuzz --engine atheris                         # guided by coverage, where atheris is installed

Each reader runs in a process of its own, with a limit on its memory and 20 seconds for an input. A failure is an error
of another kind than ValueError or OSError or without the name of the file, a file that came or went, a process that
died or an input that took too long; the input is printed. Run it from the root of the repository, which has the tests.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINES = ("random", "hypothesis", "atheris")
# Shares of the inputs: those that build networks take 50 times as long as others.
SHARES = {"checkpoint header": 0.1, "swap.json": 0.1, "ONNX": 0.5, "ONNX metadata": 0.5}
SECONDS, MEMORY = 20, 4 * 2**30

Try = Callable[[Callable[[int], int]], None]


def main() -> None:
    options = parser().parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from measure import merge_row

    failures = 0
    for name in options.reader or readers():
        count = max(1, round(options.inputs * SHARES.get(name, 1)))
        row = {"reader": name, "engine": options.engine, "seed": options.seed, **run(name, options, count)}
        print(json.dumps(row))
        failures += row["failures"]
        if options.write:
            merge_row("fuzz", row, key=("reader", "engine"))
    sys.exit(f"{failures} failures" if failures else 0)


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--reader", action="append", help="name of a reader, such as 'VOC XML'; all if not given")
    command.add_argument("--engine", choices=ENGINES, default="random")
    command.add_argument("--inputs", type=int, default=7300, help="inputs for a reader; slow ones get a share")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--write", action="store_true", help="write benchmarks/results/fuzz.json")
    return command


def readers() -> list[str]:
    from tests.borders import borders

    with tempfile.TemporaryDirectory() as folder:
        return list(borders(Path(folder)))


def run(name: str, options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Run one reader in a process of its own and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        # A process that atheris watches must load the package itself.
        context = multiprocessing.get_context("spawn" if options.engine == "atheris" else "fork")
        process = context.Process(
            target=_work, args=(name, options.engine, count, options.seed, Path(folder, "work"), result)
        )
        start = time.perf_counter()
        process.start()
        process.join()
        found = json.loads(result.read_text()) if result.exists() else {}
        # libFuzzer, on which atheris stands, ends the process by itself.
        if found.get("inputs") != count:
            last = Path(folder, "work", "last")
            content = last.read_bytes()[:2000] if last.exists() else b""
            print(f"{name}: process ended with {process.exitcode} at {content!r}")
            found = {**found, "inputs": found.get("inputs", 0), "failures": found.get("failures", 0) + 1}
        return {**found, "minutes": round((time.perf_counter() - start) / 60, 2)}


def _work(name: str, engine: str, count: int, seed: int, folder: Path, result: Path) -> None:
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["moe_vision"]):
            from tests.borders import borders
    else:
        from tests.borders import borders
    from tests.hostile import changed, outcome

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    border, root = borders(folder)[name], folder / name
    outcome(border, root, border.sound)  # what is loaded once is not the input's doing
    signal.signal(signal.SIGALRM, _too_slow)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY + _size(), MEMORY + _size()))
    kinds: Counter[str] = Counter()
    worst = {"slowest_ms": 0.0, "memory_growth_mib": 0.0}

    def attempt(draw: Callable[[int], int]) -> None:
        content = changed(border.sound, draw)
        (folder / "last").write_bytes(content)
        signal.alarm(SECONDS)
        found = outcome(border, root, content)
        signal.alarm(0)
        kinds[found.kind.split(" ")[0] if found.kind.startswith("FAILED") else found.kind] += 1
        if found.kind.startswith("FAILED"):
            print(f"{name}: {found.kind}\n  {content[:600]!r}", flush=True)
        worst["slowest_ms"] = max(worst["slowest_ms"], round(1000 * found.seconds, 1))
        worst["memory_growth_mib"] = max(worst["memory_growth_mib"], round(found.mebibytes, 1))
        if kinds.total() % 500 == 0 or kinds.total() == count:
            outcomes = dict(sorted(kinds.items()))
            figures = {"inputs": kinds.total(), "failures": kinds["FAILED"], "outcomes": outcomes, **worst}
            result.write_text(json.dumps(figures))

    {"random": _random, "hypothesis": _hypothesis, "atheris": _atheris}[engine](attempt, count, seed)


def _random(attempt: Try, count: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(count):
        attempt(generator.randrange)


def _hypothesis(attempt: Try, count: int, seed: int) -> None:
    import hypothesis
    from hypothesis import strategies as st

    settings = hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip

    @hypothesis.seed(seed)
    @settings
    @hypothesis.given(st.data())
    def every(data: st.DataObject) -> None:
        attempt(lambda n: data.draw(st.integers(0, n - 1)))

    every()


def _atheris(attempt: Try, count: int, seed: int) -> None:
    import atheris

    def once(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        attempt(lambda n: provider.ConsumeIntInRange(0, n - 1))

    options = [
        f"-runs={count}",
        f"-seed={seed + 1}",
        "-rss_limit_mb=0",
        "-max_len=400",
        "-len_control=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


def _too_slow(*_: object) -> None:
    raise RuntimeError(f"it took more than {SECONDS} seconds")


def _size() -> int:
    """Bytes of data that the process has already."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
