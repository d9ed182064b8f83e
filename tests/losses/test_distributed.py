# SPDX-License-Identifier: Apache-2.0
"""Real processes that talk over gloo: shards give the loss and the gradients of the whole batch (I43)."""

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from moe_vision import BiasedTopKGate, ESMoE, TopPGate, auxiliary_loss, update_selection_bias
from moe_vision.losses.balance import routing_records
from moe_vision.losses.ranks import rank_divisor
from tests.strategies import make_images, make_layer

LOSSES = {
    "switch": {"kind": "switch"},
    "mse": {"kind": "mse"},
    "cv2": {"kind": "cv2"},
    "information": {"kind": "information"},
    "z": {"balance": 0.0, "z": 1.0},
    "budget": {"balance": 0.0, "budget": 1.0, "budget_experts": 1.3},
}
SHARDS = {2: ((3, 5), (0, 4)), 4: ((3, 0, 1, 4), (0, 0, 0, 2))}  # of batches, by the number of ranks
AMOUNTS = (3.0, 0.0, 0.5, 6.5)  # what each rank divides by, were it alone
BATCHES = ((2, 1), (1, 4), (0, 2), (3, 1))  # of a step of two batches, for each rank
Result = tuple[Tensor, list[Tensor]]


def start(function: Callable[..., None], folder: Path, ranks: int) -> None:
    """Run a function in processes, forked from one that has imported what they need, which saves time."""
    set_forkserver_preload([__name__])
    start_processes(function, (folder, ranks), nprocs=ranks, start_method="forkserver")


def join(rank: int, folder: Path, ranks: int = 2) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)


def leave() -> None:
    """Go together: a process that ends while its partner is still at work aborts now and then."""
    dist.barrier()
    dist.destroy_process_group()


def images_of(sizes: tuple[int, ...]) -> Tensor:
    return make_images(sum(sizes), 4, 6, 5, dtype=torch.float64)


def layer_for(loss: str) -> ESMoE:
    layer = make_layer(expert="depthwise").double().train()
    if loss == "budget":
        layer.gate = TopPGate(0.9, max_k=4)
    return layer


def all_losses(x: Tensor) -> dict[str, Result]:
    """Each loss of these images, and its gradients with respect to the router."""
    results = {}
    for name, settings in LOSSES.items():
        layer = layer_for(name)
        layer(x)
        loss = auxiliary_loss(layer, **{"balance": 1.0, **settings})
        results[name] = (loss.detach(), list(torch.autograd.grad(loss, list(layer.router.parameters()))))
    return results


def accumulated_losses(batches: list[Tensor]) -> dict[str, Result]:
    """Each loss of the last of several batches, and the mean gradient of all of them."""
    results = {}
    for name, settings in LOSSES.items():
        layer = layer_for(name)
        records = []
        with torch.no_grad():
            for x in batches:
                layer(x)
                records.append(routing_records(layer))
        for place, x in enumerate(batches):
            layer(x)
            others = records[:place] + records[place + 1 :]
            loss = auxiliary_loss(layer, **{"balance": 1.0, **settings}, others=others)
            (loss / len(batches)).backward()
        results[name] = (loss.detach(), [parameter.grad for parameter in layer.router.parameters()])
    return results


