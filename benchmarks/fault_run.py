# SPDX-License-Identifier: Apache-2.0
"""The small run that faults befall: it tells what it is doing, so that a fault can be placed."""

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.train import Trainer, TrainSettings

SCENES = ShapeScenes(6, 64)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fault_run"])  # the imports, which are no part of a run
PHASES = ("step", "evaluation", "checkpoint")


class WatchedTrainer(Trainer):
    """Says when it starts the steps of an epoch, an evaluation, and to write checkpoint, log and state."""

    phases: Connection

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        self.phases.send("step")
        return super()._train_epoch(epoch)

    def _evaluate(self, pictures: Path | None) -> dict[str, Any]:
        self.phases.send("evaluation")
        return super()._evaluate(pictures)

    def _save(self, name: str) -> None:
        if name == "last":
            self.phases.send("checkpoint")
        super()._save(name)


def _train(out: Path, phases: Connection, settings: dict[str, Any], rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a process of its own
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
        os.environ.update({name: str(value) for name, value in place.items()})
        dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=4, class_names=SCENES.classes)
    small = {"image_size": 64, "batch_size": max(4 // ranks, 1), "num_workers": 0, "warmup_epochs": 1}
    try:
        trainer = WatchedTrainer(model, SCENES, SCENES, out, TrainSettings(**{**small, **settings}), resume=True)
        trainer.phases = phases
        trainer.fit()
    except BaseException as error:
        phases.send((type(error).__name__, str(error)))
        raise


class Run:
    """A process that trains, or goes on with what was trained in a folder before.

    Args:
        out: Folder of the run.
        settings: Those of the trainer.
        rank: Which of several processes this is.
        ranks: Number of processes.
    """

    def __init__(self, out: Path, *, rank: int = 0, ranks: int = 1, **settings: Any) -> None:
        self.phase, self.error = "start", ("", "")
        self.times: list[tuple[str, float]] = []
        self._phases, theirs = CONTEXT.Pipe(duplex=False)
        self.process: ForkServerProcess = CONTEXT.Process(target=_train, args=(out, theirs, settings, rank, ranks))
        self.process.start()
        theirs.close()

    def read(self) -> bool:
        """Wait until a phase begins and note it; return False where the process has ended."""
        try:
            told = self._phases.recv()
        except EOFError:
            self.process.join()
            return False
        if isinstance(told, tuple):
            self.error = told
        else:
            self.phase = told
            self.times.append((told, time.perf_counter()))
        return True

    def reach(self, phase: str, count: int) -> bool:
        """Wait until a phase begins for the n-th time; return False where the run ends before."""
        while count:
            if not self.read():
                return False
            count -= self.phase == phase
        return True

    def finish(self) -> int | None:
        """Wait for the end; return the exit code."""
        while self.read():
            pass
        return self.process.exitcode

    def durations(self) -> dict[str, float]:
        """Return how long each phase takes, by the longest."""
        spans: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self.times, self.times[1:], strict=False):
            spans[phase] = max(spans[phase], end - start)
        return spans


def children(process: int) -> list[int]:
    """Return the processes that a process has started: its workers that load images."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def same(one: Path, other: Path) -> bool:
    """Say whether two runs have ended with the same weights, bit by bit, and the same log, but for times."""
    logs = [[{**json.loads(line), "seconds": 0} for line in (out / "log.jsonl").open()] for out in (one, other)]
    weights, others = (load_file(out / "last.safetensors") for out in (one, other))
    return logs[0] == logs[1] and all(torch.equal(weights[name], others[name]) for name in others)


def wait_some_of(seconds: float, chance: random.Random) -> None:
    """Sleep for a random part of a time."""
    time.sleep(chance.uniform(0, seconds))
