# SPDX-License-Identifier: Apache-2.0
"""Sites: the places of a model where an ES-MoE can go.

A site is found by what its module is and by how its name ends, never by a whole path: the same blocks have other paths
in a ``features_only`` model, and in a model that is part of a larger one.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_vision.layers import ESMoE
from moe_vision.surgery.convolution import as_depthwise
from moe_vision.surgery.grid import Grid
from moe_vision.surgery.shared_zero import SharedZero

SiteKind = Literal["depthwise", "block", "after"]
Predicate = Callable[[str, nn.Module], bool]

# How the names of depthwise convolutions end in the families of timm that have a place for experts.
DEPTHWISE_SUFFIXES = (
    r"conv_dw",  # ConvNeXt v1 and v2, EdgeNeXt, EfficientNet, MobileNet v2 and v3
    r"dw_(start|mid)\.conv",  # MobileNetV4
    r"token_mixer",  # RepViT, fused or not
    r"token_mixer\.dwconv",  # MetaFormer: ConvFormer, CAFormer
    r"token_mixer\.dwconv_hw",  # InceptionNeXt: its square branch
    r"dwconv2?\.conv",  # StarNet
    r"blocks\.\d+\.conv",  # MambaOut
    r"layers\.\d+\.conv2\.conv",  # HGNetV2
)
DEPTHWISE = re.compile(rf"(^|.*\.)({'|'.join(DEPTHWISE_SUFFIXES)})")
RESIDUAL_BLOCK = re.compile(r"(^|.*\.)layer\d\.\d+")  # ResNet, which has no depthwise convolutions
STAGE = re.compile(r"(?:^|\.)(?:stages|blocks|layer|features)[._]?(\d+)")


@dataclass(frozen=True)
class Site:
    """A module that can be swapped.

    Attributes:
        name: Where it is: ``model.get_submodule(name)``.
        kind: ``depthwise``: a depthwise convolution; ``block``: any module from feature map to feature map;
            ``after``: the same, with experts behind it.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: How many times smaller the output is, in height and in width.
        kernel_size: Side of the kernel, None for a block.
        dilation: Dilation of the kernel.
        bias: Whether the convolution has a bias.
        padding: ``centred``: as many zeros on each side as the kernel reaches over; ``same``: TensorFlow's, which
            depends on the size of the map; ``other``.
        followed_by: Class of the module that its parent lists next, None for the last.
        stage: Number of the stage by the name, None if the name has none.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.surgery import find_sites, is_depthwise
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.ReLU())
        >>> site = find_sites(model, is_depthwise)[0]
        >>> site.name, site.kernel_size, site.followed_by
        ('1', 5, 'ReLU')
    """

    name: str
    kind: SiteKind
    in_channels: int
    out_channels: int
    stride: int = 1
    kernel_size: int | None = None
    dilation: int = 1
    bias: bool = False
    padding: Literal["centred", "same", "other"] | None = None
    followed_by: str | None = None
    stage: int | None = None


def is_depthwise(name: str, module: nn.Module) -> bool:
    """Tell whether a module is a depthwise convolution that experts can start from, to be given to `swap` as ``sites``.

    Its kernel is square, odd and at least 3; it keeps the number of channels and pads with zeros.

    Args:
        name: The name of the module, which does not matter.
        module: Any module.

    Examples:
        >>> from torch import nn
        >>> from moe_vision.surgery import is_depthwise
        >>> is_depthwise("", nn.Conv2d(8, 8, 3, groups=8)), is_depthwise("", nn.Conv2d(8, 8, 3))
        (True, False)
    """
    return as_depthwise(module) is not None


def find_sites(
    model: nn.Module,
    where: Predicate | None = None,
    *,
    after_stages: bool = False,
    example: Tensor | None = None,
) -> list[Site]:
    """Find the places of a model where an ES-MoE can go.

    Without ``where``: the depthwise convolutions of ConvNeXt, EfficientNet, MobileNet v2 to v4, RepViT, MetaFormer,
    InceptionNeXt, EdgeNeXt, StarNet, MambaOut and HGNetV2; in a model without those, the residual blocks of a ResNet.

    Args:
        model: Any module, be it timm's, ``features_only``, or part of a larger one.
        where: Which modules to take, by name and module, in a model of any kind; `is_depthwise` is one.
        after_stages: Take the places behind the last block of each stage of a ResNet instead.
        example: Images to learn the shapes of blocks from; those that timm has in mind for the model if
            None.

    Shape:
        - example: (B, C, H, W)

    Raises:
        ValueError: If both ``where`` and ``after_stages`` are given, or a module maps no feature map to a feature map
            of a whole stride.

    Examples:
        >>> import timm
        >>> from moe_vision.surgery import find_sites
        >>> sites = find_sites(timm.create_model("convnext_atto"))
        >>> len(sites), sites[0].name, sites[0].kernel_size
        (12, 'stages.0.blocks.0.conv_dw', 7)
    """
    if where is not None and after_stages:
        raise ValueError("after_stages must be False where modules are chosen by a predicate, got True")
    modules = _free_modules(model)
    if after_stages:
        last = {name.rpartition(".")[0]: name for name in modules if RESIDUAL_BLOCK.fullmatch(name)}
        return _blocks(model, list(last.values()), "after", example)
    if where is not None:
        chosen = [name for name, module in modules.items() if where(name, module)]
    else:
        chosen = [name for name in modules if DEPTHWISE.fullmatch(name) and is_depthwise(name, modules[name])]
        chosen = chosen or [name for name in modules if RESIDUAL_BLOCK.fullmatch(name)]
    chosen = _outermost(chosen)
    convolutions = {name: as_depthwise(modules[name]) for name in chosen}
    found = {name: _depthwise_site(model, name, conv) for name, conv in convolutions.items() if conv is not None}
    blocks = _blocks(model, [name for name in chosen if name not in found], "block", example)
    found |= {site.name: site for site in blocks}
    return [found[name] for name in chosen]


def example_images(model: nn.Module, batch: int = 2) -> Tensor:
    """Return random images (B, C, H, W) of the size that timm has in mind for a model, 224 x 224 for others.

    Args:
        model: Any module; the images are of the type of its parameters, and where those are.
        batch: Number of images.

    Examples:
        >>> import timm
        >>> from moe_vision.surgery.sites import example_images
        >>> example_images(timm.create_model("test_convnext")).shape
        torch.Size([2, 3, 160, 160])
    """
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), size[0])
    parameter = next(model.parameters())
    return torch.randn(batch, channels, *size[1:], device=parameter.device, dtype=parameter.dtype)


def _free_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name, without the model itself, and without what experts consist of or go beside."""
    modules = {name: module for name, module in model.named_modules() if name}
    taken = tuple(f"{name}." for name, module in modules.items() if isinstance(module, (ESMoE, SharedZero)))
    return {name: module for name, module in modules.items() if not name.startswith(taken)}


