"""Cells and extras that torch.nn has not, over emulated CUDA kernels, against the definition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import tolerance
import torch
from layers import Case, Layer, make
from tolerance import ON_CUDA
from torch import Tensor

from adl_kernels import _dropout
from adl_kernels.recurrent import reference
from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import LayerOptions

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
RAGGED = (5, 5, 3, 1)
OWN = [name for name in CELLS if not hasattr(torch._VF, name)]
WITH_C = [name for name, cell in CELLS.items() if cell.has_c]
CHOOSERS = [name for name, cell in CELLS.items() if cell.chooses]


@dataclass(frozen=True)
class Asked:
    """A case and what it asks for: words of `WORDS`."""

    case: Case
    what: str = ""

    def __str__(self) -> str:
        return "-".join([str(self.case), *self.what.split()])


# What a word adds to the extras of a layer: B sequences of T steps, rows those of x.


def _lengths(layer: Layer, dtype: torch.dtype) -> dict:
    T, B = layer.x.shape[:2]
    return {"lengths": torch.tensor([(T, 0, T - 1, 1)[b % 4] for b in range(B)])}


def _reset(layer: Layer, dtype: torch.dtype) -> dict:
    return {"reset": torch.rand(layer.x.shape[:2]) < 0.4}


def _mask(layer: Layer, dtype: torch.dtype) -> dict:
    return {"recurrent_mask": (torch.rand_like(layer.hx[0].double()) * 2).to(dtype)}


def _zones(layer: Layer, dtype: torch.dtype) -> dict:
    rows = layer.x.shape[:-1]
    names = ("zoneout_h", "zoneout_c")
    return {
        name: (torch.rand(h.size(0), *rows, h.size(2)) < 0.4).to(torch.uint8)
        for name, h in zip(names, layer.hx, strict=False)
    }


WORDS = {
    "lengths": _lengths,
    "reset": _reset,
    "mask": _mask,
    "zones": _zones,
    "shares": lambda layer, dtype: {"zoneout": (0.25, 0.5)[: len(layer.hx)]},
    "peephole": lambda layer, dtype: {"peephole": True},
    "norm": lambda layer, dtype: {"layer_norm": True},
    "all_c": lambda layer, dtype: {"all_states": True},
    "bptt": lambda layer, dtype: {"bptt_steps": 2},
    "bptt1": lambda layer, dtype: {"bptt_steps": 1},
    "relu": lambda layer, dtype: {"cell_activation": "relu", "hidden_activation": "identity"},
    "sigmoid": lambda layer, dtype: {"cell_activation": "sigmoid", "hidden_activation": "relu"},
}


def prepared(asked: Asked) -> tuple[Layer, LayerOptions]:
    layer = make(asked.case)
    cell, case, words = CELLS[asked.case.cell], asked.case, asked.what.split()
    shapes = [(cell.peepholes, case.H)] * ("peephole" in words)
    if "norm" in words:
        shapes += [(cell.gates * case.H,)] * 2 + [(case.H,)] * 2 * cell.has_c
    per_direction = len(layer.weights) // case.D
    weights = []
    for d in range(case.D):
        weights += layer.weights[d * per_direction : (d + 1) * per_direction]
        weights += [torch.randn(shape, dtype=F64).to(case.dtype) for shape in shapes]
    given = {"batch_sizes": layer.batch_sizes}
    for word in words:
        given |= WORDS[word](layer, case.dtype)
    return replace(layer, weights=weights), LayerOptions(**given)


def run(
    layer: Layer, extras: LayerOptions, op, cotangents=None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and, with cotangents, the gradients of all tensors."""
    training = cotangents is not None
    tensors = [t.detach().clone().requires_grad_(training) for t in layer.tensors]
    inner = layer.with_tensors(tensors)
    outputs = op(inner.x, inner.hx, inner.weights, *extras)
    return outputs, list(torch.autograd.grad(outputs, tensors, cotangents)) if training else []


def defined(layer: Layer, extras: LayerOptions, cotangents: list[Tensor]):
    """In double, by the definition."""
    name, mask = layer.case.cell, extras.recurrent_mask
    wide = layer.with_tensors([t.double() for t in layer.tensors])
    extras = extras._replace(recurrent_mask=None if mask is None else mask.double())
    given = [c.double() for c in cotangents]
    return run(wide, extras, lambda *arguments: reference.layer(name, *arguments), given)


