"""Sizes on a GPU: more steps and sequences than a grid dimension takes, and memory."""

from __future__ import annotations

import gc

import pytest
import torch
from devices import DEVICE
from layers import Case, make
from test_ops import gradients, widened
from tolerance import assert_accurate
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import adl_kernels
from adl_kernels._cells import CELLS

F32 = torch.float32
SLACK = 2**21  # of the allocator's rounding, in bytes


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T, B, H", [(70_000, 1, 32), (2, 70_000, 16)], ids=["T", "B"])
def test_more_than_16_bits_of_steps_or_sequences(cell: str, T: int, B: int, H: int) -> None:
    layer = make(Case(cell, T, B, 8, H, F32))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = gradients(widened(layer), type(layer).torchs, [c.double() for c in cotangents])
    torchs = gradients(layer, type(layer).torchs, cotangents)
    ours = gradients(layer, type(layer).ours, cotangents)
    for three in zip(
        *((*outputs, *grads) for outputs, grads in (ours, torchs, exact)), strict=True
    ):
        assert_accurate(*three, "y, states or gradients")


@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_nothing_is_no_launch(T: int, B: int) -> None:
    """A grid of no blocks is an error of CUDA's, which the next call would report."""
    layer = make(Case("lstm", T, B, 5, 6, F32, D=2))
    layer.ours()
    torch.cuda.synchronize()


def peak(library: object, kind: str, sizes: tuple[int, int, int, int], packed: bool) -> int:
    """Bytes that a training step needs at its peak, beyond what was there before."""
    T, B, I, H = sizes
    module = getattr(library, kind)(I, H, device=DEVICE)
    x = torch.randn(T, B, I, device=DEVICE, requires_grad=True)
    lengths = torch.linspace(0.2 * T, T, B).long().flip(0)
    dy = (
        torch.ones(int(lengths.sum()), H, device=DEVICE)
        if packed
        else torch.ones(T, B, H, device=DEVICE)
    )
    for tensor in (x, *module.parameters()):
        tensor.grad = torch.zeros_like(tensor)

    def step() -> None:
        y = module(pack_padded_sequence(x, lengths) if packed else x)[0]
        (y.data if packed else y).backward(dy)

    step()  # what a first call sets up
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sizes", [(512, 64, 64, 64), (128, 32, 512, 512)], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_peak_memory_of_a_training_step(
    kind: str, sizes: tuple[int, int, int, int], packed: bool
) -> None:
    ours = peak(adl_kernels, kind, sizes, packed)
    torchs = peak(nn, kind, sizes, packed)
    assert ours <= torchs + SLACK, f"{ours >> 20} MiB, torch's {torchs >> 20} MiB"


def test_no_growth_from_step_to_step() -> None:
    module = adl_kernels.LSTM(64, 128, 2, device=DEVICE)
    x = torch.randn(50, 16, 64, device=DEVICE)
    sizes = []
    for _ in range(6):
        module.zero_grad()
        module(x)[0].sum().backward()
        sizes.append(torch.cuda.memory_allocated())
    assert sizes[-1] == sizes[1]
