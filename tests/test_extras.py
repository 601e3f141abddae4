"""Ops with what torch.nn's layers have not, against their definition in double: outputs and every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from devices import DEVICE
from extras import Asked, make

from adl_kernels._cells import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
THREADS = (1, 2) if DEVICE == "cpu" else (1,)

# Of the largest value. In half precision every gate and state that backward reads is rounded.
BOUNDS = {F64: 1e-12, F32: 2e-5, BF16: 0.1, F16: 0.02}
CHOOSING = [name for name, cell in CELLS.items() if cell.chooses]
ODD = {"T": 9, "B": 5, "I": 11, "H": 37}
MANY = {"T": 6, "B": 40, "I": 20, "H": 70, "D": 2}
FEW = {"T": 4, "B": 2, "I": 30, "H": 50, "D": 2}


def with_c(**asked):
    return [Asked(name, **asked) for name, cell in CELLS.items() if cell.has_c]


def everywhere(**asked):
    return [Asked(name, **asked) for name in CELLS]


CASES = [
    *(case for sizes in (ODD, MANY, FEW) for case in everywhere(**sizes)),
    *everywhere(**ODD, D=2, lengths=True),
    *everywhere(**MANY, lengths=True, bptt_steps=2),
    *everywhere(**FEW, lengths=True, reset=True),
    *everywhere(**ODD, D=2, reset=True),
    *everywhere(**MANY, reset=True, mask=True),
    *everywhere(**ODD, D=2, bptt_steps=3),
    *everywhere(**ODD, mask=True, bias=False),
    *everywhere(**FEW, mask=True, zoneout="masks"),
    *everywhere(**ODD, D=2, zoneout="masks"),
    *everywhere(**ODD, zoneout="shares", packed=True),
    *everywhere(**ODD, D=2, layer_norm=True),
    *everywhere(**MANY, layer_norm=True, lengths=True),
    *everywhere(**FEW, layer_norm=True, zoneout="shares"),
    *everywhere(**ODD, layer_norm=True, zoneout="masks", mask=True, reset=True),
    *everywhere(**ODD, layer_norm=True, packed=True, bptt_steps=4, bias=False),
    *with_c(**ODD, all_states=True, D=2),
    *with_c(**FEW, all_states=True, lengths=True, reset=True, zoneout="masks"),
    *with_c(**MANY, all_states=True, layer_norm=True, bptt_steps=3),
    *with_c(**ODD, P=12, D=2),
    *with_c(**ODD, P=12, zoneout="masks", mask=True, reset=True),
    *with_c(**FEW, P=9, layer_norm=True, lengths=True, zoneout="shares"),
    *with_c(**MANY, P=33, bptt_steps=2, reset=True, lengths=True),
    *(Asked(name, **ODD, peephole=True) for name in CHOOSING),
    *(Asked(name, **FEW, peephole=True, zoneout="masks", lengths=True) for name in CHOOSING),
    *(Asked(name, **MANY, peephole=True, layer_norm=True, reset=True) for name in CHOOSING),
    *(Asked(name, **ODD, peephole=True, zoneout="shares", layer_norm=True) for name in CHOOSING),
    *(
        Asked("lstm_general", activations=pair)
        for pair in itertools.product(("tanh", "sigmoid", "relu", "identity"), repeat=2)
    ),
    *(Asked(name, activations=("sigmoid", "relu"), layer_norm=True) for name in CHOOSING),
]


def assert_as_defined(asked, bound=None):
    call = make(asked)
    bound = bound or BOUNDS[asked.dtype]
    exact = call.definition()
    for labels, ours, truth in zip((None, call.names), call.ours(), exact, strict=True):
        for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
            label = f"d{labels[k]}" if labels else f"output {k}"
            assert a.shape == b.shape and a.dtype == asked.dtype, label
            scale = max(b.abs().max().item(), 1e-3) if b.numel() else 1.0
            error = (a.double() - b).abs().max().item() / scale if b.numel() else 0.0
            assert error <= bound, f"{label} is off by {error:.1e} of the largest value"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("count", THREADS, ids=lambda count: f"{count}threads")
def test_outputs_and_all_gradients(case, count, threads):
    threads(count)
    assert_as_defined(case)
