# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's files, read as TensorBoard reads them."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moe_vision.train.tracking import ScalarWriter
from tests.train.test_resume import Interrupted, make_trainer


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(out))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def line(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "lr": 0.5**epoch, "loss": {"box": float(epoch), "class": None}, **more}


def test_names_and_values(tmp_path: Path) -> None:
    writer = ScalarWriter(tmp_path)
    metrics = {"map": 0.25, "map_small": -1.0, "class_map": {"cell": 0.25}}
    writer.write(line(1, hard_gap=0.0, metrics=metrics, experts={"stage2": [0.25, 0.75]}))
    writer.write(line(2, hard_gap=None))
    assert curves(tmp_path) == {  # while the file is still open
        "loss/box": [(1, 1.0), (2, 2.0)],
        "metrics/map": [(1, 0.25)],
        "run/lr": [(1, 0.5), (2, 0.25)],
        "run/hard_gap": [(1, 0.0)],
        "experts stage2/0": [(1, 0.25)],
        "experts stage2/1": [(1, 0.75)],
    }
    writer.close()


@pytest.mark.slow
def test_a_run_that_was_killed_has_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    save = trainer.accelerator.save_state

    def stop_in_the_third(folder: str) -> None:
        if trainer.step == 9:  # of 3 an epoch; its line is written, its state is not
            raise Interrupted
        save(folder)

    monkeypatch.setattr(trainer.accelerator, "save_state", stop_in_the_third)
    with pytest.raises(Interrupted):
        trainer.fit()
    assert [step for step, _ in curves(tmp_path)["run/lr"]] == [1, 2, 3]
    make_trainer(tmp_path, resume=True).fit()
    found = curves(tmp_path)
    assert {"loss/box", "loss/balance", "metrics/map50", "run/hard_gap", "run/seconds"} < set(found)
    assert {tuple(step for step, _ in curve) for curve in found.values()} == {(1, 2, 3)}
    make_trainer(tmp_path, epochs=1).fit()  # another run in the folder
    assert [step for step, _ in curves(tmp_path)["run/lr"]] == [1]


def test_without_tensorboard_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path, epochs=2).fit()
    assert sum("TensorBoard, which is not installed" in message for message in caplog.messages) == 1
    assert not list(tmp_path.glob("events*"))
    assert (tmp_path / "training.png").is_file()
