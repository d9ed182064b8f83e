# SPDX-License-Identifier: Apache-2.0
"""What every layer is tested for, under names that are the same for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

Arguments = dict[str, Any]
Shape = tuple[int, ...]


class LayerContract(ABC):
    """Derive a ``Test...`` class, set the attributes and add ``test_feature``: the one thing the layer is for."""

    factory: ClassVar[Callable[..., nn.Module]]
    arguments: ClassVar[Arguments]  # of the layer that the tests use
    example_shape: ClassVar[Shape]  # of an input, small enough for gradcheck
    bad_arguments: ClassVar[tuple[tuple[Arguments, str], ...]]  # what differs from `arguments`, and the message
    bad_inputs: ClassVar[tuple[tuple[Shape, str], ...]]
    cardinality: ClassVar[tuple[tuple[Arguments, Shape, Shape], ...]]  # what differs, shape of the input, of the output

    @staticmethod
    def features(output: Any) -> Tensor:
        """Pick the tensor to be checked out of what the layer returns."""
        return output

    def make(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return type(self).factory(**{**self.arguments, **changes})

    def example(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.example_shape, generator=torch.Generator().manual_seed(1), dtype=dtype)

    @pytest.mark.parametrize("training", [True, False])
    def test_smoke(self, training: bool) -> None:
        layer = self.make().train(training)
        assert self.features(layer(self.example())).isfinite().all()
        assert type(layer).__name__ in repr(layer)

    def test_exception(self) -> None:
        for changes, message in self.bad_arguments:
            with pytest.raises(ValueError, match=message):
                self.make(**changes)
        for shape, message in self.bad_inputs:
            with pytest.raises(ValueError, match=message):
                self.make()(torch.zeros(shape))

    def test_cardinality(self) -> None:
        for changes, given, expected in self.cardinality:
            assert self.features(self.make(**changes).eval()(torch.randn(given))).shape == expected

    @abstractmethod
    def test_feature(self) -> None:
        """Test what the layer is for; each has its own."""

    @pytest.mark.parametrize("training", [True, False])
    def test_gradcheck(self, training: bool) -> None:
        layer = self.make().double().train(training)
        x = self.example(torch.float64).requires_grad_()
        parameters = dict(layer.named_parameters())

        def run(x: Tensor, *values: Tensor) -> Tensor:
            overridden = dict(zip(parameters, values, strict=True))
            return self.features(torch.func.functional_call(layer, overridden, (x,)))

        assert torch.autograd.gradcheck(run, (x, *parameters.values()), atol=1e-6, fast_mode=True)

    @pytest.mark.compile
    @pytest.mark.parametrize("training", [True, False])
    def test_compile(self, training: bool) -> None:
        # A fresh layer each, since training changes the statistics of norms. Inductor has tests of its own.
        compiled = torch.compile(self.make().train(training), fullgraph=True, backend="aot_eager")
        actual = self.features(compiled(self.example()))
        expected = self.features(self.make().train(training)(self.example()))
        torch.testing.assert_close(actual, expected)