def assert_as_defined(asked: Asked) -> None:
    """Outputs and every gradient, and that inference gives the same outputs."""
    layer, extras = prepared(asked)
    cell, dtype = CELLS[asked.case.cell], asked.case.dtype
    inference, _ = run(layer, extras, cell.op)
    cotangents = [torch.randn_like(t) for t in inference]
    exact = defined(layer, extras, cotangents)
    ours = run(layer, extras, cell.op, cotangents)
    for kind, (found, expected) in enumerate(zip(ours, exact, strict=True)):
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a.dtype == dtype
            tolerance.assert_as_defined(a, b, f"{('output', 'gradient')[kind]} {k}", ON_CUDA, 1.0)
    for a, b in zip(inference, ours[0], strict=True):
        assert torch.equal(a, b), "differs between inference and training"


def cases(cells, what: str, *variants: Case) -> list[Asked]:
    return [Asked(replace(v, cell=cell), what) for cell in cells for v in variants]


PLAIN = Case("", 4, 3, 3, 7, F64)
BOTH = replace(PLAIN, D=2)
PACKED = Case("", 5, 4, 3, 7, F64, D=2, lengths=RAGGED)
LONG = Case("", 6, 5, 3, 37, F32, D=2)
EVERYTHING = "lengths reset mask zones bptt"

BLOCK = [
    *cases(["rnn_sigmoid"], "", *(replace(BOTH, dtype=t, H=18) for t in (F32, BF16, F16))),
    *cases(CHOOSERS, "", replace(BOTH, dtype=F32, H=18)),
    *cases(CHOOSERS, "peephole relu", *(replace(BOTH, dtype=t, H=18) for t in (F32, BF16, F16))),
    *cases(CHOOSERS, "peephole sigmoid", replace(PACKED, dtype=F32, H=20)),
    *cases(["lstm_general"], "peephole", Case("", 2, 3, 2, 70, F32), Case("", 2, 2, 1, 128, BF16)),
]
STREAMING = [
    # Every kernel in every dtype; test_tiers.py has the cells that torch has.
    *cases(OWN, "", *(replace(PLAIN, dtype=t, H=33) for t in (F64, F32, BF16, F16))),
    *cases(CELLS, "norm", *(replace(PLAIN, dtype=t, H=33) for t in (F64, F32, BF16, F16))),
    *cases(CELLS, "norm lengths", *(replace(BOTH, dtype=t) for t in (F64, F32, BF16, F16))),
    *cases(CELLS, "lengths reset mask", *(replace(BOTH, dtype=t) for t in (F32, BF16, F16))),
    *cases(["lstm"], "shares", *(replace(BOTH, dtype=t, P=4) for t in (F64, F32, BF16, F16))),
    # Each extra for itself.
    *cases(CELLS, "lengths", BOTH, replace(BOTH, B=9, T=5)),
    *cases(CELLS, "reset", BOTH),
    *cases(CELLS, "mask", BOTH, PACKED),
    *cases(CELLS, "zones", BOTH, PACKED),
    *cases(CELLS, "shares", PLAIN, BOTH),
    *cases(CELLS, "bptt", BOTH, replace(PACKED, lengths=(5, 5, 5, 5))),
    *cases(CELLS, "bptt1", BOTH, PACKED),
    *cases(CELLS, "bptt lengths", replace(BOTH, T=6, B=5)),
    *cases(WITH_C, "all_c", BOTH, PACKED, replace(BOTH, P=3)),
    *cases(CHOOSERS, "peephole", BOTH, PACKED),
    *cases(CHOOSERS, "relu", PLAIN),
    *cases(CHOOSERS, "peephole sigmoid", replace(BOTH, P=4), replace(BOTH, bias=False)),
    *cases(CELLS, "norm", BOTH, PACKED, replace(BOTH, bias=False)),
    # Together.
    *cases(CELLS, EVERYTHING, BOTH, LONG, replace(BOTH, T=7, B=6)),
    *cases(CELLS, f"{EVERYTHING} norm", BOTH, LONG),
    *cases(CELLS, "norm mask shares bptt", PACKED),
    *cases(CELLS, "mask zones bptt", PACKED),
    *cases(WITH_C, f"{EVERYTHING} all_c", replace(BOTH, P=4), replace(LONG, P=5)),
    *cases(WITH_C, f"{EVERYTHING} norm all_c", replace(BOTH, P=4, bias=False)),
    *cases(WITH_C, "norm zones mask all_c", replace(PACKED, P=3)),
    *cases(CHOOSERS, f"{EVERYTHING} peephole relu all_c", BOTH, replace(BOTH, P=4)),
    *cases(CHOOSERS, f"{EVERYTHING} peephole sigmoid norm all_c", BOTH, replace(BOTH, P=4)),
    *cases(CHOOSERS, "peephole sigmoid norm", replace(PLAIN, dtype=BF16, P=4)),
    # More units than a block has threads.
    *cases(["lstm_general", "gru_reset_before"], "norm lengths", Case("", 2, 2, 3, 300, F64)),
]