def _outermost(names: list[str]) -> list[str]:
    """Leave out the names of what is inside another."""
    inside = tuple(f"{name}." for name in names)
    return [name for name in names if not name.startswith(inside)]


def _depthwise_site(model: nn.Module, name: str, conv: nn.Conv2d) -> Site:
    grid = Grid.of(conv)
    return Site(
        name,
        "depthwise",
        conv.in_channels,
        conv.out_channels,
        stride=grid.stride,
        kernel_size=grid.kernel_size,
        dilation=grid.dilation,
        bias=conv.bias is not None,
        padding=grid.padding_kind,
        followed_by=_next_sibling(model, name),
        stage=_stage(name),
    )


def _blocks(model: nn.Module, names: list[str], kind: SiteKind, example: Tensor | None) -> list[Site]:
    """Describe modules by the shapes that they take and give, in a run without memory."""
    if not names:
        return []
    twin = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def record(name: str, inputs: Any, output: Any) -> None:
        if not (len(inputs) == 1 and isinstance(output, Tensor) and inputs[0].ndim == output.ndim == 4):
            raise ValueError(f"sites must map one feature map (B, C, H, W) to another, but {name!r} does not")
        shapes[name] = inputs[0].shape, output.shape

    for name in names:
        twin.get_submodule(name).register_forward_hook(lambda _m, i, o, name=name: record(name, i, o))
    with torch.no_grad():
        twin((example_images(model, batch=1) if example is None else example).to("meta"))
    if unused := [name for name in names if name not in shapes]:
        raise ValueError(f"sites must take part in the forward of the model, but {unused[0]!r} does not")
    return [_block_site(model, name, kind, *shapes[name]) for name in names]


def _block_site(model: nn.Module, name: str, kind: SiteKind, before: torch.Size, after: torch.Size) -> Site:
    stride = round(before[2] / after[2])
    if [-(-side // stride) for side in before[2:]] != list(after[2:]):
        raise ValueError(
            f"sites must divide the sides of a feature map by a whole number, but {name!r} makes "
            f"{tuple(after[2:])} of {tuple(before[2:])}"
        )
    following = _next_sibling(model, name)
    if kind == "after":
        return Site(name, kind, after[1], after[1], followed_by=following, stage=_stage(name))
    return Site(name, kind, before[1], after[1], stride, followed_by=following, stage=_stage(name))


def _next_sibling(model: nn.Module, name: str) -> str | None:
    parent, _, own = name.rpartition(".")
    siblings = list(model.get_submodule(parent)._modules)
    following = siblings[siblings.index(own) + 1 :]
    return type(model.get_submodule(parent)._modules[following[0]]).__name__ if following else None


def _stage(name: str) -> int | None:
    found = STAGE.search(name)
    return int(found[1]) if found else None
