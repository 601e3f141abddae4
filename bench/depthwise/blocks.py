"""Separable blocks in eval, and the body of a MobileNetV1 in training, against torch's layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import adl_kernels
from bench import gate, machine
from bench.measure import Budget, timed
from bench.recurrent.cases import DTYPES
from bench.store import Row

FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}
EAGER, COMPILED, BODY = "block", "compiled", "body"  # what a row calls its op


@dataclass(frozen=True)
class Block:
    """3x3 depthwise, batch norm, ReLU, 1x1, batch norm, ReLU: C to N channels."""

    C: int
    N: int
    size: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.C}-{self.N}@{self.size}" + f"-s{self.stride}" * (self.stride > 1)

    @property
    def places(self) -> int:
        return (self.size // self.stride) ** 2


# The blocks of MobileNetV1 (Howard et al. 2017), as often as they occur.
BODY_BLOCKS = (
    Block(32, 64, 112),
    Block(64, 128, 112, 2),
    Block(128, 128, 56),
    Block(128, 256, 56, 2),
    Block(256, 256, 28),
    Block(256, 512, 28, 2),
    *[Block(512, 512, 14)] * 5,
    Block(512, 1024, 14, 2),
    Block(1024, 1024, 7),
)
BLOCKS = tuple(dict.fromkeys(BODY_BLOCKS))


def theirs(block: Block) -> nn.Sequential:
    dw = nn.Conv2d(block.C, block.C, 3, block.stride, 1, groups=block.C, bias=False)
    pw = nn.Conv2d(block.C, block.N, 1, bias=False)
    return nn.Sequential(
        *(dw, nn.BatchNorm2d(block.C), nn.ReLU(inplace=True)),
        *(pw, nn.BatchNorm2d(block.N), nn.ReLU(inplace=True)),
    )


def with_statistics(model: nn.Module) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
    return model.eval()


def ours(block: Block, model: nn.Sequential) -> nn.Module:
    mine = adl_kernels.SeparableConv2d(
        block.C,
        block.N,
        3,
        block.stride,
        padding=1,
        bias=False,
        dw_norm=True,
        norm=True,
        dw_activation="relu",
        activation="relu",
    )
    mine.load_state_dict(model.state_dict())
    return mine.eval()


def measure(threads: Sequence[int], budget: Budget) -> Iterator[Row]:
    with machine.threads_kept():
        for block, dtype, layout, B in product(BLOCKS, ("f32", "bf16"), FORMATS, (1, 16)):
            yield from _block(block, dtype, layout, B, threads, budget)
        yield from _body(threads, budget)


def _block(
    block: Block, dtype: str, layout: str, B: int, threads: Sequence[int], budget: Budget
) -> Iterator[Row]:
    torch.manual_seed(0)
    number, form = DTYPES[dtype], FORMATS[layout]
    model = with_statistics(theirs(block))
    mine = ours(block, model)
    x = torch.randn(B, block.C, block.size, block.size)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x[:1].to(number).double())
    x = x.to(number).contiguous(memory_format=form)
    sides = [m.to(number).to(memory_format=form) for m in (mine, model)]
    amounts = {
        "gflops": 2e-9 * B * block.places * (9 * block.C + block.C * block.N),
        "gbytes": 1e-9 * x.element_size() * B * (block.C * block.size**2 + block.N * block.places),
    }
    with torch.no_grad():
        checked = _judge(sides[0](x)[:1], sides[1](x)[:1], exact)
        # Inductor chooses the layout of convolutions itself.
        for op in (EAGER, COMPILED) if layout == "last" else (EAGER,):
            peer: Any = _compiled(sides[1]) if op == COMPILED else sides[1]
            for n in threads:
                torch.set_num_threads(n)
                row = _key(str(block), dtype, layout, B, op, n) | checked
                calls = (lambda: sides[0](x)), (lambda p=peer: p(x))
                yield timed(row, *calls, budget, **amounts)
        torch.compiler.reset()


def _compiled(model: nn.Module) -> Any:
    """As a user who wants inference: batch norms folded, weights packed."""
    torch.compiler.reset()
    return torch.compile(model, options={"freezing": True})


def _body(threads: Sequence[int], budget: Budget) -> Iterator[Row]:
    """A step of training in bfloat16, channels last, 16 images."""
    torch.manual_seed(0)
    model = nn.Sequential(*(theirs(block) for block in BODY_BLOCKS))
    mine = nn.Sequential(*(ours(b, m) for b, m in zip(BODY_BLOCKS, model, strict=True)))
    form = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    x = torch.randn(16, 32, 112, 112).to(**form)
    sides = [m.to(**form).train() for m in (mine, model)]
    with torch.no_grad():
        small = x[:2].clone()
        exact = copy.deepcopy(model).double()(small.double())
        checked = _judge(*(copy.deepcopy(m)(small) for m in sides), exact)
    gflops = 6e-9 * 16 * sum(b.places * (9 * b.C + b.C * b.N) for b in BODY_BLOCKS)

    def step(model: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x).sum(), list(model.parameters()))

    for n in threads:
        torch.set_num_threads(n)
        row = _key("mobilenet", "bf16", "last", 16, BODY, n) | checked
        calls = (lambda: step(sides[0])), (lambda: step(sides[1]))
        yield timed(row, *calls, budget, gflops=gflops, gbytes=0.0)


def _key(case: str, dtype: str, layout: str, B: int, op: str, threads: int) -> Row:
    row: Row = {"case": case, "shape": case, "dtype": dtype, "layout": layout, "B": B, "op": op}
    return row | {"threads": threads, "malloc": machine.malloc()}


def _judge(mine: Tensor, other: Tensor, exact: Tensor) -> Row:
    """Both are off by roundings of several layers; ours by twice what torch's is at most."""
    torchs = gate.errors({"y": other}, {"y": exact})
    return gate.judge({"y": mine}, {"y": exact}, torchs).row()