def assert_same_losses(some: dict[str, Result], expected: dict[str, Result]) -> None:
    for name, (loss, gradients) in expected.items():
        torch.testing.assert_close(some[name][0], loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(some[name][1], gradients, rtol=1e-10, atol=1e-12)
        assert all(gradient.any() for gradient in gradients)


def test_batches_of_a_step_give_the_loss_and_gradients_of_all_its_images() -> None:
    for sizes in ((4, 4), (3, 5), (1, 5, 2)):
        x = images_of(sizes)
        assert_same_losses(accumulated_losses(list(x.split(sizes))), all_losses(x))


def moved_bias(x: Tensor) -> Tensor:
    layer = layer_for("bias")
    layer.gate = BiasedTopKGate(1, 4)
    layer(x)
    update_selection_bias(layer)
    return layer.gate.bias


def balance_rank(rank: int, folder: Path, ranks: int) -> None:
    join(rank, folder, ranks)
    results = {sizes: all_losses(images_of(sizes).split(sizes)[rank]) for sizes in SHARDS[ranks]}
    first, second = (images_of(BATCHES[rank]) + rank).split(BATCHES[rank])
    results["batches"] = accumulated_losses([first, second])
    results["bias"] = moved_bias(images_of(SHARDS[ranks][0]).split(SHARDS[ranks][0])[rank])
    results["divisor"] = rank_divisor(torch.tensor(AMOUNTS[rank]), torch.ones(1, requires_grad=True))
    torch.save(results, folder / f"rank{rank}")
    leave()


def means_of(ranks: list[dict[str, Result]]) -> dict[str, Result]:
    """Return each loss, which must be that of every rank, and the mean of the gradients, as DDP takes it."""
    means = {}
    for name, (loss, _) in ranks[0].items():
        assert all(torch.equal(rank[name][0], loss) for rank in ranks)
        gradients = zip(*(rank[name][1] for rank in ranks), strict=True)
        means[name] = (loss, [torch.stack(of_ranks).mean(dim=0) for of_ranks in gradients])
    return means


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_i43_shards_give_the_loss_and_gradients_of_the_whole_batch(ranks: int, tmp_path: Path) -> None:
    start(balance_rank, tmp_path, ranks)
    results = [torch.load(tmp_path / f"rank{rank}") for rank in range(ranks)]
    for sizes in SHARDS[ranks]:
        assert_same_losses(means_of([result[sizes] for result in results]), all_losses(images_of(sizes)))
    whole = all_losses(torch.cat([images_of(BATCHES[rank]) + rank for rank in range(ranks)]))
    assert_same_losses(means_of([result["batches"] for result in results]), whole)
    bias = moved_bias(images_of(SHARDS[ranks][0]))
    assert bias.any()
    assert all(torch.equal(result["bias"], bias) for result in results)
    # 3 of two ranks, 10 of four; a mean over the ranks follows.
    assert [result["divisor"].item() for result in results] == {2: [1.5] * 2, 4: [2.5] * 4}[ranks]


def train_rank(rank: int, folder: Path, ranks: int) -> None:
    join(rank, folder, ranks)
    layer = ddp_layer()
    model = DistributedDataParallel(layer, find_unused_parameters=False)
    for _ in range(2):  # a second step waits for the first one's gradients
        layer.zero_grad()
        (model(ddp_images(rank)).square().mean() + auxiliary_loss(model)).backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    torch.save((layer.routing.indices, gradients), folder / f"rank{rank}")
    leave()


def ddp_layer() -> ESMoE:
    """A layer whose router reads the sign of the images: negative ones choose experts 0 and 1, the others 2 and 3."""
    layer = make_layer(dispatch="grouped").train()
    with torch.no_grad():
        layer.router.fc1.weight.fill_(1.0)
        layer.router.fc1.bias.zero_()
        layer.router.fc2.weight.copy_(torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None].expand(4, 8))
        layer.router.fc2.bias.copy_(torch.tensor([0.3, 0.2, 0.1, 0.0]))
    return layer


def ddp_images(rank: int) -> Tensor:
    x = make_images(3, 4, 6, 5, seed=rank).abs()
    return -x / 10 if rank else x


def test_i44_ddp_needs_no_search_for_unused_parameters(tmp_path: Path) -> None:
    start(train_rank, tmp_path, 2)
    (indices, gradients), (other_indices, other_gradients) = (torch.load(tmp_path / f"rank{r}") for r in range(2))
    assert set(indices.flatten().tolist()) == {2, 3}
    assert set(other_indices.flatten().tolist()) == {0, 1}
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.any()
        assert torch.equal(gradient, other_gradients[name])
