# SPDX-License-Identifier: Apache-2.0
"""The training loop on generated scenes: what it writes, its schedule, its reproducibility, and bad batches."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_vision import create_model, predict
from moe_vision.data import ShapeScenes
from moe_vision.models import YOLOMaster, YOLOMasterConfig, load_checkpoint
from moe_vision.train import Trainer, TrainSettings, evaluate

SCENES = ShapeScenes(6, 64)
PICTURES = ["confusion.png", "experts.png", "precision-recall.png", "predictions.jpg", "training.png"]
DESCRIPTIONS = ["config.json", "environment.json", "log.jsonl", "settings.json"]
EVENTS = "events.out.tfevents"
FILES = [*PICTURES, *DESCRIPTIONS, EVENTS, "best.safetensors", "last.safetensors", "state-2"]


def files(out: Path) -> list[str]:
    """Return the names in a run's folder, that of TensorBoard without time and host."""
    return sorted(EVENTS if path.name.startswith(EVENTS) else path.name for path in out.iterdir())


def make_model(seed: int = 0) -> YOLOMaster:
    torch.manual_seed(seed)
    return create_model("yolo_master_n", num_classes=4, class_names=SCENES.classes)


def make_trainer(out: Path, model: YOLOMaster | None = None, **settings: Any) -> Trainer:
    """Three steps an epoch at 64 pixels."""
    small = {"epochs": 2, "image_size": 64, "batch_size": 2, "num_workers": 0, "warmup_epochs": 1}
    return Trainer(model or make_model(), SCENES, SCENES, out, TrainSettings(**{**small, **settings}))


def read_log(out: Path) -> list[dict[str, Any]]:
    """Parse the log strictly: NaN is not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"the log holds {constant}")

    return [json.loads(line, parse_constant=refuse) for line in (out / "log.jsonl").read_text().splitlines()]


def spoil(model: YOLOMaster, *forwards: int) -> None:
    """Give the model a batch of NaN in some of its training forwards, counted from 1."""
    count = 0

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        nonlocal count
        count += module.training
        return (torch.full_like(inputs[0], float("nan")),) if module.training and count in forwards else None

    model.register_forward_pre_hook(before)


def finite(module: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of two epochs, its folder and what it returned."""
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return out, make_trainer(out).fit()


def test_dispatch_and_balance_kind_reach_the_layers_and_the_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1, dispatch="grouped", balance_kind="mse")
    experts = trainer.model.backbone.stage5.moe.experts
    seen: list[int] = []
    for expert in experts:
        expert.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    trainer.fit()
    # Three steps of two images, each of which runs 2 of 4 experts.
    assert len(seen) == 3 * 4
    assert sum(seen) == 3 * 2 * 2
    assert trainer.ema.module.backbone.stage5.moe.dispatch == "auto"
    # The mean square is at most (E - 1) / E^2 = 3 / 16 a block, far below the 1 that "switch" starts from.
    assert read_log(tmp_path)[0]["loss"]["balance"] < 4 * 0.05 * 3 / 16


def test_grad_checkpointing_changes_no_weight(tmp_path: Path, run: tuple[Path, dict[str, Any]]) -> None:
    trainer, forwards = make_trainer(tmp_path, grad_checkpointing=True), 0

    def count(module: nn.Module, inputs: Any) -> None:
        nonlocal forwards
        forwards += 1

    trainer.model.backbone.stage3.blocks.register_forward_pre_hook(count)
    trainer.fit()
    assert forwards == 2 * 6  # six steps, each forward once more in backward
    weights, expected = (load_file(out / "last.safetensors") for out in (tmp_path, run[0]))
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


def test_files(run: tuple[Path, dict[str, Any]]) -> None:
    out, _ = run
    assert files(out) == sorted(FILES)
    config = json.loads((out / "config.json").read_text())
    assert config.pop("class_names") == list(SCENES.classes)
    assert YOLOMasterConfig.from_json(json.dumps(config)) == load_checkpoint(out / "last.safetensors").config
    settings = json.loads((out / "settings.json").read_text())
    assert TrainSettings(**settings) == TrainSettings(
        epochs=2, image_size=64, batch_size=2, num_workers=0, warmup_epochs=1
    )


def test_log(run: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = run
    log = read_log(out)
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 3), (2, 6)]
    for line in log:
        assert set(line["loss"]) == {"class", "box", "balance"}
        assert all(value > 0 for value in line["loss"].values())
        assert line["skipped_steps"] == 0
        assert line["seconds"] > 0
        for shares in (line["experts"], line["metrics"]["experts"]):
            assert list(shares) == [f"backbone.stage{stage}.moe" for stage in (2, 3, 4, 5)]
            assert all(sum(share) == pytest.approx(1.0) for share in shares.values())
        assert set(line["metrics"]["class_map"]) == set(SCENES.classes)
    assert log[-1]["metrics"] == metrics


