"""Ops with what torch.nn's layers have not, against their definition in double."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from devices import DEVICE, OTHER_THREADS
from extras import Asked, make
from lanes import slow_unless
from tolerance import ON_CPU, assert_as_defined
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from adl_kernels.recurrent.cell_facts import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

CHOOSING = [name for name, cell in CELLS.items() if cell.chooses]
ODD = {"T": 9, "B": 5, "I": 11, "H": 37}
MANY = {"T": 6, "B": 40, "I": 20, "H": 70, "D": 2}
FEW = {"T": 4, "B": 2, "I": 30, "H": 50, "D": 2}
LONG = {"T": 75, "B": 40, "I": 5, "H": 20, "D": 2}


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
    # So long that backward goes part by part.
    *everywhere(**LONG, bptt_steps=7),
    *everywhere(**LONG, bptt_steps=7, lengths=True, reset=True, zoneout="masks", mask=True),
    *everywhere(**LONG, bptt_steps=30, packed=True, layer_norm=True),
    *with_c(**LONG, bptt_steps=4, P=9, reset=True, all_states=True, zoneout="masks"),
    *(Asked(name, **LONG, bptt_steps=7, peephole=True, packed=True) for name in CHOOSING),
]

# Much at once, for what need not be tried one by one.
ALL = {"lengths": True, "reset": True, "mask": True, "zoneout": "masks", "bptt_steps": 2}


def much(name, **more):
    cell = CELLS[name]
    return Asked(name, **ALL, all_states=cell.has_c, peephole=cell.chooses, **more)


def assert_call_is_as_defined(asked):
    """Returns the call, and its outputs and gradients."""
    call = make(asked)
    results, exact = call.ours(), call.definition()
    for labels, ours, truth in zip((None, call.names), results, exact, strict=True):
        for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
            label = f"d{labels[k]}" if labels else f"output {k}"
            assert a.dtype == asked.dtype, label
            assert_as_defined(a, b, label, ON_CPU, 1e-3)
    return call, results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case, threads):
    """Also, on the CPU, that more threads give the same bits."""
    call, results = assert_call_is_as_defined(case)
    for count in OTHER_THREADS:
        threads(count)
        for ours, before in zip(call.ours(), results, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_other_dtypes(name, layer_norm, dtype):
    assert_call_is_as_defined(much(name, **ODD, dtype=dtype, layer_norm=layer_norm))


@pytest.mark.cpu_only
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("sizes", [MANY, FEW, {"T": 12, "B": 6, "I": 40, "H": 300}], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_results_do_not_depend_on_the_number_of_threads(name, sizes, layer_norm, threads):
    call = make(much(name, **sizes, dtype=F32, layer_norm=layer_norm))
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append([t for part in call.ours() for t in part])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


SMALL = {"T": 3, "B": 2, "I": 2, "H": 3, "D": 2}


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_gradcheck_and_second_derivatives(name, layer_norm):
    call = make(much(name, **SMALL, layer_norm=layer_norm))
    tensors = [t.detach().clone().requires_grad_() for t in call.tensors]
    states = CELLS[name].states
    extras = call.extras._replace(bptt_steps=0)  # finite differences know of no cut

    def run(x, *rest):
        return tuple(CELLS[name].op(x, list(rest[:states]), list(rest[states:]), *extras))

    assert torch.autograd.gradcheck(run, tensors)
    if name != "rnn_relu":  # whose second derivative is not continuous
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", slow_unless(("lstm_general", "gru").__contains__, CELLS))
def test_opcheck(name, layer_norm):
    asked = much(name, **SMALL, P=2 * CELLS[name].has_c, layer_norm=layer_norm)
    # Of what is kept for sequences that end early, nobody writes or reads the rest.
    call, cell = make(replace(asked, lengths=False)), CELLS[name]
    tensors = [t.detach().clone().requires_grad_() for t in call.tensors]
    hx, weights = tensors[1 : 1 + cell.states], tensors[1 + cell.states :]
    torch.library.opcheck(cell.op, (tensors[0], hx, weights, *call.extras))
    torch.library.opcheck(cell.forward_op, (tensors[0], hx, weights, *call.extras))
    tensors = [t.detach() for t in tensors]
    hx, weights = tensors[1 : 1 + cell.states], tensors[1 + cell.states :]
    outputs = cell.forward_op(tensors[0], hx, weights, *call.extras)
    count = 1 + cell.states + cell.has_c
    grads, needs = [torch.randn_like(t) for t in outputs[:count]], [True] * (1 + len(weights))
    args = (grads, tensors[0], hx, weights, *call.extras, outputs[0], outputs[count:], needs)
    torch.library.opcheck(cell.backward_op, args)


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_a_fake_is_as_what_it_stands_for(name, layer_norm, dtype):
    cell = CELLS[name]
    call = make(much(name, **SMALL, P=2 * cell.has_c, layer_norm=layer_norm, dtype=dtype))
    tensors = [t.detach() for t in call.tensors]
    hx, weights = tensors[1 : 1 + cell.states], tensors[1 + cell.states :]
    arguments = (tensors[0], hx, weights, *call.extras)
    with FakeTensorMode() as mode:
        fake = tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        made = cell.forward_op(*fake)
    for found, expected in zip(made, cell.forward_op(*arguments), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.stride() == expected.stride()


@pytest.mark.parametrize(
    "given, text",
    [
        (
            {"recurrent_mask": torch.ones(1, 3, 5)},
            r"recurrent_mask must be floating point \[1, 3, 7\]",
        ),
        ({"zoneout": (2.0, 0.0)}, "zoneout must be between 0 and 1, got 2"),
        ({"zoneout": (0.5,)}, "zoneout must hold 2 numbers or none, got 1"),
        ({"cell_activation": "relu"}, "cell_activation must be tanh for this cell, got relu"),
        ({"peephole": True}, "this cell has no peepholes"),
        ({"layer_norm": True}, "weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c for each of 1"),
        ({"bptt_steps": -1}, "bptt_steps must not be negative, got -1"),
        ({"zoneout_c": torch.ones(1, 5, 3, 7, dtype=torch.uint8)}, "must not be given without"),
        ({"zoneout_h": torch.ones(1, 5, 3, 7), "zoneout_c": None}, "zoneout_c must come with"),
        ({"reset": torch.zeros(3, 5, dtype=torch.bool)}, r"reset must be bool \[5, 3\]"),
        ({"batch_sizes": torch.ones(3, dtype=torch.int64), "all_states": True}, "x must be"),
    ],
    ids=str,
)
def test_wrong_extras(given, text):
    call = make(Asked("lstm"))
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with pytest.raises(RuntimeError, match=text):
        x, *rest = call.tensors
        CELLS["lstm"].op(x, rest[:2], rest[2:], *call.extras._replace(**given))
