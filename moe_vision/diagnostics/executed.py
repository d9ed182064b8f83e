# SPDX-License-Identifier: Apache-2.0
"""The operations that really ran: what images cost with the experts that they select."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# The counter knows no formula for the attention of CPUs, and would count nothing.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@torch.no_grad()
def measure_flops(model: nn.Module, images: Tensor) -> list[int]:
    """Run each image through the model in eval, and count the floating-point operations that were executed for it.

    It counts what `count_flops` does, by the same rules, but looks at nothing except the operations that PyTorch
    dispatched: where that assumes that K of E experts run, this shows it. The mean over images that select each expert
    equally often is ``count_flops(...).active``. A copy of the model runs.

    Args:
        model: Any module that takes a batch of images.
        images: The images, or the feature maps that a layer takes, on the device of the model.

    Shape:
        - images: (B, C, H, W)
        - Output: B counts

    Examples:
        >>> import torch
        >>> from moe_vision import ESMoE
        >>> from moe_vision.diagnostics import measure_flops
        >>> # One of two experts: 2 x 10 x 10 x (8 x 9 + 8 x 8); router: 2 x (8 x 8 + 8 x 2)
        >>> measure_flops(ESMoE(8, num_experts=2, top_k=1, kernel_sizes=(3, 3)), torch.rand(2, 8, 10, 10))
        [27360, 27360]
    """
    model = copy.deepcopy(model).eval()
    return [_executed(model, image[None]) for image in images]


def _executed(model: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: _attention_flops}) as counter:
        model(image)
    return int(counter.get_total_flops())


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *arguments: object, **options: object
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
