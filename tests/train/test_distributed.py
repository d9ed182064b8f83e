# SPDX-License-Identifier: Apache-2.0
"""Two and four real processes over gloo train the network that one process with their images together trains.

In double precision: in single precision, networks this deep at images this small drift apart within a few steps, also
in one process, as soon as a sum is taken in another order.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.multiprocessing import start_processes

from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.layers.convolution import YOLOBatchNorm2d
from moe_vision.models import load_checkpoint
from moe_vision.train import Trainer, TrainSettings
from moe_vision.train.norms import synchronize_norms
from moe_vision.train.sharding import RankBatches
from tests.train.test_tasks import MaskedScenes, Textures

State = dict[str, Tensor]


class OneWithObjects(ShapeScenes):
    """Generated scenes of which only the first has objects, so that some rank sees none at every step."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = super().__getitem__(index)
        return image, target if index == 0 else {**target, **{key: target[key][:0] for key in ("boxes", "labels")}}


class Run(NamedTuple):
    task: str
    data: Any
    images: int  # a forward, on all ranks together
    settings: dict[str, Any] | None = None


RUNS = {
    # Batches of 4 and 1: the second rank has none of the last.
    "detect": Run("detect", ShapeScenes(5, 64), 4),
    "ranks without objects": Run("detect", OneWithObjects(5, 64), 4),
    "segment": Run("segment", MaskedScenes(5, 64), 4),
    "classify": Run("classify", Textures(), 6, {"soft": "relaxed"}),
    # Batches of 2 + 2 and 1: the last step has one batch, of one image.
    "accumulate": Run("detect", ShapeScenes(5, 64), 2, {"accumulate": 2, "balance": 5.0}),
}


def fit(run: Run, out: Path, ranks: int, *, spoilt: int = 0, killed: int = 0) -> tuple[State, State, State]:
    """Train for an epoch, one forward with NaN or the last; return the state before and after, and its average."""
    torch.manual_seed(0)
    classes = run.data.classes
    model = create_model("yolo_master_n", task=run.task, num_classes=len(classes), class_names=classes).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = {"epochs": 1, "image_size": 64, "batch_size": run.images // ranks, "num_workers": 0, "warmup_epochs": 0}
    # Not by Adam, which makes much of a gradient that is 0 but for rounding.
    settings = TrainSettings(**{**small, "optimizer": "sgd", "lr": 0.02, **(run.settings or {})})
    trainer = Trainer(model, run.data, None, out, settings)
    forwards = 0

    def prepare(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal forwards
        forwards += 1
        if forwards == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return (inputs[0].double() * (float("nan") if forwards == spoilt else 1),)

    trainer.model.register_forward_pre_hook(prepare)
    trainer.fit()
    return before, model.state_dict(), trainer.ema.module.state_dict()


def join(rank: int, ranks: int, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in place.items()})
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)


def start(function: Callable[..., None], ranks: int, *args: Any, join: bool = True) -> Any:
    """Run a function in processes, forked from one that has imported what they need, which saves time."""
    set_forkserver_preload([__name__])
    return start_processes(function, (ranks, *args), nprocs=ranks, join=join, start_method="forkserver")


def train_rank(rank: int, ranks: int, names: list[str], folder: Path, spoilt: int) -> None:
    """Train on one of the ranks; forward number ``spoilt`` of the second gets NaN."""
    for name in names:
        join(rank, ranks, folder / f"{name}.rendezvous")
        if ranks == 2:
            torch.save(norm_results(rank), folder / f"norms.rank{rank}")
        _, weights, average = fit(RUNS[name], folder / name, ranks, spoilt=spoilt if rank == 1 else 0)
        torch.save((weights, average), folder / f"{name}.rank{rank}")


def train_ranks(folder: Path, *names: str, spoilt: int = 0, ranks: int = 2) -> list[dict[str, tuple[State, State]]]:
    """Train on several ranks; return for each the state and its average by the name of the run."""
    start(train_rank, ranks, list(names), folder, spoilt)
    return [{name: torch.load(folder / f"{name}.rank{rank}") for name in names} for rank in range(ranks)]


def read_log(out: Path) -> dict[str, Any]:
    (line,) = (out / "log.jsonl").read_text().splitlines()
    return json.loads(line)


def distance(one: State, other: State) -> float:
    """Compare weights and statistics of the norms, but not their counts of batches."""
    assert list(one) == list(other)
    return max((one[name] - other[name]).abs().max().item() for name in one if one[name].is_floating_point())