@pytest.mark.parametrize("asked", BLOCK, ids=str)
def test_block_resident(asked, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", "block")
    assert_as_defined(asked)


@pytest.mark.parametrize("asked", STREAMING, ids=str)
def test_streaming(asked, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", "streaming")
    assert_as_defined(asked)


TOGETHER = [
    Asked(replace(LONG, dtype=F64, H=9, cell="gru_reset_before"), f"{EVERYTHING} norm"),
    Asked(
        replace(LONG, dtype=F64, H=9, cell="lstm_general", P=4), f"{EVERYTHING} norm peephole all_c"
    ),
    Asked(replace(PACKED, cell="lstm"), "mask zones bptt all_c"),
]


@pytest.mark.parametrize("asked", TOGETHER, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_scan_in_pieces(asked, steps, monkeypatch):
    layer, extras = prepared(asked)
    op, case = CELLS[asked.case.cell].op, asked.case
    whole, _ = run(layer, extras, op)
    bytes_of_a_step = 2 * case.B * CELLS[case.cell].gates * case.H * 8
    monkeypatch.setenv("ADL_EMULATED_PROJECTED", str(steps * bytes_of_a_step))
    for a, b in zip(run(layer, extras, op)[0], whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("asked", TOGETHER, ids=str)
def test_a_gradient_that_is_not_there_is_zero(asked):
    layer, extras = prepared(asked)
    op = CELLS[asked.case.cell].op
    outputs, _ = run(layer, extras, op)
    for k in range(len(outputs)):
        tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
        inner = layer.with_tensors(tensors)
        one = op(inner.x, inner.hx, inner.weights, *extras)[k]
        ours = torch.autograd.grad(one.sum(), tensors)
        given = [torch.full_like(t, float(i == k)) for i, t in enumerate(outputs)]
        for a, b in zip(ours, defined(layer, extras, given)[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("asked", TOGETHER, ids=str)
def test_a_gradient_that_is_not_wanted_does_not_change_others(asked):
    layer, extras = prepared(asked)
    op = CELLS[asked.case.cell].op
    cotangents = [torch.randn_like(t) for t in run(layer, extras, op)[0]]
    _, everything = run(layer, extras, op, cotangents)
    for k in range(len(layer.tensors)):
        tensors = [t.detach().clone() for t in layer.tensors]
        tensors[k].requires_grad_()
        inner = layer.with_tensors(tensors)
        outputs = op(inner.x, inner.hx, inner.weights, *extras)
        (alone,) = torch.autograd.grad(outputs, [tensors[k]], cotangents)
        assert torch.equal(alone, everything[k])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("what", ["lengths", "lengths norm"])
def test_nothing_beyond_a_sequence_is_read(cell, what):
    layer, extras = prepared(Asked(replace(BOTH, cell=cell, B=4), what))
    op = CELLS[cell].op
    cotangents = [torch.randn_like(t) for t in run(layer, extras, op)[0]]
    outputs, gradients = run(layer, extras, op, cotangents)
    beyond = torch.arange(layer.x.size(0))[:, None] >= extras.lengths
    layer.x[beyond] = float("nan")
    cotangents[0][beyond] = float("nan")
    again = run(layer, extras, op, cotangents)
    for a, b in zip([*again[0], *again[1]], [*outputs, *gradients], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [(3,), (2, 3, 5), (4, 1030), (0, 2)], ids=str)
def test_mask(sizes):
    like, seed = torch.empty(0), torch.tensor(2**40 + 5)
    ours = torch.ops.adl_kernels.mask(like, sizes, 0.3, seed, 7)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, _dropout.defined_mask(like, sizes, 0.3, seed, 7))


@pytest.mark.parametrize("word", sorted({*WORDS} - {"peephole", "relu", "sigmoid"}))
def test_the_block_tier_says_what_it_does_not_serve(word, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", "block")
    layer, extras = prepared(Asked(replace(PLAIN, cell="lstm", dtype=F32), word))
    with pytest.raises(RuntimeError, match=r"does not serve .* with these options"):
        run(layer, extras, CELLS["lstm"].op)
