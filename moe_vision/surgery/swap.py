# SPDX-License-Identifier: Apache-2.0
"""Swapping ES-MoE into a model, and back."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from moe_vision.diagnostics import measure_flops
from moe_vision.layers.checks import check_positive
from moe_vision.surgery.recipe import SwapInit, SwapRecipe
from moe_vision.surgery.report import Replacement, Size, SwapReport, describe
from moe_vision.surgery.shared_zero import SharedZero
from moe_vision.surgery.sites import Predicate, Site, example_images, find_sites


def swap(
    model: nn.Module,
    sites: Sequence[Site] | Predicate | None = None,
    *,
    num_experts: int = 4,
    top_k: int = 2,
    kernel_sizes: Sequence[int] | None = None,
    init: SwapInit = "upcycle",
    perturb: float = 0.0,
    every: int = 1,
    stages: Collection[int] | None = None,
    reduction: int = 8,
    example: Tensor | None = None,
) -> SwapReport:
    """Put an ES-MoE at sites of a model, in place, without losing what the model knows.

    - ``upcycle``: each depthwise convolution becomes E linear experts that start as its copies. In eval their kernels
      merge, so that an image costs what it did, but for the router.
    - ``shared_zero``: any module goes on as it is, and a full ES-MoE is added to it with a scale that starts at 0.
    - ``random``: what was there is gone; experts start at random, linear ones for a depthwise convolution.

    The first two leave the output of the model as it was. Load weights before you swap: afterwards names differ.
    Where a module is frozen, so are the copies of it, with their router; what ``shared_zero`` adds can always learn.

    Args:
        model: Any module; those of timm need nothing else.
        sites: What `find_sites` returned, or some of it; or a predicate for it; its default if None.
        num_experts: Number of experts E.
        top_k: Number of experts K that an image selects; at least 2 (or E) for ``upcycle``, whose weights
            must sum to 1.
        kernel_sizes: Odd kernel sizes, one an expert; a copy is at least as large as its convolution. If None, copies
            are as large as that (no merged kernel costs more than it did), other experts have 3, 5, 7, ...
        init: How the experts start.
        perturb: For ``upcycle``: standard deviation of the noise that tells the copies apart, relative to the kernel's.
        every: Swap every n-th of the sites, the last of each n.
        stages: Swap the sites of these stages alone, see `Site.stage`.
        reduction: Divisor of the routers' hidden width.
        example: Images that the report's figures are measured on; two random ones of the size that timm
            has in mind if None.

    Shape:
        - example: (B, C, H, W)

    Raises:
        ValueError: If no site is left, or an argument is out of its range or does not go with the sites.

    Examples:
        >>> import timm
        >>> from moe_vision import auxiliary_loss, swap
        >>> model = timm.create_model("test_convnext")
        >>> report = swap(model, num_experts=4, top_k=2)
        >>> len(report.replacements), report.change < 1e-5
        (9, True)
        >>> loss = model(torch.rand(2, 3, 160, 160)).square().mean() + auxiliary_loss(model)
    """
    check_positive(every=every)
    if perturb and init != "upcycle":
        raise ValueError(f"perturb must be 0 unless init is 'upcycle', got {perturb} with {init!r}")
    found = sites if isinstance(sites, Sequence) else find_sites(model, sites, example=example)
    chosen = [site for site in found if stages is None or site.stage in stages][every - 1 :: every]
    if not chosen:
        raise ValueError(
            f"sites must name at least one place in the model, got {len(found)} in stages "
            f"{sorted({site.stage for site in found if site.stage is not None})}, of which none is left; "
            "give a predicate such as moe_vision.surgery.is_depthwise for models of other families"
        )
    sizes = None if kernel_sizes is None else tuple(kernel_sizes)
    recipe = SwapRecipe(tuple(chosen), init, num_experts, top_k, sizes, reduction)
    images = example_images(model) if example is None else example
    before, expected = _size(model, images), _outputs(model, images)
    originals = recipe.apply(model, perturb=perturb)
    replacements = tuple(_replacement(model, site, originals[site.name]) for site in chosen)
    change = _relative_change(_outputs(model, images), expected)
    return SwapReport(recipe, replacements, before, _size(model, images), change, originals)


def unswap(model: nn.Module, report: SwapReport) -> None:
    """Put back what was at the sites of a swap, in place.

    The modules are as they were before the swap, but those of ``shared_zero`` as training has made them: they took part
    in it. Mode, type and device are those that the model has by now.

    Args:
        model: The model that was swapped.
        report: What `swap` returned for it.

    Examples:
        >>> import timm
        >>> from moe_vision import swap, unswap
        >>> model = timm.create_model("test_convnext")
        >>> unswap(model, swap(model))
        >>> type(model.stages[0].blocks[0].conv_dw).__name__
        'Conv2d'
    """
    for name, module in report.originals.items():
        part = model.get_submodule(name)
        if not isinstance(part, SharedZero):  # it was no part of the model, and did not follow it
            module.train(part.training).to(next(part.parameters()))
        model.set_submodule(name, module)


def _replacement(model: nn.Module, site: Site, old: nn.Module) -> Replacement:
    new = model.get_submodule(site.name)
    return Replacement(site, describe(old), describe(new), _parameters(old), _parameters(new))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(model: nn.Module, images: Tensor) -> Size:
    flops = None if images.is_meta else sum(measure_flops(model, images)) / len(images)
    return Size(_parameters(model), flops)


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    if images.is_meta:
        return []
    with _eval(model), torch.no_grad():
        return [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]


def _relative_change(actual: list[Tensor], expected: list[Tensor]) -> float | None:
    if not expected:
        return None
    scale = max(tensor.abs().max().item() for tensor in expected)
    return max((a - b).abs().max().item() for a, b in zip(actual, expected, strict=True)) / max(scale, 1e-12)


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Have the model in eval, and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