def assert_as_one(name: str, folder: Path, ranks: list[dict[str, tuple[State, State]]]) -> None:
    """Check weights, statistics of the norms, averages and log against those of one process."""
    alone = folder / f"{name} alone"
    before, weights, average = fit(RUNS[name], alone, 1)
    for rank in ranks:
        assert distance(rank[name][0], weights) < 1e-5
        assert distance(rank[name][1], average) < 1e-5
        counts = [key for key in weights if key.endswith("num_batches_tracked")]
        assert all(torch.equal(rank[name][0][key], weights[key]) for key in counts)
    assert distance(before, weights) > 0.01
    log, expected = read_log(folder / name), read_log(alone)
    assert log["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert log["hard_gap"] == pytest.approx(expected["hard_gap"], rel=1e-4)
    for key in ("step", "lr", "skipped_steps", "experts"):
        assert log[key] == expected[key]


NORMS = {
    "torch": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, affine=False, momentum=None),
    "yolo": lambda: YOLOBatchNorm2d(3),
    "timm": lambda: BatchNormAct2d(3),
}
SHARDS = ((3, 2), (5, 0))


def norm_results(rank: int | None = None) -> dict[str, list[Tensor]]:
    """Output, gradients (input, parameters) and buffers of each norm, of five images or of a rank's share of them."""
    results = {}
    for name, create in NORMS.items():
        for sizes in SHARDS:
            images, slopes = torch.rand(2, 5, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            if rank is not None:
                images, slopes = images.split(sizes)[rank], slopes.split(sizes)[rank]
            model = nn.Sequential(create().double())
            if rank is not None:
                synchronize_norms(model, torch.device("cpu"))
            x = images.requires_grad_()
            y = model(x)
            (y * slopes).sum().backward()
            gradients = [x.grad, *(parameter.grad for parameter in model.parameters())]
            results[f"{name} {sizes}"] = [y.detach(), *gradients, *model.buffers()]
    return results


def assert_norms_as_one(folder: Path) -> None:
    ranks = [torch.load(folder / f"norms.rank{rank}") for rank in range(2)]
    for name, (y, x_grad, *others) in norm_results().items():
        (first_y, first_grad, *first), (second_y, second_grad, *second) = (rank[name] for rank in ranks)
        torch.testing.assert_close(torch.cat([first_y, second_y]), y)
        torch.testing.assert_close(torch.cat([first_grad, second_grad]), x_grad)
        buffers, gradients = others[-3:], others[:-3]
        torch.testing.assert_close([a + b for a, b in zip(first[:-3], second[:-3], strict=True)], gradients)
        torch.testing.assert_close(first[-3:], buffers)
        torch.testing.assert_close(second[-3:], buffers)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    ranks = train_ranks(tmp_path, "detect")
    assert_norms_as_one(tmp_path)
    assert_as_one("detect", tmp_path, ranks)
    # A checkpoint is what it always is.
    average = ranks[0]["detect"][1]
    assert distance(load_checkpoint(tmp_path / "detect" / "last.safetensors").state_dict(), average) < 1e-5


@pytest.mark.slow
def test_two_processes_train_as_one_whatever_the_task(tmp_path: Path) -> None:
    names = [name for name in RUNS if name != "detect"]
    ranks = train_ranks(tmp_path, *names)
    for name in names:
        assert_as_one(name, tmp_path, ranks)
    # Half of the images a step lead elsewhere.
    half = Run("classify", Textures(), 3, RUNS["classify"].settings)
    assert distance(fit(half, tmp_path / "half", 1)[1], ranks[0]["classify"][0]) > 0.01


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_processes_train_as_one(tmp_path: Path) -> None:
    """One image a rank, of which one has objects, and none in the last batch for three of them."""
    ranks = train_ranks(tmp_path, "ranks without objects", ranks=4)
    assert_as_one("ranks without objects", tmp_path, ranks)


def lose_rank(rank: int, ranks: int, folder: Path) -> None:
    """Train until the last rank is killed in the second step."""
    join(rank, ranks, folder / "rendezvous")
    fit(RUNS["detect"], folder / "out", ranks, killed=2 if rank == ranks - 1 else 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_is_killed_ends_the_others(ranks: int, tmp_path: Path) -> None:
    *others, killed = start(lose_rank, ranks, tmp_path, join=False).processes
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    start_of_wait = time.monotonic()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [1] * (ranks - 1)  # with an exception, not by a hand from outside
    assert time.monotonic() - start_of_wait < 60


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(tmp_path: Path) -> None:
    first, second = train_ranks(tmp_path, "classify", spoilt=2)
    assert read_log(tmp_path / "classify")["skipped_steps"] == 1
    for state, other in zip(first["classify"], second["classify"], strict=True):
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())
        assert distance(state, other) == 0


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_disjoint_and_even(images: int, batch_size: int, ranks: int) -> None:
    batches = [list(range(start, min(start + batch_size, images))) for start in range(0, images, batch_size)]
    shares = [list(RankBatches(batches, rank, ranks)) for rank in range(ranks)]
    for batch, *parts in zip(batches, *shares, strict=True):
        assert [index for part in parts for index in part] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_synchronized_norms_are_the_same_outside_a_distributed_run() -> None:
    model = nn.Sequential(*(create() for create in NORMS.values()))
    twin = nn.Sequential(*(create() for create in NORMS.values()))
    synchronize_norms(model, torch.device("cpu"))
    assert list(model.state_dict()) == list(twin.state_dict())
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(model(images), twin(images))
    assert torch.equal(model.eval()(images), twin.eval()(images))
