# SPDX-License-Identifier: Apache-2.0
"""What a swap did, as a table."""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

from torch import nn

from moe_vision.layers import DepthwiseExperts, ESMoE
from moe_vision.surgery.recipe import SwapRecipe
from moe_vision.surgery.shared_zero import SharedZero
from moe_vision.surgery.sites import Site


class Replacement(NamedTuple):
    """One site, before and after.

    Attributes:
        site: The site.
        old: What was there.
        new: What is there.
        old_parameters: Parameters of the former.
        new_parameters: Parameters of the latter, with all experts.

    Examples:
        >>> import timm
        >>> from moe_vision import swap
        >>> swap(timm.create_model("test_convnext")).replacements[0].old
        'Conv2d 7x7'
    """

    site: Site
    old: str
    new: str
    old_parameters: int
    new_parameters: int


class Size(NamedTuple):
    """What a model is and costs.

    Attributes:
        parameters: All its parameters.
        flops: Floating-point operations that ran for one image in eval, the mean over the images; None on the meta
            device, where nothing runs.

    Examples:
        >>> from moe_vision.surgery import Size
        >>> Size(parameters=100, flops=None).parameters
        100
    """

    parameters: int
    flops: float | None


@dataclass(frozen=True)
class SwapReport:
    """What `moe_vision.swap` did; it prints as a table.

    Attributes:
        recipe: What was put where, for saving and loading.
        replacements: One for each site.
        before: Size of the model before.
        after: Size of the model after.
        change: Largest difference of the model's output in eval, before and after, relative to the largest output;
            None on the meta device.
        originals: What was there, by the name of the site, for `unswap`.

    Examples:
        >>> import timm
        >>> from moe_vision import swap
        >>> print(swap(timm.create_model("test_convnext"), stages=[3], every=2))  # doctest: +ELLIPSIS
        site                       old         new                            parameters
        stages.3.blocks.1.conv_dw  Conv2d 7x7  DepthwiseESMoE 7 7 7 7, top 2  3,200 -> 13,356
        parameters: 272,128 -> 282,284
        operations an image: 62,457,600 -> 62,484,288
        relative change of the output: ...
    """

    recipe: SwapRecipe
    replacements: tuple[Replacement, ...]
    before: Size
    after: Size
    change: float | None
    originals: dict[str, nn.Module] = field(repr=False)

    def __str__(self) -> str:
        rows = [("site", "old", "new", "parameters")]
        rows += [
            (row.site.name, row.old, row.new, f"{row.old_parameters:,} -> {row.new_parameters:,}")
            for row in self.replacements
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.append(f"parameters: {self.before.parameters:,} -> {self.after.parameters:,}")
        if self.before.flops is not None and self.after.flops is not None:
            lines.append(f"operations an image: {self.before.flops:,.0f} -> {self.after.flops:,.0f}")
        if self.change is not None:
            lines.append(f"relative change of the output: {self.change:.1e}")
        return "\n".join(lines)


def describe(module: nn.Module) -> str:
    """Name a module in a few words: its class, and kernel or experts.

    Args:
        module: Any module.

    Examples:
        >>> from torch import nn
        >>> from moe_vision import ESMoE
        >>> from moe_vision.surgery.report import describe
        >>> describe(nn.Conv2d(8, 8, 3)), describe(ESMoE(8))
        ('Conv2d 3x3', 'ESMoE 3 5 7 9, top 2')
    """
    name = type(module).__name__
    if isinstance(module, nn.Conv2d):
        return f"{name} {'x'.join(map(str, module.kernel_size))}"
    if isinstance(module, SharedZero):
        return f"{describe(module.dense)} + {describe(module.moe)}"
    if isinstance(module, nn.Sequential) and isinstance(module[0], ESMoE):
        return ", ".join(map(describe, module))
    if isinstance(module, ESMoE):
        sizes = cast(DepthwiseExperts, module.experts).kernel_sizes
        return f"{name} {' '.join(map(str, sizes))}, top {module.gate.top_k}"
    return name
