# SPDX-License-Identifier: Apache-2.0
"""The architecture of a YOLO-Master network as one frozen object, and the named ones."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from moe_vision.layers.checks import check_choice, check_kernel_sizes, check_positive, check_top_k
from moe_vision.layers.experts import EXPERT_INITS


@dataclass(frozen=True, kw_only=True)
class YOLOMasterConfig:
    """Everything that fixes a network's shape; a checkpoint carries it beside the weights.

    Args:
        task: What the network predicts: ``detect``, ``segment`` or ``classify``.
        num_classes: Number of classes; changes the head alone.
        backbone: ``yolo_master``, or the name of a timm model that has features at strides 8, 16 and 32.
        depth: Factor of the number of blocks in a stage.
        width: Factor of the number of channels.
        max_channels: Upper bound of the channels before they are scaled.
        stage2_blocks: CSP blocks in the first stage; the released v0.1 networks n and s have 2.
        c3k: Use the deeper inner blocks in every CSP block of the backbone too; the neck always does.
        attention_residual: Give the attention blocks a residual connection.
        mlp_ratio: Hidden width of the attention blocks' perceptrons relative to their input.
        placement: Where the ES-MoE blocks are: ``backbone`` (after each stage; of a timm model, before the neck),
            ``neck`` (after each CSP block of it), ``both`` or ``none``, the dense twin.
        block: Kind of the MoE blocks: ``esmoe``, or ``pointwise`` as in the networks v0.1, which have none in the first
            stage, and in the last two twice as many experts as in the one before.
        num_experts: Experts E of each block (``pointwise``: of the first).
        top_k: Experts K that an image selects; the most that it selects if ``top_p`` is below 1.
        top_p: Have each image select the fewest experts whose probabilities reach this, see `moe_vision.TopPGate`; at 1
            it is always ``top_k``.
        selection_bias: Keep the experts balanced by a bias on their selection, see `moe_vision.BiasedTopKGate`.
        kernel_sizes: Kernel sizes of the experts (``pointwise``: none).
        expert_init: How the experts start, ``shared`` or ``independent``, see `moe_vision.ESMoE` (``pointwise``:
            ``independent``).
        shared_expert: Add a shared expert to each ES-MoE block (``pointwise`` blocks always have one).
        residual: Add its input to each ES-MoE block's output.
        reg_max: Bins of the distribution over each box side, in strides of the level; 1 for a number in place of a
            distribution.
        dfl: Train the distribution with the distribution focal loss.
        kept_experts: Of blocks that were pruned, by their names in the network: the experts that stayed, as
            `moe_vision.prune` records them.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> from moe_vision.models import YOLOMasterConfig
        >>> config = YOLOMasterConfig(num_classes=3)
        >>> YOLOMasterConfig.from_json(config.to_json()) == config
        True
    """

    task: str = "detect"
    num_classes: int = 80
    backbone: str = "yolo_master"
    depth: float = 0.5
    width: float = 0.25
    max_channels: int = 1024
    stage2_blocks: int = 1
    c3k: bool = False
    attention_residual: bool = False
    mlp_ratio: float = 2.0
    placement: str = "backbone"
    block: str = "esmoe"
    num_experts: int = 4
    top_k: int = 2
    top_p: float = 1.0
    selection_bias: bool = False
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9)
    expert_init: str = "shared"
    shared_expert: bool = False
    residual: bool = False
    reg_max: int = 16
    dfl: bool = False
    kept_experts: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the values and give sequences read from JSON their type."""
        if isinstance(self.kernel_sizes, list):
            object.__setattr__(self, "kernel_sizes", tuple(self.kernel_sizes))
        object.__setattr__(self, "kept_experts", _check_kept(self.kept_experts))
        for item in fields(self):
            if item.name != "kept_experts":
                _check_type(item.name, getattr(self, item.name), item.default)
        check_choice("task", self.task, TASKS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_positive(num_classes=self.num_classes, max_channels=self.max_channels, num_experts=self.num_experts)
        check_positive(stage2_blocks=self.stage2_blocks)
        for name, factor in {"depth": self.depth, "width": self.width, "mlp_ratio": self.mlp_ratio}.items():
            if not 0 < factor < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {factor}")
        check_top_k(self.top_k, self.num_experts)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.selection_bias and self.top_p < 1:
            raise ValueError(f"selection_bias must be False with top_p below 1, got top_p={self.top_p}")
        self._check_block()
        if self.task == "classify" and self.placement in ("neck", "both"):
            raise ValueError(f"placement must be backbone or none for task='classify', got {self.placement!r}")
        if self.reg_max < 1 + self.dfl:
            raise ValueError(f"reg_max must be at least 1, and 2 with dfl, got {self.reg_max}")

    def _check_block(self) -> None:
        check_choice("block", self.block, BLOCKS)
        if self.block == "pointwise":
            if self.kernel_sizes:
                raise ValueError(f"kernel_sizes must be empty for block='pointwise', got {self.kernel_sizes}")
            if self.placement not in ("backbone", "none"):
                raise ValueError(f"placement must be backbone or none for block='pointwise', got {self.placement!r}")
            if self.expert_init != "independent":
                raise ValueError(f"expert_init must be independent for block='pointwise', got {self.expert_init!r}")
            if self.shared_expert or self.residual:
                raise ValueError(
                    "shared_expert and residual must be False for block='pointwise', which has the one and not the "
                    f"other, got {self.shared_expert} and {self.residual}"
                )
            return
        check_kernel_sizes(self.kernel_sizes)
        check_choice("expert_init", self.expert_init, EXPERT_INITS)
        if len(self.kernel_sizes) != self.num_experts:
            raise ValueError(f"kernel_sizes must name num_experts={self.num_experts} sizes, got {self.kernel_sizes}")

    @property
    def backbone_channels(self) -> tuple[int, int, int]:
        """Channels of P3, P4 and P5."""
        return self.channels(512), self.channels(512), self.channels(1024)

    @property
    def neck_channels(self) -> tuple[int, int, int]:
        """Channels of the neck's three outputs; the coarsest has 512 before scaling, where YOLOv12 has 1024."""
        return self.channels(256), self.channels(512), self.channels(512)

    @property
    def norm_constants(self) -> tuple[float, float]:
        """Epsilon and momentum of the norms: those of the YOLO family, but the released classifiers have PyTorch's."""
        return (1e-5, 0.1) if self.task == "classify" else (1e-3, 0.03)

    def channels(self, base: int) -> int:
        """Scale a number of channels, rounded up to a multiple of 8."""
        return 8 * math.ceil(min(base, self.max_channels) * self.width / 8)

    def repeats(self, base: int) -> int:
        """Scale a number of blocks, to at least 1."""
        return max(round(base * self.depth), 1)

    def to_json(self) -> str:
        """Return the configuration as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "YOLOMasterConfig":
        """Read what `to_json` wrote; an unknown or ill-typed field is a ValueError that names it."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"configuration must be a JSON object, got {type(values).__name__}")
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"configuration has unknown fields {unknown}; known are {sorted(known)}")
        return cls(**values)


