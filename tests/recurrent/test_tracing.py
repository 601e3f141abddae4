"""torch.jit.trace and torch.export of recurrent layers: no size of the example stays in them."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE
from lanes import slow
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tracing import assert_exported, assert_traced, tensors

import adl_kernels as adl

TWO = {"num_layers": 2}
LAYERS = [
    (adl.LSTM, {}),
    (adl.GRU, {}),
    (adl.RNN, {"nonlinearity": "relu"}),
    (adl.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    (adl.GRU, {"num_layers": 3, "bidirectional": True, "bias": False}),
    (adl.RNN, {"nonlinearity": "sigmoid"}),
    (adl.LSTM, {"layer_norm": True, "peephole": True, "return_all_states": True}),
    (adl.GRU, {"reset_after": False, "bptt_steps": 2}),
    (adl.LSTM, {"zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.2} | TWO),
]
IDS = [
    "lstm",
    "gru",
    "rnn",
    "lstm-all",
    "gru-all",
    "sigmoid",
    "layer-norm",
    "reset-before",
    "masks",
]
SIZES = [(3, 6), (5, 8), (1, 2), (4, 1)]  # batch, steps


class Encoder(nn.Module):
    """A layer in the way that `how` says; x is [B, T, I] with batch_first, else [T, B, I]."""

    def __init__(self, cls, options, how, batch_first):
        super().__init__()
        self.rnn = cls(4, 5, batch_first=batch_first, **options, device=DEVICE)
        self.how, self.batch_first = how, batch_first
        self.rnn.dropout_seed = torch.tensor([7])
        self.rnn.eval()  # which has no masks, and keeps the expectation of zoneout

    def forward(self, x, lengths):
        return tuple(tensors(self.run(x, lengths)))

    def run(self, x, lengths):
        first = {"batch_first": self.batch_first}
        if self.how in ("packed", "unsorted"):
            packed = pack_padded_sequence(x, lengths, enforce_sorted=self.how == "packed", **first)
            y, states, *all_c = self.rnn(packed)
            return [pad_packed_sequence(t, **first) for t in (y, *all_c)], states
        if self.how == "lengths":
            return self.rnn(x, lengths=lengths)
        if self.how == "unbatched":
            return self.rnn(x.select(0 if self.batch_first else 1, 0))
        if self.how == "states":
            return self.rnn(x, self.rnn(x)[1])
        if self.how == "reset":
            return self.rnn(x, reset=x[..., 0] > 0)
        return self.rnn(x)


def maker(model):
    def make(batch, steps):
        lengths = torch.arange(batch) % steps + 1
        lengths = (steps - lengths + 1).sort(descending=True).values
        if model.how != "packed":
            lengths = lengths.flip(0)
        shape = (batch, steps, 4) if model.batch_first else (steps, batch, 4)
        return torch.randn(shape, device=DEVICE), lengths

    return make


@pytest.mark.parametrize("how", ["packed", "unsorted", "lengths", "unbatched", "states", "plain"])
@pytest.mark.parametrize("cls, options", LAYERS, ids=IDS)
def test_trace_runs_at_other_sizes(cls, options, how):
    for batch_first in (True, False):
        model = Encoder(cls, options, how, batch_first)
        assert_traced(model, maker(model), SIZES)


@pytest.mark.parametrize("cls, options", LAYERS[-1:], ids=IDS[-1:])
@pytest.mark.parametrize("how", ["lengths", "reset", "plain"])
def test_trace_in_training_draws_masks_of_other_sizes(cls, options, how):
    for batch_first in (True, False):
        model = Encoder(cls, options, how, batch_first)
        model.rnn.train()
        assert_traced(model, maker(model), SIZES)


@pytest.mark.parametrize("cls", [adl.LSTMCell, adl.GRUCell, adl.RNNCell])
def test_traced_cells(cls):
    cell = cls(4, 5, device=DEVICE)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            return self.cell(x, self.cell(x))

    assert_traced(
        Twice(), lambda batch: (torch.randn(batch, 4, device=DEVICE),), [(3,), (5,), (1,)]
    )


def test_wrong_arguments_are_found_while_tracing():
    model = adl.LSTM(4, 5, num_layers=2, device=DEVICE)
    x, h = torch.randn(3, 2, 4, device=DEVICE), torch.zeros(2, 2, 5, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        torch.jit.trace(model, (x[..., :3],))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(2, 2, 5\), got \[1, 2, 5"):
        torch.jit.trace(model, (x, (h, h[:1])))
    torch.jit.trace(model, (x, (h, h)))  # and a trace that failed leaves nothing behind
    assert torch._C._get_tracing_state() is None


@pytest.mark.parametrize("how", ["states", *slow("plain", "lengths", "reset")])
@pytest.mark.parametrize("cls, options", LAYERS, ids=IDS)
def test_export_with_dynamic_batch_and_length(cls, options, how):
    for batch_first in (True, False):
        model = Encoder(cls, options, how, batch_first)
        batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)
        order = (batch, steps) if batch_first else (steps, batch)
        dynamic = (dict(enumerate(order)), {0: batch})
        assert_exported(model, maker(model), [(3, 6), (5, 8), (2, 2)], dynamic)
