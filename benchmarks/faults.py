# SPDX-License-Identifier: Apache-2.0
"""Faults in the middle of training runs, at random moments, and whether the runs go on to the same weights.

The processes are killed for real, and the disk is a small tmpfs that is full (mounting it needs root, on Linux).
Writes benchmarks/results/faults-NAME.json::

    python benchmarks/faults.py kill --tries 20
    python benchmarks/faults.py interrupt --tries 6
    python benchmarks/faults.py worker --tries 4
    python benchmarks/faults.py disk
    python benchmarks/faults.py rank --tries 4
    python benchmarks/faults.py overflow     (in fp16, which needs a GPU)
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_run import PHASES, Run, children, same, wait_some_of
from measure import write_result

from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.models import load_checkpoint
from moe_vision.train import Trainer, TrainSettings

Rows = list[dict[str, Any]]
DISKS = (30, 70, 90, 108)  # MiB: too small for the first state, the next checkpoint, the next state, its last file


class Runs:
    """An uninterrupted run to compare with, and the moments at which others are stopped."""

    def __init__(self, folder: Path, epochs: int, seed: int, **settings: Any) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.settings = {"epochs": epochs, **settings}
        self.whole = folder / "whole"
        run = Run(self.whole, **self.settings)
        if run.finish() != 0:
            raise RuntimeError(f"the uninterrupted run has failed: {run.error}")
        self.durations = run.durations()

    def start(self, out: Path, **settings: Any) -> Run:
        return Run(out, **{**self.settings, **settings})

    def go_on(self, out: Path, **settings: Any) -> bool:
        """Let a run get to its end; say whether it is as the uninterrupted one."""
        return self.start(out, **settings).finish() == 0 and same(out, self.whole)

    def reach_moment(self, run: Run, phase: str) -> bool:
        """Wait for a random moment in a phase, of one of the next two epochs; return False where the run is over."""
        if not run.reach(phase, self.chance.randint(1, 2)):
            return False
        wait_some_of(self.durations[phase], self.chance)
        return True


def kill(runs: Runs, tries: int) -> Rows:
    """Kill runs with SIGKILL; each goes on, is killed again, and at last gets to its end."""
    killed, ended = Counter[str](), []
    while sum(killed.values()) < tries:
        out = runs.folder / f"killed-{len(ended)}"
        alive = True
        while alive and sum(killed.values()) < tries:
            run = runs.start(out)
            alive = runs.reach_moment(run, PHASES[sum(killed.values()) % len(PHASES)])
            run.process.kill()
            if run.finish() == -signal.SIGKILL:
                killed[run.phase] += 1
                print(f"killed in {run.phase}", flush=True)
        ended.append(runs.go_on(out))
    return [{"fault": "SIGKILL", "tries": tries, "during": dict(killed), "runs": len(ended), "same": sum(ended)}]


def interrupt(runs: Runs, tries: int) -> Rows:
    """Press Ctrl-C: the terminal sends SIGINT to the process and to its workers."""
    rows = []
    for number in range(tries):
        out, phase = runs.folder / f"interrupted-{number}", PHASES[number % len(PHASES)]
        run = runs.start(out)
        runs.reach_moment(run, phase)
        start = time.perf_counter()
        for process in (*children(run.process.pid), run.process.pid):
            os.kill(process, signal.SIGINT)
        code = run.finish()
        seconds = round(time.perf_counter() - start, 1)
        rows.append({"fault": "SIGINT", "during": run.phase, "error": run.error[0], "exit": code, "seconds": seconds})
        rows[-1]["same"] = runs.go_on(out)
        print(rows[-1], flush=True)
    return rows


def worker(runs: Runs, tries: int) -> Rows:
    """Kill a process that loads images."""
    rows = []
    while len(rows) < tries:
        out = runs.folder / f"worker-{len(rows)}-{time.monotonic_ns()}"
        run = runs.start(out)
        run.reach("step", 2)
        victims: list[int] = []
        while not victims and run.process.is_alive():
            victims = children(run.process.pid)
        wait_some_of(runs.durations["step"] / 4, runs.chance)
        start = time.perf_counter()
        try:
            os.kill(runs.chance.choice(victims), signal.SIGKILL)
        except ProcessLookupError:  # it was done with the epoch
            run.process.kill()
            continue
        code = run.finish()
        if code == 0:  # it had handed over its last batch
            continue
        rows.append({"fault": "worker killed", "error": run.error[0], "message": run.error[1].splitlines()[0]})
        rows[-1] |= {"exit": code, "seconds": round(time.perf_counter() - start, 1), "same": runs.go_on(out)}
        print(rows[-1], flush=True)
    return rows


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a tmpfs of this size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def disk(runs: Runs, tries: int) -> Rows:
    """Train on disks that are too small, then make them larger and go on."""
    rows = []
    for mebibytes in DISKS[:tries]:
        with small_disk(runs.folder / f"disk-{mebibytes}", mebibytes) as folder:
            run = runs.start(folder / "out")
            code = run.finish()
            message = run.error[1].replace(f"{folder}/", "")
            kept = sorted(path.name for path in (folder / "out").glob("state*"))
            subprocess.run(["mount", "-o", "remount,size=400m", folder], check=True)
            row = {"fault": f"disk of {mebibytes} MiB full", "error": run.error[0], "message": message, "exit": code}
            rows.append({**row, "states": kept, "same": runs.go_on(folder / "out")})
        print(rows[-1], flush=True)
    return rows


def rank(runs: Runs, tries: int) -> Rows:
    """Kill one of two or four processes; the others must end by themselves, with an error."""
    rows = []
    for number in range(tries):
        out, count = runs.folder / f"ranks-{number}", (2, 4)[number % 2]
        ranks = [runs.start(out, rank=rank, ranks=count) for rank in range(count)]
        victim = ranks.pop(runs.chance.randrange(count))
        victim.reach("step", 2)
        wait_some_of(runs.durations["step"], runs.chance)
        start = time.perf_counter()
        victim.process.kill()
        codes = [run.finish() for run in ranks]
        seconds = round(time.perf_counter() - start, 1)
        rows.append({"fault": "rank killed", "ranks": count, "exits": codes, "seconds": seconds})
        rows[-1]["errors"] = sorted({run.error[0] for run in ranks})
        print(rows[-1], flush=True)
    return rows


def overflow(folder: Path, epochs: int) -> Rows:
    """Train in fp16 until steps overflow: the loss scale starts at 65536 and doubles every fourth step that is made."""
    scenes = ShapeScenes(32, 64)
    model = create_model("yolo_master_n", num_classes=len(scenes.classes), class_names=scenes.classes)
    settings = TrainSettings(epochs=epochs, image_size=64, batch_size=4, num_workers=0, precision="fp16", mosaic=0.0)
    trainer = Trainer(model, scenes, scenes, folder / "out", settings)
    trainer.accelerator.scaler.set_growth_interval(4)
    metrics = trainer.fit()
    lines = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    averaged = load_checkpoint(folder / "out" / "last.safetensors").state_dict().values()
    steps, skipped = lines[-1]["step"], sum(line["skipped_steps"] for line in lines)
    finite = all(bool(tensor.isfinite().all()) for tensor in (*model.state_dict().values(), *averaged))
    losses = [round(sum(line["loss"].values()), 3) for line in (lines[0], lines[-1])]
    row = {"fault": "fp16 overflow", "steps": steps, "skipped": skipped, "finite": finite, "loss": losses}
    print(row | {"map50": metrics["map50"]}, flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    faults = {"kill": kill, "interrupt": interrupt, "worker": worker, "disk": disk, "rank": rank}
    parser.add_argument("fault", choices=[*faults, "overflow"], help="what befalls the runs")
    parser.add_argument("--tries", type=int, default=4, help="how often (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run, of two steps each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (%(default)s)")
    options = parser.parse_args()
    workers = 2 if options.fault in ("interrupt", "worker") else 0
    with tempfile.TemporaryDirectory() as folder:
        if options.fault == "overflow":
            rows = overflow(Path(folder), options.epochs)
        else:
            runs = Runs(Path(folder), options.epochs, options.seed, num_workers=workers)
            rows = faults[options.fault](runs, options.tries)
    print("written to", write_result(f"faults-{options.fault}", rows, network="yolo_master_n at 64 pixels").name)


if __name__ == "__main__":
    main()
