# SPDX-License-Identifier: Apache-2.0
"""Real faults in the middle of a run: it ends with an error that says what to do, and goes on to the same weights."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from moe_vision import create_model
from moe_vision.data import ShapeScenes, VOCDetection
from moe_vision.layers import ESMoE
from moe_vision.models import load_checkpoint
from moe_vision.train import Trainer, TrainSettings
from tests.data.conftest import VOCFolder
from tests.train.test_resume import assert_same, make_trainer
from tests.train.test_trainer import finite, read_log


def at_forward(trainer: Trainer, number: int, action: Callable[[], object]) -> None:
    """Do something when a training forward begins; an epoch has three."""
    forwards = 0

    def count(module: torch.nn.Module, inputs: Any) -> None:
        nonlocal forwards
        forwards += module.training
        if module.training and forwards == number:
            action()

    trainer.model.register_forward_pre_hook(count)


@contextmanager
def files_up_to(size: int) -> Iterator[Callable[[], None]]:
    """Yield a function after which the kernel lets no file grow beyond some bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    make_trainer(out, epochs=2).fit()
    return out


# The weights are 11 MB, the state of the optimizer twice that.
@pytest.mark.parametrize(
    ("size", "file"), [(1_000_000, "last.safetensors"), pytest.param(15_000_000, "state-2", marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_the_last_whole_state(size: int, file: str, tmp_path: Path, uninterrupted: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=2)
    with files_up_to(size) as fill:
        at_forward(trainer, 4, fill)
        message = rf"{file} can't be written: .*; state-1 is whole: make room, and resume goes on from it"
        with pytest.raises(OSError, match=message):
            trainer.fit()
    assert load_checkpoint(tmp_path / "last.safetensors").class_names
    assert [path.name for path in tmp_path.glob("state*")] == ["state-1"]
    make_trainer(tmp_path, epochs=2, resume=True).fit()
    assert_same(tmp_path, uninterrupted)


class KilledOnce(ShapeScenes):
    """Scenes whose worker process is killed once, as the kernel does where memory is short, when a file appears."""

    def __init__(self, out: Path) -> None:
        super().__init__(6, 64)
        self.when, self.done = out / "state-1", out / "killed"

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if get_worker_info() is not None and self.when.is_dir() and not self.done.is_file():
            self.done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.train.test_resume.SCENES", KilledOnce(tmp_path))
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (is killed by signal|exited unexpectedly)"):
        make_trainer(tmp_path, epochs=2, num_workers=1).fit()
    assert (tmp_path / "killed").is_file()
    make_trainer(tmp_path, epochs=2, num_workers=1, resume=True).fit()
    assert_same(tmp_path, uninterrupted)


def test_ctrl_c_ends_with_a_state_to_resume(tmp_path: Path, uninterrupted: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=2)
    at_forward(trainer, 5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = make_trainer(tmp_path, epochs=2, resume=True)
    assert resumed.epochs_done == 1
    resumed.fit()
    assert_same(tmp_path, uninterrupted)


def test_an_image_that_breaks_during_a_run_comes_grey(tmp_path: Path) -> None:
    voc = VOCFolder(tmp_path / "voc")
    names = ["good", "a", "b", "c"]
    for name in names[1:]:
        voc.add(name, [("cell", (10, 8, 30, 28))])
    voc.split("train", names)
    data = VOCDetection(voc.root, "train", cache=False)
    model = create_model("yolo_master_n", num_classes=1, class_names=data.classes)
    small = {"epochs": 2, "image_size": 64, "batch_size": 2, "num_workers": 0, "mosaic": 0.0}
    trainer = Trainer(model, data, data, tmp_path / "out", TrainSettings(**small))
    broken = voc.root / "JPEGImages" / "b.jpg"
    at_forward(trainer, 2, lambda: broken.write_bytes(broken.read_bytes()[:500]))
    trainer.fit()
    assert [(problem.file, problem.reason) for problem in data.problems] == [(str(broken), data.undecodable)]
    assert [line["skipped_steps"] for line in read_log(tmp_path / "out")] == [0, 0]
    assert finite(load_checkpoint(tmp_path / "out" / "last.safetensors"))


def test_steps_that_overflow_in_fp16_are_left_out() -> None:
    """In a loop of one's own, with torch's loss scaling, as on a GPU."""
    layer, x = ESMoE(8).train(), torch.rand(4, 8, 6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    moved = []
    for _ in range(20):
        before = [parameter.clone() for parameter in layer.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = layer(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(any(not torch.equal(one, other) for one, other in zip(before, layer.parameters(), strict=True)))
    assert moved == sorted(moved)  # too large a scale at first, and from then on none
    assert 0 < sum(moved) < 20
    assert finite(layer)
