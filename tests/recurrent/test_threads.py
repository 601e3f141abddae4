"""Threads: the same bits for any number of them, from run to run, and when calls overlap."""

from __future__ import annotations

import ctypes
import re
import threading
from pathlib import Path

import pytest
import torch
from layers import Case, Layer, make
from torch import Tensor, nn

import adl_kernels
from adl_kernels.recurrent.cell_facts import CELLS

pytestmark = pytest.mark.cpu_only

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
CPU_CPP = Path(__file__).parents[2] / "csrc/recurrent/cpu.cpp"
RAGGED = tuple(k // 2 + 12 for k in range(34, 0, -1))

# Threads split the batch from 8 sequences each on, else the units: 7 is below for two threads,
# 24 at the edge for three, 34 above for four.
CASES = [
    *(Case(cell, 50, B, 60, 140, F32) for cell in CELLS for B in (1, 7, 24, 34)),
    *(Case(cell, 30, 34, 60, 70, dtype) for cell in CELLS for dtype in (F64, BF16)),
    *(Case(cell, 29, 34, 40, 130, F32, D=2, lengths=RAGGED) for cell in CELLS),
    *(Case(cell, 1, 9, 300, 500, F32) for cell in CELLS),  # few rows: the weights are not packed
    Case("lstm", 12, 7, 40, 200, F32, P=70, D=2),
    Case("lstm", 29, 34, 40, 130, BF16, P=140, lengths=RAGGED),
]


def uses_threads(case: Case) -> bool:
    """As csrc/recurrent/cpu.cpp decides."""
    enough = 1 << int(re.findall(r"kWorthAThread = 1 << (\d+);", CPU_CPP.read_text())[0])
    rows = sum(case.lengths) or case.T * case.B
    return 2 * rows * CELLS[case.cell].gates * case.H * (case.I + (case.P or case.H)) >= enough


def forward(layer: Layer) -> tuple[list[Tensor], list[Tensor]]:
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    return tensors, layer.with_tensors(tensors).ours()


def backward(tensors: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    cotangents = [torch.sin(torch.arange(t.numel())).view_as(t).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, cotangents)]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_threads_and_any_run(case, threads):
    assert uses_threads(case)
    layer = make(case)
    threads(1)
    expected = backward(*forward(layer))
    for count in (2, 3, 4, 3, 1):
        threads(count)
        assert_same(backward(*forward(layer)), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("counts", [(1, 3), (4, 1), (2, 4)], ids=str)
def test_another_number_of_threads_for_backward(cell, counts, threads):
    layer = make(Case(cell, 20, 12, 60, 140))
    threads(1)
    expected = backward(*forward(layer))
    threads(counts[0])
    kept = forward(layer)
    threads(counts[1])
    assert_same(backward(*kept), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_all_threads_flush_denormals_if_the_caller_does(cell, threads):
    layer = make(Case(cell, 20, 12, 60, 140, bias=False))
    for tensor in (layer.x, *layer.hx):
        tensor.mul_(1e-39)
    results = {}
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        for count in (1, 3):
            threads(count)
            results[flush, count] = backward(*forward(layer))
    for flush in (True, False):
        assert_same(results[flush, 3], results[flush, 1])
    pairs = zip(results[True, 1], results[False, 1], strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def module_of(cell: str) -> nn.RNNBase:
    options = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    kind = {"lstm": adl_kernels.LSTM, "gru": adl_kernels.GRU}.get(cell, adl_kernels.RNN)
    return kind(60, 140, num_layers=2, bidirectional=True, **options)


def train(module: nn.RNNBase, x: Tensor) -> list[Tensor]:
    y = module(x)[0]
    return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def infer(module: nn.RNNBase, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [module(x)[0]]


@pytest.mark.parametrize("count", [1, 2], ids=["1thread", "2threads"])
@pytest.mark.parametrize("cell", CELLS)
def test_python_threads_share_a_module(cell, count, threads):
    """Two train and two infer at once, each on a batch of its own."""
    threads(count)
    module = module_of(cell)
    sizes = {3: train, 20: infer, 40: train, 5: infer}
    jobs = [(run, torch.randn(10, B, 60)) for B, run in sizes.items()]
    expected = [run(module, x) for run, x in jobs]
    results: list[list[Tensor]] = []
    start = threading.Barrier(len(jobs))

    def work(k: int) -> None:
        run, x = jobs[k]
        for _ in range(3):
            start.wait()
            results.append([torch.tensor(k), *run(module, x)])

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 3 * len(jobs)
    for k, *tensors in results:
        assert_same(tensors, expected[k])


def test_the_number_of_threads_changes_while_others_compute(threads):
    threads(2)
    module, x = module_of("lstm"), torch.randn(20, 20, 60)
    expected = train(module, x)
    results: list[list[Tensor]] = []
    worker = threading.Thread(target=lambda: results.extend(train(module, x) for _ in range(10)))
    worker.start()
    while worker.is_alive():
        for count in (1, 3, 2):
            threads(count)
            assert_same(train(module, x), expected)
    worker.join()
    assert len(results) == 10
    for tensors in results:
        assert_same(tensors, expected)


def test_inside_a_parallel_region(threads):
    """Every thread of a team of OpenMP's calls a module, as an operator of torch's might."""
    threads(2)
    module, x = module_of("gru"), torch.randn(20, 20, 60)
    expected = infer(module, x)
    results: list[list[Tensor]] = []
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: results.append(infer(module, x)))
    gomp = ctypes.CDLL("libgomp.so.1")
    gomp.GOMP_parallel(call, None, ctypes.c_uint(3), ctypes.c_uint(0))
    assert len(results) == 3
    for tensors in results:
        assert_same(tensors, expected)
