# SPDX-License-Identifier: Apache-2.0
"""Times of calls: medians of rounds in which all take their turn."""

import time

import pytest
import torch
from torch import nn

from moe_vision.diagnostics import compare_latency, measure_latency


def test_latency_is_the_median_of_the_rounds_after_the_first() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.naps = iter([0.2, 0.01, 0.01, 0.01, 0.2])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape == (1, 3, 8, 8)
            time.sleep(next(self.naps))
            return x

    assert 10 <= measure_latency(Slow(), (3, 8, 8), rounds=4) < 100


def test_calls_take_turns_after_one_each_that_is_not_counted() -> None:
    order: list[str] = []
    compare_latency({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    assert "".join(order) == "ababab"


def test_quartiles_enclose_the_median_of_each_call() -> None:
    naps = iter([0.0, 0.3, 0.02, 0.04, 0.06, 0.3])  # after the first: quartiles 40 and 300 ms, median 60 ms
    times = compare_latency({"naps": lambda: time.sleep(next(naps)), "nothing": lambda: None}, rounds=5)
    assert times["naps"] == pytest.approx((60, 40, 300), rel=0.3)
    assert times["nothing"].upper < 10


def test_no_rounds() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        compare_latency({"nothing": lambda: None}, rounds=0)


def test_time_of_other_processes_can_be_left_out() -> None:
    times = compare_latency({"idle": lambda: time.sleep(0.02)}, rounds=3, clock=time.process_time)
    assert times["idle"].median < 10
