# SPDX-License-Identifier: Apache-2.0
"""The router: pooled features to logits, in fp32 whatever surrounds it."""

from typing import ClassVar

import pytest
import torch

from moe_vision import DynamicRouter
from tests.contracts.layer import LayerContract


def test_logits_literally() -> None:
    router = DynamicRouter(2, 2)
    with torch.no_grad():
        router.fc1.weight.zero_()
        router.fc1.bias.zero_()
        router.fc1.weight[0] = torch.tensor([1.0, -1.0])
        router.fc2.weight.zero_()
        router.fc2.weight[:, 0] = torch.tensor([2.0, -4.0])
        router.fc2.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.stack([torch.tensor([[0.0, 2.0], [4.0, 6.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])])[None]
    # Means 3 and 1; hidden SiLU(3 - 1) = 2 / (1 + e^-2) = 1.761594; logits 2 * 1.761594 + 0.5 and -4 * 1.761594.
    torch.testing.assert_close(router(x), torch.tensor([[4.023188, -7.046377]]))


@pytest.mark.parametrize(("in_channels", "reduction", "hidden"), [(16, 8, 8), (128, 8, 16), (128, 4, 32), (3, 8, 8)])
def test_hidden_width(in_channels: int, reduction: int, hidden: int) -> None:
    assert DynamicRouter(in_channels, 4, reduction=reduction).fc1.out_features == hidden


def test_untrained_router_has_no_bias_for_an_expert() -> None:
    assert torch.equal(DynamicRouter(16, 4).fc2.bias, torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_i36_logits_are_fp32_for_half_precision(dtype: torch.dtype) -> None:
    router, x = DynamicRouter(16, 4).to(dtype), torch.randn(2, 16, 5, 5, dtype=dtype)
    logits = router(x)
    assert logits.dtype == torch.float32
    # Only the stored numbers are rounded: nothing is computed in half precision.
    torch.testing.assert_close(logits, router.float()(x.float()), rtol=0, atol=1e-6)


def test_i36_logits_are_fp32_under_autocast() -> None:
    router, x = DynamicRouter(16, 4), torch.randn(2, 16, 5, 5)
    expected = router(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = router(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


def test_pooling_of_half_precision_does_not_overflow() -> None:
    # The sum over 64 x 64 pixels, 4096 * 100, is beyond the largest fp16 number 65504.
    router = DynamicRouter(4, 2).half()
    assert router(torch.full((1, 4, 64, 64), 100.0, dtype=torch.float16)).isfinite().all()


class TestDynamicRouter(LayerContract):
    factory = DynamicRouter
    arguments: ClassVar = {"in_channels": 4, "num_experts": 3}
    example_shape = (2, 4, 3, 2)
    bad_arguments = (
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"reduction": -1}, "reduction must be at least 1, got -1"),
    )
    bad_inputs = (
        ((4, 3, 2), r"input must have shape \(B, C, H, W\), got 3 dimensions: \(4, 3, 2\)"),
        ((2, 5, 3, 2), r"input must have in_channels=4 channels, got 5: \(2, 5, 3, 2\)"),
    )
    cardinality = (
        ({}, (2, 4, 3, 2), (2, 3)),
        ({}, (0, 4, 3, 2), (0, 3)),
        ({"num_experts": 1}, (1, 4, 1, 1), (1, 1)),
        ({"num_experts": 16}, (9, 4, 5, 7), (9, 16)),
    )

    def test_feature(self) -> None:
        # One decision an image: where the pixels stand does not matter.
        router, x = self.make(), self.example()
        torch.testing.assert_close(router(x), router(x.flip(2, 3)))
        assert not torch.allclose(router(x)[0], router(x)[1])
