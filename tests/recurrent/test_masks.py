"""mask=, as libraries give the lengths of sequences to layers of their own."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE

import adl_kernels as adl

LENGTHS = torch.tensor([3, 6, 1, 4])


def make(cls, **options):
    layer = cls(4, 5, 2, bidirectional=True, **options, device=DEVICE)
    shape = (4, 6, 4) if layer.batch_first else (6, 4, 4)
    mask = torch.arange(6) < LENGTHS[:, None]
    mask = mask if layer.batch_first else mask.T
    return layer, torch.randn(shape, device=DEVICE), mask.to(DEVICE)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cls", [adl.LSTM, adl.GRU, adl.RNN])
def test_as_lengths(cls, batch_first):
    layer, x, mask = make(cls, batch_first=batch_first)
    torch.testing.assert_close(layer(x, mask=mask), layer(x, lengths=LENGTHS), rtol=0, atol=0)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask=mask), layer(x, lengths=LENGTHS))


def test_wrong_masks():
    layer, x, mask = make(adl.GRU)
    with pytest.raises(RuntimeError, match=r"GRU: mask must be bool \[6, 4\] .*, got .*\[4, 6\]"):
        layer(x, mask=mask.T)
    with pytest.raises(RuntimeError, match=r"GRU: mask must be bool .*got torch.int64"):
        layer(x, mask=mask.long())
    with pytest.raises(ValueError, match="lengths and mask say the same"):
        layer(x, mask=mask, lengths=LENGTHS)
    with pytest.raises(RuntimeError, match=r"mask is for batched input, got \[6, 4\]"):
        layer(x[:, 0], mask=mask[:, 0])
    with pytest.raises(TypeError, match="mask must be a Tensor, got int"):
        layer(x, mask=1)


@pytest.mark.cpu_only  # on a GPU it is found later
def test_a_mask_with_gaps():
    layer, x, mask = make(adl.LSTM)
    mask[1, 1] = False
    with pytest.raises(RuntimeError, match="true up to the end of each sequence and false past it"):
        layer(x, mask=mask)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="true up to the end of each sequence"):
        compiled(x, mask=mask)
