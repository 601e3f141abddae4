"""Sizes on a GPU: more steps and sequences than a grid dimension takes, and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from devices import DEVICE
from layers import Case, Layer, gradients, make, widened
from tolerance import assert_accurate
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import adl_kernels
from adl_kernels.recurrent.cell_facts import CELLS

F32 = torch.float32
SLACK = 2**21  # of the allocator's rounding, in bytes


@pytest.mark.large
@pytest.mark.parametrize("cell", CELLS)
def test_more_than_16_bits_of_steps(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_a_long_scan_is_accurate(cell, 70_000, monkeypatch)


def assert_a_long_scan_is_accurate(cell: str, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop over the steps in Python: the truth is our own scan in float64, which itself is held
    to torch's where torch has the cell; elsewhere the streaming kernels are the peer."""
    layer = make(Case(cell, T, 1, 8, 32, F32))
    of_torch = hasattr(torch._VF, cell)

    def results(tier: str, of: Layer, run: Callable) -> list[Tensor]:
        monkeypatch.setenv("ADL_CUDA_TIER", tier)
        outputs, grads = gradients(of, run, [c.to(of.x.dtype) for c in cotangents])
        return [*outputs, *grads]

    monkeypatch.setenv("ADL_CUDA_TIER", "streaming")
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = results("streaming", widened(layer), Layer.ours)
    streamed = results("streaming", layer, Layer.ours)
    peer = results("streaming", layer, Layer.torchs) if of_torch else streamed
    if of_torch:
        for a, b in zip(exact, results("streaming", widened(layer), Layer.torchs), strict=True):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max()
    found = [streamed] if of_torch else []
    if cell != "gru_reset_before":
        found.append(results("block", layer, Layer.ours))
    for ours in found:
        for three in zip(ours, peer, exact, strict=True):
            assert_accurate(*three, "y, states or gradients")


@pytest.mark.parametrize("cell", CELLS)
def test_more_than_16_bits_of_sequences(cell: str) -> None:
    layer = make(Case(cell, 2, 70_000, 8, 16, F32))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = gradients(widened(layer), Layer.torchs, [c.double() for c in cotangents])
    torchs = gradients(layer, Layer.torchs, cotangents)
    ours = gradients(layer, Layer.ours, cotangents)
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
