"""A network of every kind of layer, with torch's layers or with ours, and gradients of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tolerance import assert_accurate
from torch import Tensor, nn

import adl_kernels as adl


class Network(nn.Module):
    """x [B, T, 6] to y [B, 3]; `other` is a layer that a call may leave out."""

    def __init__(self, ours: bool = True) -> None:
        super().__init__()
        kit = adl if ours else nn
        conv = adl.DepthwiseConv1d if ours else nn.Conv1d
        self.conv = conv(6, 6, 3, padding=1, groups=6)
        self.lstm = kit.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.other = kit.GRU(16, 16, batch_first=True)
        self.cell = kit.GRUCell(16, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor, leave_out: bool = False) -> Tensor:
        y = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        y = self.lstm(y)[0]
        y = y if leave_out else self.other(y)[0]
        return self.last(self.cell(y[:, -1], self.cell(y[:, 0])))


def network(ours: bool = True, dtype: torch.dtype = torch.float32) -> Network:
    """Always with the same weights."""
    torch.manual_seed(3)
    return Network(ours).to(dtype)


def batch(size: int = 8, seed: int = 4) -> tuple[Tensor, Tensor]:
    """Input and target."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, *rest, generator=generator) for rest in ((9, 6), (3,)))


def loss(y: Tensor, target: Tensor) -> Tensor:
    return (y - target.to(y.dtype)).square().mean()


def gradients(model: nn.Module, x: Tensor, target: Tensor, leave_out: bool = False) -> list[Tensor]:
    """In one process; zeros where there is none."""
    model.zero_grad()
    loss(model(x.to(next(model.parameters()).dtype), leave_out), target).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def half(t: Tensor, rank: int) -> Tensor:
    return t.chunk(2)[rank]


def mean(many: Iterable[list[Tensor]]) -> list[Tensor]:
    return [sum(each) / len(each) for each in zip(*many, strict=True)]


def assert_gradients(found: list[Tensor], leave_out: bool = False) -> None:
    """Bit for bit those of the halves of batch(); by the contract those of the whole."""
    x, target = batch()
    halves = [gradients(network(), half(x, k), half(target, k), leave_out) for k in range(2)]
    one = gradients(network(ours=False), x, target, leave_out)
    exact = gradients(network(False, torch.float64), x, target, leave_out)
    names = [name for name, _ in network().named_parameters()]
    for name, ours, parts, single, right in zip(
        names, found, mean(halves), one, exact, strict=True
    ):
        assert torch.equal(ours, parts), f"{name}: {(ours - parts).abs().max()}"
        assert_accurate(ours, single, right, name)
