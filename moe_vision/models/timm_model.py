# SPDX-License-Identifier: Apache-2.0
"""The YOLO-Master backbone with a classification head as a timm model: ``timm.create_model("yolo_master_n")``.

timm is imported here, so this module is loaded only where timm is, see `moe_vision._timm_registration`.
"""

from dataclasses import fields
from typing import Any, cast

import torch
from timm.layers import DropPath, SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from moe_vision.models.anchors import STRIDES
from moe_vision.models.backbone import YOLOMasterBackbone
from moe_vision.models.blocks import set_norm_constants
from moe_vision.models.classify_head import HIDDEN_CHANNELS, ClassifyHead
from moe_vision.models.config import SCALES, YOLOMasterConfig, named_config

__all__ = ["YOLOMasterClassifier", "checkpoint_filter_fn"]


class YOLOMasterClassifier(nn.Module):
    """`YOLOMasterBackbone` and `ClassifyHead` with the methods and arguments of a timm model.

    It holds the same weights under the same names as the network that `moe_vision.create_model` builds for
    ``task="classify"``. Images are wanted in [0, 1] without further normalisation.

    Args:
        cfg: The architecture; its task and number of classes are not read.
        in_chans: Channels C of the images.
        num_classes: Number of classes; 0 leaves the pooled features as the output.
        global_pool: Pooling of the head: ``avg``, ``max``, ``avgmax``, ``catavgmax``; empty for none.
        output_stride: Must be 32.
        drop_rate: Probability of dropping a pooled feature in training.
        drop_path_rate: Probability of dropping the last residual branch for an image in training; those before rise
            linearly to it from 0.
        device: Where the parameters live.
        dtype: Type of the parameters.

    Shape:
        - Input: images (B, C, H, W) in [0, 1], H and W multiples of 32
        - Output: logits (B, num_classes)

    Raises:
        ValueError: If ``output_stride`` is not 32, classes are wanted of features that are not pooled, or the sides
            of the images are not multiples of 32.

    Examples:
        >>> import timm, torch
        >>> import moe_vision
        >>> timm.create_model("yolo_master_n", num_classes=10)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> features = timm.create_model("yolo_master_n", features_only=True, out_indices=(2, 3, 4))
        >>> [tuple(level.shape) for level in features(torch.rand(2, 3, 64, 64))]
        [(2, 128, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2)]
    """

    def __init__(
        self,
        cfg: YOLOMasterConfig,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_stride != STRIDES[-1]:
            raise ValueError(f"output_stride must be {STRIDES[-1]}, got {output_stride}")
        widths = [cfg.channels(base) for base in (64, 256, 512, 512, 1024)]
        names = ["stem", "stage2", "stage3", "stage4", "stage5"]
        self.feature_info = [
            {"num_chs": width, "reduction": 2**level, "module": f"backbone.{name}"}
            for level, (width, name) in enumerate(zip(widths, names, strict=True), start=1)
        ]
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = widths[-1]
        with torch.device(torch.get_default_device() if device is None else device):
            self.backbone = YOLOMasterBackbone(cfg, in_chans)
            self.head = ClassifyHead(self.num_features, num_classes=0, drop_rate=drop_rate)
        set_norm_constants(self, cfg)
        _set_drop_path(self.backbone, drop_path_rate)
        self.to(dtype=dtype)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features of the last stage."""
        _check_size(x)
        for stage in self.backbone.children():
            x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits for the features of the last stage, or what the classifier would see."""
        return cast(Tensor, self.head(x, pre_logits=pre_logits))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last features and those of chosen levels.

        Args:
            x: Images.
            indices: Levels to return, 0 (stem) to 4 (stage 5); the last n if a number, all if None.
            norm: Without effect, there is no norm after the last stage.
            stop_early: Compute no more than the chosen levels need.
            output_fmt: Must be ``NCHW``.
            intermediates_only: Return the list of the chosen levels alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        _check_size(x)
        stages = list(self.backbone.children())
        wanted, last = feature_take_indices(len(stages), indices)
        intermediates = []
        for index, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            if index in wanted:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of the chosen levels, and the head, which can't do without them.

        Args:
            indices: Levels to keep, as in `forward_intermediates`.
            prune_norm: Without effect, there is no norm after the last stage.
            prune_head: Remove the head even if the last stage stays.
        """
        names = [name for name, _ in self.backbone.named_children()]
        wanted, last = feature_take_indices(len(names), indices)
        for name in names[last + 1 :]:
            delattr(self.backbone, name)
        self.num_features = cast(int, self.feature_info[last]["num_chs"])
        if prune_head or last + 1 < len(names):
            self.reset_classifier(0, "", reset_other=True)
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the last layer of the head."""
        return self.head.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Put a new last layer into the head.

        Args:
            num_classes: Number of classes; 0 leaves the pooled features as the output.
            global_pool: Pooling to change to, if not None.
            reset_other: Remove the convolution before the pooling too.
        """
        head, weight = self.head, self.backbone.stem.conv.weight
        if reset_other:
            head.conv = nn.Identity()
        if global_pool is not None:
            head.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        pool: Any = head.global_pool
        if num_classes and pool.is_identity():
            raise ValueError(f"global_pool must not be empty unless num_classes is 0, got num_classes={num_classes}")
        width = self.num_features if isinstance(head.conv, nn.Identity) else HIDDEN_CHANNELS
        self.num_classes = num_classes
        self.head_hidden_size = width * pool.feat_mult()
        dd: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        head.linear = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes else nn.Identity()
        head.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort the parameters into layers from the stem to the head.

        Args:
            coarse: Make each stage one layer, instead of each of its inner blocks.
        """
        blocks = [
            (r"^backbone\.stage(\d+)\.(?:downsample|blocks\.conv1)\.", (0,)),
            (r"^backbone\.stage(\d+)\.blocks\.blocks\.(\d+)\.", None),
            (r"^backbone\.stage(\d+)\.", (99999,)),  # timm's mark of what belongs to the layer before
        ]
        return {"stem": r"^backbone\.stem\.", "blocks": r"^backbone\.stage(\d+)\." if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have every stage trade time for memory in training."""
        self.grad_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay beyond those of one dimension, which timm knows."""
        return set()


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: YOLOMasterClassifier) -> dict[str, Tensor]:
    """Take from a checkpoint of ours what a timm model has: of a detector's the backbone, of a classifier's all.

    Args:
        state_dict: Weights of a `moe_vision.models.YOLOMaster` of any task.
        model: The model they are for.

    Raises:
        ValueError: If the checkpoint's backbone has other parameters than the model's.

    Examples:
        >>> import timm
        >>> from moe_vision import create_model
        >>> from moe_vision.models.timm_model import checkpoint_filter_fn
        >>> weights = create_model("yolo_master_n").state_dict()
        >>> model = timm.create_model("yolo_master_n", num_classes=10)
        >>> model.load_state_dict(checkpoint_filter_fn(weights, model))
        <All keys matched successfully>
    """
    own = model.state_dict()
    # timm does not insist on matching names where it expects another head.
    differing = sorted(name for name in set(own) ^ set(state_dict) if name.startswith("backbone."))
    if differing:
        raise ValueError(
            f"the checkpoint's backbone must be the model's, but only one of them has {', '.join(differing[:3])}, ... "
            f"({len(differing)} differ); create the model with the scale, variant and placement of the checkpoint"
        )
    if "head.linear.weight" in state_dict:
        return state_dict
    backbone = {name: _with_own_eps(name, state_dict[name]) for name in own if name.startswith("backbone.")}
    return {**own, **backbone}


def _with_own_eps(name: str, tensor: Tensor) -> Tensor:
    """Let the norms of a detector, whose epsilon is larger than a classifier's, divide by what they did."""
    detector, classifier = YOLOMasterConfig(task="detect"), YOLOMasterConfig(task="classify")
    larger = detector.norm_constants[0] - classifier.norm_constants[0]
    return tensor + larger if name.endswith(".running_var") else tensor


def _set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Give the residual branches rates of stochastic depth that rise linearly from 0."""
    if not rate:
        return
    branches: list[Any] = [module for module in backbone.modules() if hasattr(module, "drop_path")]
    for index, branch in enumerate(branches):
        branch.drop_path = DropPath(rate * index / max(len(branches) - 1, 1))


def _check_size(images: Tensor) -> None:
    if torch.compiler.is_compiling():  # a test of a dynamic size would fix it in the graph
        return
    if images.shape[-2] % STRIDES[-1] or images.shape[-1] % STRIDES[-1]:
        raise ValueError(
            f"images must have height and width in multiples of {STRIDES[-1]}, got {tuple(images.shape[-2:])}"
        )


# No mean and no standard deviation: the networks take images in [0, 1].
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "min_input_size": (3, 32, 32),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "first_conv": "backbone.stem.conv",
            "classifier": "head.linear",
            "license": "apache-2.0",
            "paper_ids": "arXiv:2512.23273",
            "paper_name": "YOLO-Master",
        }
        for name in SCALES
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build a model; of the keyword arguments, those that are fields of the configuration change it."""
    architecture = {"variant", *(field.name for field in fields(YOLOMasterConfig))} - {
        "task",
        "num_classes",
        "backbone",
    }
    changes = {key: kwargs.pop(key) for key in architecture & set(kwargs)}
    return build_model_with_cfg(
        YOLOMasterClassifier,
        name,
        pretrained,
        model_cfg=named_config(name, task="classify", **changes),
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def yolo_master_n(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model of scale n."""
    return _create("yolo_master_n", pretrained, **kwargs)


@register_model
def yolo_master_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model of scale s."""
    return _create("yolo_master_s", pretrained, **kwargs)


@register_model
def yolo_master_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model of scale m."""
    return _create("yolo_master_m", pretrained, **kwargs)


@register_model
def yolo_master_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model of scale l."""
    return _create("yolo_master_l", pretrained, **kwargs)


@register_model
def yolo_master_x(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the model of scale x."""
    return _create("yolo_master_x", pretrained, **kwargs)
