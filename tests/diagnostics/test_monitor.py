# SPDX-License-Identifier: Apache-2.0
"""Watching which images go to which experts."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn
from torch.utils.checkpoint import checkpoint

from moe_vision import ESMoE, auxiliary_loss
from moe_vision.diagnostics import RoutingMonitor, RoutingSummary
from tests.losses.test_distributed import join, leave
from tests.strategies import make_images, make_layer


def watch(layer: ESMoE, rows: list[list[float]], monitor: RoutingMonitor) -> None:
    """Let the layer route one image for each row of probabilities."""
    layer.gate(torch.tensor(rows).log())


def test_sums_over_forwards() -> None:
    layer = ESMoE(4, num_experts=3, top_k=1).eval()
    with RoutingMonitor(layer) as monitor:
        layer.gate(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log())
        layer.gate(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log())
    summary = monitor.summary()[""]
    assert (summary.images, summary.experts_per_image) == (4, 1)
    assert summary.shares == [0.75, 0.25, 0]
    assert summary.dead == [2]
    assert summary.weights == [0.75, 0.25, 0]  # of the mixture: scaled to 1, although K = 1 keeps the probability
    assert summary.probabilities == pytest.approx([7 / 16, 5 / 16, 4 / 16])
    assert summary.entropy == pytest.approx(1.5 * math.log(2))  # 0.5 log 2 + 2 * 0.25 log 4
    # An image decides for one expert: I = H(shares) - 0, and could be log 3.
    assert summary.information == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert summary.information_limit == pytest.approx(math.log(3))
    mixed = -sum(p * math.log(p) for p in (7 / 16, 5 / 16, 4 / 16))
    assert summary.soft_information == pytest.approx(mixed - 1.5 * math.log(2))
    assert (summary.hard_gap, summary.agreement, summary.balance_gradient) == (0, None, None)


def test_tables_by_class_and_by_number_of_objects() -> None:
    layer = ESMoE(4, num_experts=2, top_k=1).eval()
    labels = [torch.tensor(values) for values in ([], [1], [1, 0, 1])]
    with RoutingMonitor(layer, classes=["cat", "dog"]) as monitor:
        monitor.announce([{"labels": values} for values in labels])
        layer.gate(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        layer.gate(torch.tensor([[1.0, 0.0]]))  # nothing is known of this one
    summary = monitor.summary()[""]
    assert summary.images == 4
    assert {name: (group.images, group.shares) for name, group in summary.by_class.items()} == {
        "cat": (1, [1, 0]),
        "dog": (2, [0.5, 0.5]),
    }
    assert {name: (group.images, group.shares) for name, group in summary.by_objects.items()} == {
        "0": (1, [1, 0]),
        "1": (1, [0, 1]),
        "2-3": (1, [1, 0]),
    }


def test_hard_gap_is_the_distance_from_hard_weights() -> None:
    layer = ESMoE(8, num_experts=2, top_k=1, soft="relaxed").train()
    with RoutingMonitor(layer) as monitor:
        layer.gate(torch.log(torch.tensor([[3.0, 1.0]])))
    # p = (0.75, 0.25), threshold half-way: sigmoid(+-log(3) / 2 / 0.5) = 0.75 and 0.25, so w = (0.5625, 0.0625);
    # hard: (0.75, 0). |0.5625 - 0.75| + 0.0625 = 0.25
    assert monitor.summary()[""].hard_gap == pytest.approx(0.25)


def test_agreement_with_the_previous_epoch() -> None:
    layer = ESMoE(4, num_experts=2, top_k=1).eval()
    with RoutingMonitor(layer) as monitor:
        layer.gate(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        monitor.start_epoch()
        layer.gate(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    summary = monitor.summary()[""]
    assert summary.images == 2
    assert summary.agreement == pytest.approx(0.75)  # min(3/4, 1/2) + min(1/4, 1/2)


def test_an_image_without_valid_numbers_does_not_count() -> None:
    layer = ESMoE(4, num_experts=2, top_k=1).eval()
    with RoutingMonitor(layer) as monitor:
        layer.gate(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]))
    summary = monitor.summary()[""]
    assert (summary.images, summary.shares) == (1, [1, 0])
    assert math.isfinite(summary.entropy)


def test_what_was_counted_takes_no_part_in_the_model() -> None:
    layer = ESMoE(4).train()
    keys = list(layer.state_dict())
    monitor = RoutingMonitor(layer)
    with monitor:
        layer(torch.rand(2, 4, 6, 6))
    layer(torch.rand(5, 4, 6, 6))  # closed
    assert monitor.summary()[""].images == 2
    assert list(layer.state_dict()) == keys
    assert not layer.gate._forward_hooks
    idle = nn.ModuleDict({"idle": ESMoE(4)})
    assert RoutingMonitor(idle).summary() == {}


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_previews_and_repeated_forwards_do_not_count(balance: float) -> None:
    layer = make_layer().train()
    x = make_images(3, 4, 6, 5)
    with RoutingMonitor(layer) as monitor:
        with torch.no_grad():
            layer(x)
        y = checkpoint(layer, x, use_reentrant=False)
        (y.sum() + auxiliary_loss(layer, balance=balance)).backward()
    summary = monitor.summary()[""]
    assert summary.images == 3
    assert summary.balance_gradient == (balance > 0)


def observe(x: Tensor) -> RoutingSummary:
    layer = make_layer().train()
    with RoutingMonitor(layer, classes=["small", "large"]) as monitor:
        for images in x.chunk(2):
            monitor.announce([{"labels": (image.sum() > 0).long().view(1)} for image in images])
            (layer(images).sum() + auxiliary_loss(layer)).backward()
        monitor.start_epoch()
        layer(x.flip(2)).sum().backward()
    return monitor.summary()[""]


def check_rank(rank: int, folder: str) -> None:
    join(rank, Path(folder))
    x = make_images(7, 4, 6, 5)
    summary = observe(x[:5] if rank == 0 else x[5:])
    torch.save(summary.as_dict(), Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    spawn(check_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert not dist.is_initialized()
    expected = observe(make_images(7, 4, 6, 5)).as_dict()
    assert first["images"] == expected["images"] == 7
    for name in ("shares", "probabilities", "weights", "entropy", "information", "agreement", "soft_information"):
        assert first[name] == pytest.approx(expected[name], abs=1e-5), name
    assert first["by_objects"] == expected["by_objects"]
