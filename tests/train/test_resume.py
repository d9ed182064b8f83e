# SPDX-License-Identifier: Apache-2.0
"""A run that was killed and started again ends as one that was not: the same weights, bit by bit, and the same log."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.train import Trainer, TrainSettings

SCENES = ShapeScenes(6, 64)
RUN = """
import sys
from pathlib import Path
import torch
from tests.train.test_resume import make_trainer
torch.set_num_threads(1)
trainer = make_trainer(sys.argv[1], resume=True, epochs=4)
Path(sys.argv[1], "ready").touch()
trainer.fit()
"""


def make_trainer(out: Path | str, *, resume: bool = False, **settings: Any) -> Trainer:
    """Three steps an epoch; the backbone drops paths at random, so that random numbers must be restored too."""
    torch.manual_seed(0)
    model = create_model("yolo_master_n", num_classes=4, class_names=SCENES.classes)
    for block in model.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = torch.nn.Dropout(0.2)
    small = {"epochs": 3, "image_size": 64, "batch_size": 2, "num_workers": 0, "warmup_epochs": 1}
    return Trainer(model, SCENES, SCENES, out, TrainSettings(**{**small, **settings}), resume=resume)


def result(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the last weights and the log, without times."""
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return load_file(out / "last.safetensors"), [{**line, "seconds": None} for line in log]


def assert_same(one: Path, other: Path) -> None:
    (weights, log), (other_weights, other_log) = result(one), result(other)
    assert log == other_log
    assert weights.keys() == other_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    make_trainer(out).fit()
    return out


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("step", [2, 8])
def test_stopped_in_a_step(step: int, tmp_path: Path, uninterrupted: Path) -> None:
    trainer = make_trainer(tmp_path)
    forwards = 0

    def stop(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal forwards
        forwards += module.training
        if forwards == step:
            raise Interrupted

    trainer.model.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        trainer.fit()
    metrics = make_trainer(tmp_path, resume=True).fit()
    assert_same(tmp_path, uninterrupted)
    assert metrics == result(uninterrupted)[1][-1]["metrics"]


def test_stopped_while_the_state_is_written(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    save = trainer.accelerator.save_state
    saved = 0

    def half(folder: str) -> None:
        nonlocal saved
        saved += 1
        save(folder)
        if saved == 2:
            (Path(folder) / "optimizer.bin").unlink()
            raise Interrupted

    monkeypatch.setattr(trainer.accelerator, "save_state", half)
    with pytest.raises(Interrupted):
        trainer.fit()
    make_trainer(tmp_path, resume=True).fit()
    assert_same(tmp_path, uninterrupted)
    assert [path.name for path in tmp_path.glob("state*")] == ["state-3"]


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    metrics = make_trainer(tmp_path, epochs=1).fit()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert make_trainer(tmp_path, epochs=1, resume=True).fit() == metrics
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).fit()
    trainer = make_trainer(tmp_path, epochs=2)
    assert trainer.epochs_done == 0
    trainer.fit()
    assert [path.name for path in tmp_path.glob("state*")] == ["state-2"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(ValueError, match=r"lr must be as in the run to resume, 0\.0015, got 0\.1"):
        make_trainer(tmp_path, epochs=1, lr=0.1, resume=True)
    assert make_trainer(tmp_path, epochs=1, num_workers=1, resume=True).epochs_done == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Kill the process with SIGKILL again and again, at moments spread over its epochs, then let it get to the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", RUN, whole], check=True, capture_output=True)
    kills = 0
    for moment in (0.0, 0.9, 0.3, 0.6):  # seconds after there is a state; benchmarks/faults.py kills more often
        process = subprocess.Popen([sys.executable, "-c", RUN, killed], stderr=subprocess.DEVNULL)
        while process.poll() is None and not ((killed / "ready").is_file() and any(killed.glob("state-[0-9]"))):
            time.sleep(0.02)  # its imports are no part of its life
        (killed / "ready").unlink()
        time.sleep(moment)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    subprocess.run([sys.executable, "-c", RUN, killed], check=True, capture_output=True)
    assert_same(whole, killed)
