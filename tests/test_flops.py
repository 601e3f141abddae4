"""Counted operations: those of torch's own layers, forward and backward, where torch counts any."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from devices import DEVICE
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import adl_kernels as adl
from adl_kernels.flops import FORMULAS

pytestmark = pytest.mark.cpu_only


def counted(model, args, backward=True):
    """Of forward and backward."""
    with FlopCounterMode(display=False) as counter:
        result = model(*args)
        if backward:
            leaves = torch.utils._pytree.tree_leaves(result)
            sum(t.square().sum() for t in leaves if t.requires_grad).backward()
    return counter.get_total_flops()


def assert_counted_as_torchs(model, make, backward=True):
    expected = counted(model, make(), backward)
    assert adl.convert(model).replaced
    assert counted(model, make(), backward) == expected > 0


def sequence(*size, requires_grad=False):
    return torch.randn(size, device=DEVICE, requires_grad=requires_grad)


def packed(x, *lengths):
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)


# torch counts its LSTM where it has no fused one: packed batches and projections.
RECURRENT = {
    "gru": (lambda: nn.GRU(8, 16), lambda: (sequence(5, 3, 8),)),
    "gru-all": (
        lambda: nn.GRU(8, 16, 3, bidirectional=True, bias=False, batch_first=True),
        lambda: (sequence(3, 5, 8, requires_grad=True),),
    ),
    "gru-state": (
        lambda: nn.GRU(8, 6, 2),
        lambda: (sequence(5, 3, 8), sequence(2, 3, 6, requires_grad=True)),
    ),
    "gru-packed": (
        lambda: nn.GRU(8, 16, 2, bidirectional=True),
        lambda: (packed(sequence(5, 4, 8), 2, 5, 3, 5),),
    ),
    "gru-unbatched": (lambda: nn.GRU(8, 16), lambda: (sequence(5, 8),)),
    "rnn": (lambda: nn.RNN(8, 6, 2, nonlinearity="relu"), lambda: (sequence(5, 3, 8),)),
    "rnn-step": (lambda: nn.RNN(8, 6), lambda: (sequence(1, 3, 8),)),
    "lstm-packed": (
        lambda: nn.LSTM(8, 16, bidirectional=True),
        lambda: (packed(sequence(5, 4, 8, requires_grad=True), 2, 5, 3, 5),),
    ),
    "lstm-projection": (
        lambda: nn.LSTM(8, 16, 2, proj_size=4, bidirectional=True),
        lambda: (sequence(5, 3, 8),),
    ),
    "lstm-cell": (lambda: nn.LSTMCell(8, 16), lambda: (sequence(3, 8, requires_grad=True),)),
    "gru-cell": (
        lambda: nn.GRUCell(8, 16),
        lambda: (sequence(3, 8), sequence(3, 16, requires_grad=True)),
    ),
    "rnn-cell": (lambda: nn.RNNCell(8, 16), lambda: (sequence(8),)),
}
CONVS = {
    "conv1d": (lambda: nn.Conv1d(8, 16, 5, padding=2, groups=8), lambda: (sequence(2, 8, 9),)),
    "conv2d": (
        lambda: nn.Conv2d(8, 8, 3, 2, padding=(1, 2), groups=8),
        lambda: (sequence(2, 8, 9, 8, requires_grad=True),),
    ),
    "conv2d-same": (
        lambda: nn.Conv2d(8, 8, (4, 2), padding="same", dilation=2, groups=8, bias=False),
        lambda: (sequence(8, 9, 8),),
    ),
    "conv2d-reflect": (
        lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8),
        lambda: (sequence(2, 8, 9, 8),),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3, groups=4), lambda: (sequence(1, 4, 5, 6, 7),)),
    "net": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        ),
        lambda: (sequence(2, 3, 9, 9),),
    ),
}
MODELS = RECURRENT | CONVS


@pytest.mark.parametrize("backward", [True, False], ids=["training", "forward"])
@pytest.mark.parametrize("name", MODELS)
def test_as_many_as_of_torchs_layer(name, backward):
    model, make = MODELS[name]
    assert_counted_as_torchs(model().to(DEVICE), make, backward)
    with torch.no_grad():
        assert_counted_as_torchs(model().to(DEVICE), make, False)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0"])
def test_frozen_weights_cost_nothing_in_backward(frozen):
    model = nn.GRU(8, 16)
    model.get_parameter(frozen).requires_grad_(False)
    assert_counted_as_torchs(model, lambda: (sequence(5, 3, 8),))


@pytest.mark.parametrize("name", ["gru-all", "lstm-projection", "conv2d", "net"])
def test_without_numbers(name):
    """On meta tensors, which count as any."""
    model, make = MODELS[name]
    model = model().to(DEVICE)
    adl.convert(model)
    args = make()
    expected = counted(model, args)
    meta = [t.detach().to("meta").requires_grad_(t.requires_grad) for t in args]
    assert counted(model.to("meta"), meta) == expected
    layer, x = adl.GRU(8, 6, device="meta"), torch.empty(5, 3, 8, device="meta")
    lengths = torch.empty(3, dtype=torch.int64, device="meta")  # each may be the longest
    assert counted(lambda x: layer(x, lengths=lengths), (x,)) == counted(layer, (x,))


def test_an_lstm_counts_what_its_equations_multiply():
    x = sequence(5, 3, 8)
    gates = {adl.LSTM: 4, adl.GRU: 3, adl.RNN: 1}
    counts = {cls: counted(cls(8, 16), (x,)) for cls in gates}
    assert {n / gates[cls] for cls, n in counts.items()} == {counts[adl.RNN]}
    with FlopCounterMode(display=False) as counter:
        adl.LSTM(8, 16, forget_gate="coupled", peephole=True, layer_norm=True)(x)
    assert counter.get_total_flops() == 2 * 15 * 3 * 16 * (8 + 16)


def test_lengths_count_as_a_packed_batch():
    model, lengths = adl.LSTM(8, 16, 2, bidirectional=True), (2, 5, 3, 5)
    x = sequence(5, 4, 8)
    expected = counted(model, (packed(x, *lengths),))
    found = counted(lambda x: model(x, lengths=torch.tensor(lengths)), (x,))
    assert found == expected


def test_the_block_counts_as_its_convolutions():
    block = adl.SeparableConv2d(8, 6, 3, padding=1, depth_multiplier=2).eval()
    plain = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 6, 1))
    x = sequence(2, 8, 9, 7)
    assert counted(block, (x,)) == counted(plain, (x,))
    with torch.no_grad():
        assert counted(block, (x,), False) == counted(plain, (x,), False)


def test_every_op_that_multiplies_is_counted():
    names = torch._C._dispatch_get_all_op_names()
    ours = {n.removeprefix("adl_kernels::") for n in names if n.startswith("adl_kernels::")}
    counted = {str(op).removeprefix("adl_kernels.") for op in FORMULAS}
    assert ours - counted == {"dropout", "mask", "pack_pointwise", "prefers_cudnn"}


@pytest.mark.parametrize("counter_first", [True, False])
def test_the_counter_is_imported_by_nobody_but_the_user(counter_first):
    lines = ["import adl_kernels, sys; loaded = 'torch.utils.flop_counter' in sys.modules"]
    lines.insert(0 if counter_first else 1, "import torch.utils.flop_counter as counter")
    lines += ["import torch", "assert torch.ops.adl_kernels.lstm in counter.flop_registry"]
    lines += [f"assert loaded == {counter_first}"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
