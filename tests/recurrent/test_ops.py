"""The ops against their definition in double: outputs and every gradient, and their contract."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from devices import DEVICE, OTHER_THREADS
from layers import Case, assert_layer_is_accurate, gradients, make
from tolerance import assert_accurate

from adl_kernels import _C
from adl_kernels.recurrent.cell_facts import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
RAGGED = (9, 9, 6, 5, 1, 1, 1)

CASES = [
    *(Case(cell, 7, 3, 5, 33, dtype) for cell in CELLS for dtype in (F64, F32, BF16, F16)),
    *(Case(cell, 9, 7, 20, 16, F32, lengths=RAGGED) for cell in CELLS),
    *(Case(cell, 9, 7, 3, 50, F64, D=2, lengths=RAGGED) for cell in CELLS),
    *(Case(cell, 5, 40, 17, 70, F32, D=2) for cell in CELLS),
    # Without a forget gate c grows with the steps, and with it what a rounding error comes to.
    *(Case(c, 20 if c == "lstm_no_forget" else 130, 2, 130, 65, F32, bias=False) for c in CELLS),
    *(Case(cell, 1, 1, 1, 1, F64) for cell in CELLS),
    # Few rows: the weights are not packed.
    *(Case(cell, 4, 3, 70, 100, F32, D=2) for cell in CELLS),
    *(Case(cell, 1, 1, 128, 64, dtype) for cell in CELLS for dtype in (F64, BF16)),
    Case("lstm", 2, 2, 65, 130, F32, P=66),
    Case("gru", 5, 4, 64, 200, F32, D=2, lengths=(5, 5, 3, 1)),
    Case("lstm", 6, 5, 40, 48, F32, P=7),
    Case("lstm", 6, 50, 9, 130, F32, P=65, D=2),
    Case("lstm", 9, 7, 9, 20, F64, P=3, D=2, bias=False, lengths=RAGGED),
    Case("lstm", 6, 5, 40, 48, BF16, P=7),
    Case("lstm", 30, 33, 65, 128, BF16),
    Case("gru", 30, 33, 65, 128, BF16, D=2),
    Case("gru", 200, 1, 64, 128, F32),
    Case("lstm", 200, 1, 64, 128, F32),
    Case("rnn_tanh", 40, 64, 128, 200, F32),
    Case("lstm", 25, 20, 150, 150, F16),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_all_gradients(case, threads):
    """Also, on the CPU, that more threads give the same bits."""
    run, ours = assert_layer_is_accurate(case)
    for count in OTHER_THREADS:
        threads(count)
        for again, before in zip(run(), ours, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))


def test_uninitialised_memory_is_poisoned():
    assert torch.empty(3, device=DEVICE).isnan().all()


@pytest.mark.cpu_only
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(50, 3, 40, 130), (20, 40, 64, 96), (5, 1, 700, 657)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(cell, shape, threads):
    layer = make(Case(cell, *shape, F32))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        outputs, grads = gradients(layer, type(layer).ours, cotangents)
        results.append([*outputs, *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_a_nan_stays_in_its_sequence(cell):
    layer = make(Case(cell, 6, 20, 8, 40, F32, D=2))
    clean = layer.ours()
    layer.x[2, 7, 3] = float("nan")
    dirty = layer.ours()
    others = [b for b in range(20) if b != 7]
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[:, others], b[:, others])
        assert b[:, 7].isnan().any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [1e30, -1e30, 1e-42])
def test_extreme_inputs_stay_exact(cell, value):
    layer = make(Case(cell, 3, 2, 4, 20, F32))
    layer.x.fill_(value)
    exact = layer.with_tensors([t.double() for t in layer.tensors]).reference()
    for ours, torchs, truth in zip(layer.ours(), layer.torchs(), exact, strict=True):
        finite = truth.abs() < 1e38  # an unbounded relu overflows in float
        assert_accurate(ours[finite], torchs[finite], truth[finite], "output")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T, B", [(0, 3), (4, 0), (0, 0)])
def test_empty_sequences_and_batches(cell, T, B):
    layer = make(Case(cell, T, B, 5, 6, F32, D=2))
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    outputs = layer.with_tensors(tensors).ours()
    assert outputs[0].shape == (T, B, 12)
    for final, initial in zip(outputs[1:], layer.hx, strict=True):
        assert torch.equal(final, initial)
    grads = torch.autograd.grad(outputs, tensors, [torch.ones_like(t) for t in outputs])
    states = len(layer.hx)
    assert all((g == 1).all() for g in grads[1 : 1 + states])
    assert all((g == 0).all() for g in (grads[0], *grads[1 + states :]))


@pytest.mark.parametrize("T, B", [(70_000, 1), (1, 70_000)])
def test_more_than_a_16_bit_count_of_steps_or_sequences(T, B):
    layer = make(Case("lstm", T, B, 2, 3, F32))
    tensors = [t.detach().requires_grad_() for t in layer.tensors]
    y, h_n, _ = layer.with_tensors(tensors).ours()
    assert torch.equal(y[-1], h_n[0])
    (dx,) = torch.autograd.grad(h_n.sum(), [tensors[0]])
    assert dx.shape == layer.x.shape and dx.isfinite().all()


def test_inference_keeps_nothing():
    """Without gradients only the plain op runs, which has nothing to give to backward."""
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op.name())
            return op(*args, **(kwargs or {}))

    layer = make(Case("lstm", 4, 2, 3, 5))
    with Record():
        layer.ours()
        with torch.no_grad():
            layer.with_tensors([t.clone().requires_grad_() for t in layer.tensors]).ours()
    assert calls.count("adl_kernels::lstm") == 2
    assert not any("forward" in name for name in calls)


@pytest.mark.cpu_only
@pytest.mark.parametrize("isa", ["default", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set_that_this_cpu_has(isa):
    """A fresh process forced to one set passes the self-test; asking for too much is an error."""
    env = {**os.environ, "ADL_ISA": isa}
    command = [sys.executable, "-m", "adl_kernels.selftest"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    order = ["default", "avx2", "avx512", "avx512bf16"]
    if order.index(isa) <= order.index(_C.isa()):
        assert run.returncode == 0, run.stdout + run.stderr
        assert isa in run.stdout
    else:
        assert run.returncode != 0 and "ADL_ISA must be one that" in run.stderr
