# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

import json
import logging
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from moe_vision._types import BalanceKind, DispatchMode
from moe_vision.data import ClassificationSource, DetectionSource
from moe_vision.diagnostics import RoutingMonitor, RoutingSummary, find_alarms
from moe_vision.layers.esmoe import set_dispatch
from moe_vision.layers.routing import Routing
from moe_vision.losses.balance import auxiliary_loss
from moe_vision.losses.selection_bias import update_selection_bias
from moe_vision.models import YOLOMaster, save_checkpoint
from moe_vision.train.accumulation import preview_routing, windows
from moe_vision.train.environment import record_start
from moe_vision.train.evaluation import evaluate
from moe_vision.train.files import write_text
from moe_vision.train.hardening import Hardening
from moe_vision.train.norms import synchronize_norms
from moe_vision.train.pictures import draw_run
from moe_vision.train.preparation import check_classes, check_settings, create_optimizer, create_schedule
from moe_vision.train.progress import Countdown
from moe_vision.train.recipes import RECIPES
from moe_vision.train.run_state import load_run_state, remove_run_states, resumable, save_run_state
from moe_vision.train.settings import TrainSettings
from moe_vision.train.sharding import create_loader
from moe_vision.train.tracking import ScalarWriter

Batch = tuple[Tensor, list[dict[str, Any]]]
LONGEST_EVALUATION = timedelta(hours=12)  # by the main process, while the others wait