def test_checkpoint_predicts_and_gives_the_logged_metrics(run: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = run
    model = load_checkpoint(out / "last.safetensors")
    assert (model.class_names, model.image_size) == (SCENES.classes, 64)
    assert len(predict(model, SCENES[0][0])) == 1
    again = evaluate(model, SCENES, image_size=64)
    assert again["map50"] == pytest.approx(metrics["map50"], abs=1e-6)
    assert again["experts"] == metrics["experts"]


def test_learning_rate_rises_and_falls_as_a_cosine(tmp_path: Path) -> None:
    model, rates = make_model(), []
    trainer = make_trainer(tmp_path, model, epochs=4, warmup_epochs=2, lr=1e-3, eval_every=4)
    rate = trainer.optimizer.param_groups[0]
    model.register_forward_pre_hook(lambda *_: rates.append(rate["lr"]) if model.training else None)
    trainer.fit()
    low, high = 1e-5, 1e-3  # it starts and ends at a hundredth of the peak
    # 3 steps an epoch: 6 of warm-up, then the cosine over all 12.
    warmup = [low + step / 6 * (high - low) for step in range(6)]
    cosine = [low + (high - low) * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(6, 12)]
    assert rates == pytest.approx(warmup + cosine)
    assert read_log(tmp_path)[-1]["lr"] == pytest.approx(cosine[-1])


def test_the_loss_comes_down(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=8, lr=4e-3, mosaic=0.0, eval_every=8).fit()
    losses = [line["loss"]["class"] + line["loss"]["box"] for line in read_log(tmp_path)]
    # The first epoch warms up on a network that expects nothing; from then on it learns.
    assert losses[-1] < max(losses)
    assert [("metrics" in line) for line in read_log(tmp_path)] == [False] * 7 + [True]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_same_seed_gives_the_same_weights_bit_by_bit(
    tmp_path: Path, run: tuple[Path, dict[str, Any]], num_workers: int
) -> None:
    make_trainer(tmp_path, num_workers=num_workers).fit()
    weights, expected = (load_file(folder / "last.safetensors") for folder in (tmp_path, run[0]))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    losses, expected_losses = ([line["loss"] for line in read_log(folder)] for folder in (tmp_path, run[0]))
    assert losses == expected_losses


def test_another_seed_gives_other_weights(tmp_path: Path, run: tuple[Path, dict[str, Any]]) -> None:
    make_trainer(tmp_path, seed=1).fit()
    weights, others = (load_file(folder / "last.safetensors") for folder in (tmp_path, run[0]))
    assert not torch.equal(weights["backbone.stem.conv.weight"], others["backbone.stem.conv.weight"])


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    model = make_model()
    spoil(model, 2)
    trainer = make_trainer(tmp_path, model)
    trainer.fit()
    assert [line["skipped_steps"] for line in read_log(tmp_path)] == [1, 0]
    assert finite(model)  # norms included
    assert finite(trainer.ema.module)
    assert finite(load_checkpoint(tmp_path / "last.safetensors"))


def test_a_step_left_out_changes_no_parameter(tmp_path: Path) -> None:
    model = make_model()
    spoil(model, 1, 2, 3)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_trainer(tmp_path, model, epochs=1).fit()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    (line,) = read_log(tmp_path)
    assert line["skipped_steps"] == 3
    assert line["loss"] == {"class": None, "box": None, "balance": None}


def test_half_precision_after_full(tmp_path: Path) -> None:
    make_trainer(tmp_path / "full", epochs=1).fit()
    make_trainer(tmp_path / "half", epochs=1, precision="bf16").fit()
    full, half = (read_log(tmp_path / name)[0]["loss"] for name in ("full", "half"))
    assert full != half
    for name in ("class", "balance"):
        assert half[name] == pytest.approx(full[name], rel=0.1)


def test_without_validation(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, image_size=64, batch_size=4, num_workers=0)
    assert Trainer(make_model(), SCENES, None, tmp_path, settings).fit() == {}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["last.safetensors"]
    assert "metrics" not in read_log(tmp_path)[0]


class NoScenes(ShapeScenes):
    def __len__(self) -> int:
        return 0


def test_data_must_fit_the_network(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, image_size=64)
    message = r"as many classes as the data, 4 \(circle, cross, square, triangle\), got num_classes=3"
    with pytest.raises(ValueError, match=message):
        Trainer(create_model("yolo_master_n", num_classes=3), SCENES, None, tmp_path, settings)
    with pytest.raises(ValueError, match="data must hold at least one image, got an empty NoScenes"):
        Trainer(make_model(), NoScenes(1, 64), None, tmp_path, settings)


TWO_PROCESSES = """
import sys
import torch
from moe_vision import create_model
from moe_vision.data import ShapeScenes
from moe_vision.train import Trainer, TrainSettings

torch.set_num_threads(1)
scenes = ShapeScenes(7, 64)
model = create_model("yolo_master_n", num_classes=4, class_names=scenes.classes)
settings = TrainSettings(epochs=2, image_size=64, batch_size=2, num_workers=0, warmup_epochs=1)
trainer = Trainer(model, scenes, scenes, sys.argv[1], settings)
metrics = trainer.fit()
rank = trainer.accelerator.process_index
weights = torch.cat([parameter.detach().flatten() for parameter in trainer.ema.module.parameters()])
torch.save({"metrics": metrics, "weights": weights}, f"{sys.argv[1]}/rank{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(out)], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert files(out) == sorted([*FILES, "rank0.pt", "rank1.pt"])
    assert json.loads((out / "environment.json").read_text())[0]["processes"] == 2
    assert done.stderr.count("epoch 2/2:   0%|          | 0/2 [00:00<?, ?it/s]") == 1  # of the main process alone
    first, second = (torch.load(out / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert set(first["metrics"]) >= {"map", "map50", "experts"}
    assert second["metrics"] == {}
    log = read_log(out)
    # 7 scenes in batches of 2 for each of 2 processes: 2 steps an epoch.
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4)]
    assert list(log[0]["experts"]) == [f"backbone.stage{stage}.moe" for stage in (2, 3, 4, 5)]


def test_optimizers_are_those_of_timm(tmp_path: Path) -> None:
    groups = make_trainer(tmp_path, optimizer="sgd", lr=0.01).optimizer.param_groups
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in groups)
    # Norms and biases do not decay.
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    assert all(parameter.ndim > 1 for group in groups if group["weight_decay"] for parameter in group["params"])
    with pytest.raises(ValueError, match=r"optimizer must be one of .*, got 'adamv'; did you mean adam"):
        make_trainer(tmp_path, optimizer="adamv")