def _check_kept(kept: object) -> dict[str, tuple[int, ...]]:
    """Return which experts stayed, with the types that JSON does not keep."""
    if not isinstance(kept, Mapping) or not all(isinstance(indices, Sequence) for indices in kept.values()):
        raise ValueError(f"kept_experts must map names of blocks to the experts that stayed, got {kept!r}")
    return {str(name): tuple(indices) for name, indices in kept.items()}


def _check_type(name: str, value: object, default: object) -> None:
    """Raise ValueError unless a field holds what its default is an example of; whole numbers pass as floats."""
    kind = type(default)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if isinstance(value, tuple):
        fits = fits and all(type(item) is int for item in value)
    if not fits:
        raise ValueError(f"{name} must be a value like {default!r}, got {value!r}")


TASKS = ("detect", "segment", "classify")
BLOCKS = ("esmoe", "pointwise")
PLACEMENTS = ("backbone", "neck", "both", "none")

_SMALL: dict[str, Any] = {"depth": 0.5, "max_channels": 1024}
_MEDIUM: dict[str, Any] = {"max_channels": 512, "c3k": True}
_LARGE: dict[str, Any] = {**_MEDIUM, "depth": 1.0, "attention_residual": True, "mlp_ratio": 1.2}
SCALES: dict[str, dict[str, Any]] = {
    "yolo_master_n": {**_SMALL, "width": 0.25},
    "yolo_master_s": {**_SMALL, "width": 0.5},
    "yolo_master_m": {**_MEDIUM, "depth": 0.5, "width": 1.0},
    "yolo_master_l": {**_LARGE, "width": 1.0},
    "yolo_master_x": {**_LARGE, "width": 1.5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    # Section 4 of arXiv 2512.23273: 4 experts of kernel sizes 3 to 9, 2 active, in the backbone; no DFL loss.
    "paper": {"num_experts": 4, "top_k": 2, "kernel_sizes": (3, 5, 7, 9), "reg_max": 16, "dfl": False},
    # The networks released under the name EsMoE: 3 experts, all active, trained with the DFL loss.
    "esmoe": {
        "num_experts": 3,
        "top_k": 3,
        "kernel_sizes": (3, 5, 7),
        "expert_init": "independent",
        "reg_max": 16,
        "dfl": True,
    },
    # The networks released as v0.1: 4, 8 and 16 pointwise experts, 2 active, beside a shared one.
    "v0_1": {
        "block": "pointwise",
        "num_experts": 4,
        "top_k": 2,
        "kernel_sizes": (),
        "expert_init": "independent",
        "reg_max": 16,
        "dfl": True,
    },
}


def named_config(
    name: str, *, task: str = "detect", num_classes: int = 80, variant: str = "paper", **changes: Any
) -> YOLOMasterConfig:
    """Return the configuration of a named network, with single fields changed if wanted.

    Args:
        name: One of `list_models`.
        task: What the network predicts.
        num_classes: Number of classes.
        variant: Name of the architecture's variant.
        changes: Fields of `YOLOMasterConfig` to set otherwise.

    Raises:
        ValueError: If a name is unknown; the message lists the known ones.

    Examples:
        >>> from moe_vision.models import named_config
        >>> named_config("yolo_master_n", top_k=1).top_k
        1
    """
    check_choice("name", name, SCALES)
    check_choice("variant", variant, VARIANTS)
    known = {item.name for item in fields(YOLOMasterConfig)}
    if set(changes) - known:
        raise ValueError(f"changes must be fields of YOLOMasterConfig, got {sorted(set(changes) - known)}")
    config = YOLOMasterConfig(task=task, num_classes=num_classes, **SCALES[name], **VARIANTS[variant])
    return replace(config, **changes)


def variant_of(config: YOLOMasterConfig) -> str:
    """Return the name of the variant that a configuration is of, or ``custom``.

    Args:
        config: The architecture.

    Examples:
        >>> from moe_vision.models import named_config
        >>> from moe_vision.models.config import variant_of
        >>> variant_of(named_config("yolo_master_s", variant="esmoe"))
        'esmoe'
        >>> variant_of(named_config("yolo_master_s", top_k=1))
        'custom'
    """
    for variant, values in VARIANTS.items():
        if all(getattr(config, name) == value for name, value in values.items()):
            return variant
    return "custom"