class Trainer:
    """Train a network on a data set, evaluate it, and keep its weights and a log.

    One process or several, started by ``torchrun`` or ``accelerate launch``; optimizers, cosine schedule and moving
    average (EMA) of the weights from timm. What is evaluated and kept are the averaged weights.

    Several processes make the steps that one process with their images together would make: they share its batches,
    the statistics of the norms and the sums that losses are divided by. Steps of several batches (``accumulate``)
    minimise the mean of the batches' losses, but the balance loss is that of all their images.

    The folder ``out`` receives ``settings.json``, ``config.json`` (the network's), ``environment.json``, ``log.jsonl``
    (a line an epoch: loss terms, learning rate, usage of the experts, the distance of their weights from hard ones,
    metrics, seconds, steps left out for a non-finite gradient), the same for TensorBoard, ``last.safetensors``,
    ``best.safetensors`` (by mAP 50:95 of the boxes or, to segment, the masks, or by top-1 accuracy), ``state-EPOCHS``,
    from which a run that was killed goes on, and at the end the pictures of `moe_vision.train.pictures`.

    Args:
        model: The network; its head fits the classes of the data.
        train_data: Images to learn from.
        val_data: Images to evaluate on, or None.
        out: Folder for what the run writes; made if missing.
        settings: How to train.
        resume: Go on after the last whole epoch of the run in ``out``, if it has one, and end with the same weights as
            a run that was never interrupted.

    Raises:
        ValueError: If the network has another number of classes than the data, there are no images, the device can not
            train in this precision, or the run in ``out`` has other settings.

    Examples:
        >>> import tempfile
        >>> from moe_vision import create_model
        >>> from moe_vision.data import ShapeScenes
        >>> from moe_vision.train import Trainer, TrainSettings
        >>> scenes = ShapeScenes(4, image_size=64)
        >>> model = create_model("yolo_master_n", num_classes=len(scenes.classes), class_names=scenes.classes)
        >>> settings = TrainSettings(epochs=1, image_size=64, batch_size=2, num_workers=0)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     metrics = Trainer(model, scenes, scenes, out, settings).fit()
        >>> sorted(metrics)[:2]
        ['class_images', 'class_map']
    """

    def __init__(
        self,
        model: YOLOMaster,
        train_data: DetectionSource | ClassificationSource,
        val_data: DetectionSource | ClassificationSource | None,
        out: str | Path,
        settings: TrainSettings,
        *,
        resume: bool = False,
    ) -> None:
        check_classes(model, train_data, val_data)
        set_seed(settings.seed)
        self.settings = settings
        self.val_data = val_data
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            check_settings(settings, self.out / "settings.json")
        # The state outlives a run, and would hold the next to the same precision; there is no public way to reset it.
        AcceleratorState._reset_state()
        patience = InitProcessGroupKwargs(timeout=LONGEST_EVALUATION)
        # Where there is nothing but CPUs, the processes of a launcher find each other only if told that it is meant.
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), mixed_precision=settings.precision, kwargs_handlers=[patience]
        )
        if settings.precision == "fp16" and self.accelerator.device.type == "cpu":  # it would be ignored
            raise ValueError("precision must be no or bf16 on the CPU, got 'fp16'")
        self.recipe = RECIPES[model.config.task]
        self.hardening = Hardening(model, settings.soft, settings.epochs)
        self.loader = create_loader(self.recipe.pipeline(train_data, settings), settings, self.accelerator)
        self.steps_per_epoch = ceil(len(self.loader) / settings.accumulate)
        model.image_size = settings.image_size
        model = model.to(self.accelerator.device).to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
        set_dispatch(
            model, cast(DispatchMode, settings.dispatch)
        )  # not of the averaged network, which is only evaluated
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        if self.accelerator.num_processes > 1:
            synchronize_norms(model, self.accelerator.device)
        optimizer = create_optimizer(model, settings)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.schedule = create_schedule(optimizer, settings, self.steps_per_epoch)
        self.step = 0
        self.best = -1.0
        self.metrics: dict[str, Any] = {}
        self.monitor = RoutingMonitor(self.accelerator.unwrap_model(self.model))
        self.warned: set[tuple[str, str]] = set()
        self.scalars = ScalarWriter(self.out)
        self.accelerator.register_for_checkpointing(self.ema, self)
        self.epochs_done = load_run_state(self.accelerator, self.out) if resume else 0

    def fit(self) -> dict[str, Any]:
        """Train all epochs and return the metrics of the last evaluation.

        They are empty without ``val_data``, and in all processes but the main one, which evaluates.
        """
        settings = self.settings
        if self.accelerator.is_main_process:
            if self.epochs_done < settings.epochs:
                self._describe()
            self._keep_log_lines(self.epochs_done)
            remove_run_states(self.out, keep=self.epochs_done)
        self.countdown = Countdown(self.epochs_done, settings.epochs)
        for epoch in range(self.epochs_done, settings.epochs):
            start = time.perf_counter()
            with self.monitor:
                line = {"epoch": epoch + 1, **self._train_epoch(epoch)}
            last = epoch + 1 == settings.epochs
            if self.val_data is not None and (last or (epoch + 1) % settings.eval_every == 0):
                self.metrics = line["metrics"] = self._evaluate(pictures=self.out if last else None)
            with resumable(self.out):
                if self.accelerator.is_main_process:
                    self._save("last")
                    if self.metrics and self.metrics[self.recipe.metric] > self.best:
                        self.best = self.metrics[self.recipe.metric]
                        self._save("best")
                    self._log({**line, "seconds": round(time.perf_counter() - start, 2)})
                    if last:
                        draw_run(self.out)
                save_run_state(self.accelerator, self.out, epoch + 1)
        self.scalars.close()
        self.accelerator.end_training()
        return self.metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on, besides model, optimizer and random numbers."""
        return {"step": self.step, "best": self.best, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        settings = self.settings
        self.loader.set_epoch(epoch)  # which tells the pipeline
        self.hardening.set_epoch(epoch)
        self.model.train()
        self.monitor.start_epoch()
        sums: Counter[str] = Counter()
        skipped = 0
        bar = tqdm(
            windows(self.loader, settings.accumulate),
            desc=f"epoch {epoch + 1}/{settings.epochs}",
            total=self.steps_per_epoch,
            disable=not self.accelerator.is_main_process,
        )
        for step, window in enumerate(bar, 1):
            terms, applied = self._train_step(window)
            skipped += not applied
            sums.update({name: term if applied else 0.0 for name, term in terms.items()})
            shown = " ".join(f"{name} {term:.3f}" for name, term in terms.items())
            bar.set_postfix_str(f"{shown}, {self.countdown.left(epoch + step / self.steps_per_epoch)}")
        steps = self.steps_per_epoch - skipped
        means = {name: total / steps if steps else None for name, total in self._mean_over_ranks(sums).items()}
        lr = self.optimizer.param_groups[0]["lr"]
        routing = self.monitor.summary()
        self._warn(routing)
        return {
            "step": self.step,
            "lr": lr,
            "loss": means,
            "skipped_steps": skipped,
            "experts": {name: layer.shares for name, layer in routing.items()},
            "hard_gap": sum(layer.hard_gap for layer in routing.values()) / max(len(routing), 1),
        }

    def _mean_over_ranks(self, sums: Counter[str]) -> dict[str, float]:
        """Average sums of loss terms over all processes."""
        gathered = gather_object([dict(sums)])
        return {name: sum(rank[name] for rank in gathered) / len(gathered) for name in gathered[0]}

    def _warn(self, routing: dict[str, RoutingSummary]) -> None:
        """Say what is wrong with the routing, each thing once."""
        for alarm in find_alarms(routing):
            if self.accelerator.is_main_process and alarm[:2] not in self.warned:
                self.warned.add(alarm[:2])
                logging.warning("%s", alarm)

    def _train_step(self, window: list[Batch]) -> tuple[dict[str, float], bool]:
        """Make one step; a step whose gradient is not finite is left out. Return the terms, and whether it was made."""
        self.schedule.step_update(self.step)
        self.step += 1
        model = cast(YOLOMaster, self.accelerator.unwrap_model(self.model))
        terms = self._accumulate(model, window)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        applied = bool(torch.isfinite(norm))  # the same on every rank: the gradients have been averaged
        if applied or self.accelerator.scaler is not None:  # fp16: the scaler leaves the step out, and learns from it
            self.optimizer.step()
        if applied:
            self.ema.update(model, step=self.step)
        else:
            self._restore_statistics(model)
        self.optimizer.zero_grad()
        return terms, applied

    def _accumulate(self, model: YOLOMaster, window: list[Batch]) -> dict[str, float]:
        """Make the gradient of a step: the mean over its batches. Return the mean loss terms."""
        images = [images.contiguous(memory_format=torch.channels_last) for images, _ in window]
        preview = self._preview(model, images)
        sums = Counter[str]()
        for place, (_, targets) in enumerate(window):
            last = place + 1 == len(window)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self.model(images[place])
                terms = self.recipe.loss(model, output, targets, balance=0.0)
                if "balance" in terms:
                    others = preview[:place] + preview[place + 1 :]
                    terms["balance"] = self._auxiliary_loss(model, others, balance=self.settings.balance)
                    if model.config.top_p < 1:
                        terms["budget"] = self._auxiliary_loss(model, others, balance=0.0, budget=self.settings.budget)
                self.accelerator.backward(torch.stack(list(terms.values())).sum() / len(window))
            sums.update({name: term.item() / len(window) for name, term in terms.items()})
        if model.config.selection_bias and model.config.placement != "none":
            update_selection_bias(model, rate=self.settings.bias_rate, others=preview[:-1])
        return dict(sums)

    def _auxiliary_loss(self, model: YOLOMaster, others: list[dict[str, Routing]], **weights: float) -> Tensor:
        """Return a loss of the routing of the last batch, as a part of all batches of the step."""
        kind = cast(BalanceKind, self.settings.balance_kind)
        return auxiliary_loss(model, kind=kind, budget_experts=self.settings.budget_experts, others=others, **weights)

    def _preview(self, model: YOLOMaster, images: list[Tensor]) -> list[dict[str, Routing]]:
        """Return the routing of each batch, if the losses of the routing of each need that of the others."""
        budget = model.config.top_p < 1 and self.settings.budget > 0
        needed = self.settings.balance > 0 or budget or model.config.selection_bias
        alone = len(images) == 1 or not needed or model.config.placement == "none"
        return [] if alone else preview_routing(model, self.model, images)

    def _restore_statistics(self, model: YOLOMaster) -> None:
        """Give the norms their averaged statistics, for the forward of a step left out has spoilt their own."""
        for buffer, averaged in zip(model.buffers(), self.ema.module.buffers(), strict=True):
            buffer.copy_(averaged)

    def _evaluate(self, pictures: Path | None) -> dict[str, Any]:
        """Evaluate the averaged weights on the main process, while the others wait."""
        metrics: dict[str, Any] = {}
        if self.accelerator.is_main_process and self.val_data is not None:
            size, workers = self.settings.image_size, self.settings.num_workers
            metrics = evaluate(
                self.ema.module,
                self.val_data,
                image_size=size,
                num_workers=workers,
                progress=True,
                pictures=pictures,
            )
            tqdm.write("  ".join(f"{name} {metrics[name]:.3f}" for name in self.recipe.shown), file=sys.stderr)
        self.accelerator.wait_for_everyone()
        return metrics

    def _save(self, name: str) -> None:
        save_checkpoint(cast(YOLOMaster, self.ema.module), self.out / f"{name}.safetensors")

    def _describe(self) -> None:
        """Write what the run is made of and where it runs."""
        model = cast(YOLOMaster, self.ema.module)
        config = {**json.loads(model.config.to_json()), "class_names": model.class_names}
        write_text(self.out / "settings.json", json.dumps(asdict(self.settings), indent=2))
        write_text(self.out / "config.json", json.dumps(config, indent=2))
        record_start(self.accelerator, self.out / "environment.json", resumed=self.epochs_done > 0)

    def _keep_log_lines(self, count: int) -> None:
        """Drop the lines of an epoch that was not finished."""
        path = self.out / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if count else []
        write_text(path, "".join(lines[:count]))

    def _log(self, line: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.scalars.write(line)
