# SPDX-License-Identifier: Apache-2.0
"""Real processes that talk over gloo: shards give the loss and the gradients of the whole batch (I43)."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from moe_vision import BiasedTopKGate, ESMoE, TopPGate, auxiliary_loss, update_selection_bias
from moe_vision.losses.balance import routing_records
from tests.strategies import make_images, make_layer

LOSSES = {
    "switch": {"kind": "switch"},
    "mse": {"kind": "mse"},
    "cv2": {"kind": "cv2"},
    "information": {"kind": "information"},
    "z": {"balance": 0.0, "z": 1.0},
    "budget": {"balance": 0.0, "budget": 1.0, "budget_experts": 1.3},
}
SHARDS = ((3, 5), (0, 4))
BATCHES = ((2, 1), (1, 4))  # of a step of two batches, for each rank
Result = tuple[Tensor, list[Tensor]]


def join(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)


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


def balance_rank(rank: int, folder: Path) -> None:
    join(rank, folder)
    results = {sizes: all_losses(images_of(sizes).split(sizes)[rank]) for sizes in SHARDS}
    first, second = (images_of(BATCHES[rank]) + rank).split(BATCHES[rank])
    results["batches"] = accumulated_losses([first, second])
    results["bias"] = moved_bias(images_of(SHARDS[0]).split(SHARDS[0])[rank])
    torch.save(results, folder / f"rank{rank}")
    leave()


def test_i43_shards_give_the_loss_and_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    spawn(balance_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]
    for sizes in SHARDS:
        for name, (whole, gradients) in all_losses(images_of(sizes)).items():
            (first, first_gradients), (second, second_gradients) = (rank[sizes][name] for rank in ranks)
            tolerance = {"rtol": 1e-10, "atol": 1e-12}
            torch.testing.assert_close(first, whole, **tolerance)
            torch.testing.assert_close(second, whole, **tolerance)
            for one, other, expected in zip(first_gradients, second_gradients, gradients, strict=True):
                assert expected.any()
                torch.testing.assert_close((one + other) / 2, expected, **tolerance)
    whole = all_losses(torch.cat([images_of(BATCHES[rank]) + rank for rank in range(2)]))
    means = {
        name: (loss, [(a + b) / 2 for a, b in zip(gradients, ranks[1]["batches"][name][1], strict=True)])
        for name, (loss, gradients) in ranks[0]["batches"].items()
    }
    assert_same_losses(means, whole)
    bias = moved_bias(images_of(SHARDS[0]))
    assert bias.any()
    assert all(torch.equal(rank["bias"], bias) for rank in ranks)


def train_rank(rank: int, folder: Path) -> None:
    join(rank, folder)
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
    spawn(train_rank, (tmp_path,), nprocs=2)
    (indices, gradients), (other_indices, other_gradients) = (torch.load(tmp_path / f"rank{r}") for r in range(2))
    assert set(indices.flatten().tolist()) == {2, 3}
    assert set(other_indices.flatten().tolist()) == {0, 1}
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.any()
        assert torch.equal(gradient, other_gradients[name])
