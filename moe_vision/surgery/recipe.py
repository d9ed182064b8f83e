# SPDX-License-Identifier: Apache-2.0
"""The recipe of a swap: what was put where, so that a fresh copy of the model can be given the same parts."""

import dataclasses
import json
from typing import Any, Literal, get_args

from torch import nn

from moe_vision.layers import ESMoE
from moe_vision.layers.checks import check_choice, check_top_k
from moe_vision.surgery.shared_zero import SharedZero
from moe_vision.surgery.sites import Site
from moe_vision.surgery.upcycle import upcycled

SwapInit = Literal["upcycle", "shared_zero", "random"]


@dataclasses.dataclass(frozen=True)
class SwapRecipe:
    """Sites and the settings of the experts there.

    Attributes:
        sites: The sites that are swapped.
        init: How the experts start, see `moe_vision.swap`.
        num_experts: Number of experts E.
        top_k: Number of experts K that an image selects.
        kernel_sizes: Kernel sizes of the experts, None for those that `moe_vision.swap` chooses.
        reduction: Divisor of the routers' hidden width.

    Examples:
        >>> import timm
        >>> from moe_vision import swap
        >>> from moe_vision.surgery import SwapRecipe
        >>> recipe = swap(timm.create_model("test_convnext")).recipe
        >>> SwapRecipe.from_json(recipe.to_json()) == recipe
        True
        >>> _ = recipe.apply(timm.create_model("test_convnext"))  # the same parts, with weights of their own
    """

    sites: tuple[Site, ...]
    init: SwapInit = "upcycle"
    num_experts: int = 4
    top_k: int = 2
    kernel_sizes: tuple[int, ...] | None = None
    reduction: int = 8

    def __post_init__(self) -> None:
        check_choice("init", self.init, get_args(SwapInit))
        check_top_k(self.top_k, self.num_experts)
        if self.init == "upcycle" and self.top_k == 1 < self.num_experts:
            raise ValueError(
                "top_k must be at least 2 for init='upcycle', since the weight of a single expert is its probability "
                "and not 1, got 1; init='shared_zero' takes 1"
            )

    def to_json(self) -> str:
        """Return the recipe as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SwapRecipe":
        """Return the recipe that `to_json` wrote."""
        values = json.loads(text)
        sites = tuple(Site(**site) for site in values.pop("sites"))
        sizes = values.pop("kernel_sizes")
        return cls(sites, kernel_sizes=None if sizes is None else tuple(sizes), **values)

    def apply(self, model: nn.Module, *, perturb: float = 0.0) -> dict[str, nn.Module]:
        """Swap the sites of a model in place, all or none, and return what was there, by name."""
        originals = {site.name: model.get_submodule(site.name) for site in self.sites}
        parts = {site.name: self._part(site, originals[site.name], perturb) for site in self.sites}
        for name, part in parts.items():
            model.set_submodule(name, part)
        return originals

    def _part(self, site: Site, module: nn.Module, perturb: float) -> nn.Module:
        if self.init == "shared_zero":
            return SharedZero(module, self._separable(site, module), after=site.kind == "after")
        if site.kind == "depthwise":
            copies: dict[str, Any] = {"copy_kernel": self.init == "upcycle", "perturb": perturb}
            return upcycled(module, **self._experts(), **copies)
        if site.kind == "after":
            raise ValueError(f"init must be 'shared_zero' behind a stage, got {self.init!r} for {site.name!r}")
        if self.init == "random":
            return self._separable(site, module).train(module.training)
        raise ValueError(
            f"init must be 'shared_zero' or 'random' where the site is no depthwise convolution, got {self.init!r} for "
            f"{site.name!r}, a {type(module).__name__}"
        )

    def _separable(self, site: Site, module: nn.Module) -> ESMoE:
        weight = next(module.parameters())
        place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        return ESMoE(site.in_channels, site.out_channels, stride=site.stride, **self._experts(), **place)

    def _experts(self) -> dict[str, Any]:
        names = ("num_experts", "top_k", "kernel_sizes", "reduction")
        return {name: getattr(self, name) for name in names}
