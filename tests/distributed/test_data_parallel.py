"""DistributedDataParallel and fully_shard, in two processes: gradients are those of one."""

from __future__ import annotations

import pytest
import torch
from network import assert_gradients, batch, gradients, half, loss, mean, network
from processes import run_two
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

pytestmark = pytest.mark.cpu_only


def grads(model: nn.Module) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def backward(model: nn.Module, size: int = 8, seed: int = 4, leave_out: bool = False) -> None:
    """Adds the gradients of this process's half of a batch."""
    x, target = (half(t, distributed.get_rank()) for t in batch(size, seed))
    loss(model(x, leave_out), target).backward()


def data_parallel(**options: bool) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network(), **options)


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()


def test_ddp() -> None:
    run_two(check_ddp)


def check_ddp() -> None:
    check_join()
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        model = data_parallel(**options)
        for _ in range(2):  # of a static graph, buckets are made anew after the first step
            model.zero_grad()
            backward(model)
            assert_gradients(grads(model))

    model = data_parallel(find_unused_parameters=True)
    for leave_out in (True, False, True):
        model.zero_grad()
        backward(model, leave_out=leave_out)
        assert_gradients(grads(model), leave_out)

    # Three batches before gradients are shared: sums of each process, and then their mean.
    model = data_parallel()
    with model.no_sync():
        backward(model, seed=5)
        backward(model, seed=6)
    backward(model, seed=4)
    sums = []
    for rank in range(2):
        single = network()
        for seed in (5, 6, 4):
            loss(
                single(half(batch(seed=seed)[0], rank)), half(batch(seed=seed)[1], rank)
            ).backward()
        sums.append(grads(single))
    assert_equal(grads(model), mean(sums))


def check_join() -> None:
    """The first process has one batch more; its gradients then count half, as DDP's mean has it."""
    rank = distributed.get_rank()
    model = data_parallel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Join([model]):
        for seed in (5, 6, 7)[: 3 - rank]:
            optimizer.zero_grad()
            backward(model, seed=seed)
            optimizer.step()
    single = network()
    optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
    for seed in (5, 6, 7):
        x, target = batch(seed=seed)
        found = [
            gradients(single, half(x, k), half(target, k)) for k in range(2 if seed < 7 else 1)
        ]
        found = [[g.clone() for g in each] for each in found]
        for p, *parts in zip(single.parameters(), *found, strict=True):
            p.grad = sum(parts) / 2
        optimizer.step()
    if rank == 0:
        assert_equal(list(model.parameters()), list(single.parameters()))


@pytest.mark.slow
def test_ddp_compiled() -> None:
    run_two(check_compiled)


def check_compiled() -> None:
    # What Inductor makes of the layers between ours may round differently.
    for wrap in (
        lambda: torch.compile(data_parallel()),
        lambda: nn.parallel.DistributedDataParallel(torch.compile(network())),
    ):
        torch._dynamo.reset()
        model = wrap()
        backward(model)
        x, target = batch()
        halves = [gradients(network(), half(x, k), half(target, k)) for k in range(2)]
        for a, b in zip(grads(model), mean(halves), strict=True):
            torch.testing.assert_close(a, b)


def test_fully_shard() -> None:
    run_two(check_fully_shard)


def check_fully_shard() -> None:
    for reshard in (True, False):
        model = network()
        for layer in (model.conv, model.lstm, model.other, model.cell):
            fully_shard(layer, reshard_after_forward=reshard)
        fully_shard(model, reshard_after_forward=reshard)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model.zero_grad()
            backward(model)
            assert_gradients(grads(model))
        optimizer.step()
        single = network()
        x, target = batch()
        found = mean([gradients(network(), half(x, k), half(target, k)) for k in range(2)])
        for p, g in zip(single.parameters(), found, strict=True):
            p.data -= 0.1 * g
        for p, q in zip(model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(p.full_tensor(), q)

    # In bfloat16, with gradients that are added in float32.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = network()
    for layer in (model.lstm, model.other):
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    backward(model)
    x, target = batch()
    halves = [
        gradients(network(dtype=torch.bfloat16), half(x, k), half(target, k)) for k in range(2)
    ]
    assert_equal(grads(model), mean([[g.float() for g in each] for each in halves]))
