# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run; each is an option of ``moe-vision train`` too."""

from dataclasses import dataclass, field, fields
from typing import Any

from moe_vision.layers.dispatch import DISPATCH_MODES
from moe_vision.layers.gating import SOFT_MODES
from moe_vision.losses.balance import BALANCE_KINDS

# Where the defaults of a task are others: its images are smaller, and so are the maps whose statistics norms gather.
OF_TASK: dict[str, dict[str, Any]] = {"classify": {"image_size": 224, "batch_size": 32, "lr": 1e-3}}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a network is trained. The defaults are for a few hundred to a few thousand images, from scratch.

    They are those to detect and segment; `for_task` gives those of any task.

    Args:
        epochs: Passes over the training images.
        image_size: Side of the square images in pixels, a multiple of 32.
        batch_size: Images a forward and process.
        accumulate: Forwards a step, whose gradients are averaged; the balance loss is that of all their images.
        optimizer: Name of one of timm's optimizers; ``sgd`` is with Nesterov momentum, as in the paper.
        lr: Peak learning rate.
        backbone_lr_scale: What ``lr`` is multiplied by for the weights of a timm backbone.
        weight_decay: Decoupled weight decay; not applied to norms and biases.
        warmup_epochs: Epochs over which the learning rate rises to its peak; then it falls as a cosine.
        clip_norm: Largest norm of the gradient; a larger one is scaled down.
        balance: Weight of the experts' load-balancing loss.
        balance_kind: Kind of the load-balancing loss: ``switch``, ``mse``, ``cv2`` or ``information``, see
            `moe_vision.load_balancing_loss`.
        budget: Weight of the loss that holds the mean number of experts, for networks with ``top_p`` below 1.
        budget_experts: Mean number of experts an image and block that it holds.
        bias_rate: Step by which the selection of experts is balanced, for networks with ``selection_bias``, see
            `moe_vision.update_selection_bias`.
        soft: Weights of the experts in training: ``masked`` (the function of inference), ``relaxed`` (all take part,
            less and less, and in the last fifth of the epochs as ``masked``) or ``straight_through``.
        dispatch: Executor of the experts in training: ``auto``, so that their norms see every image, or for instance
            ``grouped``, which is faster, since an expert runs for the images that select it alone.
        mosaic: To detect and segment: probability of a mosaic of four images, else of one, scaled at random.
        close_mosaic: Last epochs without mosaic and mixup.
        mixup: To detect and segment: probability of a blend of two pictures, see `moe_vision.data.mixup`; to classify:
            alpha, in [0, 1], of the Beta distribution from which the ratio of a blend comes, 0 for none.
        copy_paste: To segment: probability of pasting objects of another image, see `moe_vision.data.copy_paste`.
        rotate: To detect and segment: largest rotation in degrees, in [0, 180].
        shear: To detect and segment: largest shear in degrees, in [0, 45].
        hflip: Probability of a left-right flip.
        vflip: Probability of an upside-down flip; for images without a natural upright, such as microscopy.
        auto_augment: To classify: ``trivial`` (TrivialAugment), ``rand`` (RandAugment) or ``none``.
        erasing: To classify: probability of erasing a rectangle.
        cutmix: To classify: alpha, in [0, 1], of the Beta distribution of the area filled from another image, or 0.
        ema_decay: Decay of the moving average of the weights, approached during the first steps.
        eval_every: Epochs between evaluations; the last epoch is always evaluated.
        num_workers: Processes that load images.
        grad_checkpointing: Keep less of a forward in memory and compute it again in backward, with the same results.
        precision: ``no`` (fp32), ``bf16`` or, on GPUs, ``fp16``; routers stay in fp32.
        seed: Seed of order and augmentation; ``moe-vision train`` seeds the weights with it too.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> from moe_vision.train import TrainSettings
        >>> TrainSettings(epochs=50, image_size=320).batch_size
        4
    """

    epochs: int = _setting(100, "passes over the training images")
    image_size: int = _setting(640, "side of the square images in pixels, a multiple of 32")
    batch_size: int = _setting(4, "images a forward and process")
    accumulate: int = _setting(1, "forwards a step, whose gradients are averaged")
    optimizer: str = _setting("adamw", "name of one of timm's optimizers")
    lr: float = _setting(1.5e-3, "peak learning rate")
    backbone_lr_scale: float = _setting(1.0, "what the learning rate of a timm backbone is multiplied by")
    weight_decay: float = _setting(0.05, "decoupled weight decay")
    warmup_epochs: int = _setting(3, "epochs of rising learning rate")
    clip_norm: float = _setting(10.0, "largest norm of the gradient")
    balance: float = _setting(0.05, "weight of the load-balancing loss")
    budget: float = _setting(0.1, "with top_p: weight of the loss that holds the mean number of experts")
    budget_experts: float = _setting(2.0, "with top_p: mean number of experts an image and block")
    bias_rate: float = _setting(1e-3, "with selection_bias: step of the bias, in logits")
    balance_kind: str = _setting("switch", "kind of load-balancing loss: switch, mse, cv2 or information")
    soft: str = _setting("masked", "weights of the experts in training: masked, relaxed or straight_through")
    dispatch: str = _setting("auto", "executor of the experts in training: auto, dense, grouped, per_image or static")
    mosaic: float = _setting(1.0, "detect, segment: probability of a mosaic of four images")
    close_mosaic: int = _setting(10, "detect, segment: last epochs without mosaic and mixup")
    mixup: float = _setting(0.0, "detect, segment: probability of a blend of two; classify: its Beta's alpha, or 0")
    copy_paste: float = _setting(0.0, "segment: probability of pasting objects of another image")
    rotate: float = _setting(0.0, "detect, segment: largest rotation in degrees, at most 180")
    shear: float = _setting(0.0, "detect, segment: largest shear in degrees, at most 45")
    hflip: float = _setting(0.5, "probability of a left-right flip")
    vflip: float = _setting(0.0, "probability of an upside-down flip")
    auto_augment: str = _setting("trivial", "classify: changes of colour and shape: trivial, rand or none")
    erasing: float = _setting(0.25, "classify: probability of erasing a rectangle")
    cutmix: float = _setting(0.0, "classify: alpha of the Beta of the area filled from another image, or 0")
    ema_decay: float = _setting(0.999, "decay of the moving average of the weights")
    eval_every: int = _setting(1, "epochs between evaluations")
    num_workers: int = _setting(2, "processes that load images")
    grad_checkpointing: bool = _setting(False, "keep less of a forward in memory and compute it again in backward")
    precision: str = _setting("no", "no (fp32), bf16 or fp16")
    seed: int = _setting(0, "seed of weights, order and augmentation")

    @classmethod
    def for_task(cls, task: str, **changes: Any) -> "TrainSettings":
        """Return the defaults of a task, with single settings changed.

        Args:
            task: ``detect``, ``segment`` or ``classify``.
            changes: Settings by name.

        Examples:
            >>> from moe_vision.train import TrainSettings
            >>> settings = TrainSettings.for_task("classify", epochs=30)
            >>> settings.epochs, settings.image_size, settings.batch_size
            (30, 224, 32)
        """
        return cls(**{**OF_TASK.get(task, {}), **changes})

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("epochs", "image_size", "batch_size", "accumulate", "eval_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_epochs", "close_mosaic", "num_workers", "seed", "weight_decay", "balance", "budget"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("budget_experts", "bias_rate", "lr", "backbone_lr_scale", "clip_norm"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("mosaic", "mixup", "copy_paste", "hflip", "vflip", "erasing", "cutmix", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("rotate", 0 <= self.rotate <= 180, "in [0, 180]")
        self._require("shear", 0 <= self.shear <= 45, "in [0, 45]")
        self._require("image_size", self.image_size % 32 == 0, "a multiple of 32")
        self._require("soft", self.soft in SOFT_MODES, "masked, relaxed or straight_through")
        self._require("balance_kind", self.balance_kind in BALANCE_KINDS, f"one of {', '.join(BALANCE_KINDS)}")
        self._require("dispatch", self.dispatch in DISPATCH_MODES, f"one of {', '.join(DISPATCH_MODES)}")
        self._require("auto_augment", self.auto_augment in ("trivial", "rand", "none"), "trivial, rand or none")
        self._require("precision", self.precision in ("no", "bf16", "fp16"), "no, bf16 or fp16")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")


SETTINGS = fields(TrainSettings)
