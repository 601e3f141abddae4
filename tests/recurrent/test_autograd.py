"""Derivatives of the ops: opcheck, gradcheck, gradgradcheck, and every subset of gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from lanes import slow_unless
from layers import Case, make

from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import LayerOptions

F64 = torch.float64
SMALL = [
    *(Case(cell, 4, 3, 2, 3, F64) for cell in CELLS),
    *(Case(cell, 3, 2, 2, 2, F64, D=2, bias=False) for cell in CELLS),
    *(Case(cell, 4, 3, 2, 3, F64, D=2, lengths=(4, 2, 1)) for cell in CELLS),
    Case("lstm", 3, 2, 2, 3, F64, P=2),
    Case("lstm", 4, 3, 2, 3, F64, P=1, D=2, lengths=(4, 2, 1)),
]


def function(layer):
    """The op as a function of x, hx and weights, and those tensors."""
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    return lambda *args: tuple(layer.with_tensors(list(args)).ours()), tensors


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_derivative(case):
    assert torch.autograd.gradcheck(*function(make(case)))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_derivative(case):
    assert torch.autograd.gradgradcheck(*function(make(case)), fast_mode=True)


def test_third_derivative():
    layer = make(Case("gru", 2, 1, 1, 2, F64, bias=False))
    run, tensors = function(layer)

    def first(*args):
        return torch.autograd.grad(sum(t.sum() for t in run(*args)), args, create_graph=True)

    assert torch.autograd.gradgradcheck(first, tensors)


def test_derivatives_of_tensors_that_depend_on_each_other():
    """h_0 computed from x, one weight used twice: partial derivatives must not mix."""
    layer = make(Case("rnn_tanh", 3, 2, 4, 4, F64, bias=False))
    x = layer.x.detach().clone().requires_grad_()
    w = layer.weights[0].detach().clone().requires_grad_()

    def loss(run):
        y, h_n = run(layer.with_tensors([x, x[:1].tanh(), w, w]))
        (dx,) = torch.autograd.grad((y**2).sum() + h_n.sum(), [x], create_graph=True)
        return torch.autograd.grad((dx**2).sum(), [x, w])

    for ours, exact in zip(loss(type(layer).ours), loss(type(layer).reference), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def has_all(case):
    """Both directions and lengths; a cell of each family."""
    return bool(case.lengths) and case.cell in ("lstm", "gru_reset_before", "rnn_tanh")


@pytest.mark.parametrize("case", slow_unless(has_all, SMALL), ids=str)
def test_opcheck(case):
    layer, cell = make(case), CELLS[case.cell]
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    arguments = layer.with_tensors(tensors)
    args = (arguments.x, arguments.hx, arguments.weights, layer.batch_sizes)
    torch.library.opcheck(cell.op, args)
    torch.library.opcheck(cell.forward_op, args)

    with torch.no_grad():
        outputs = cell.forward_op(*args)
    args = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in args)
    hx, weights = [[t.detach().clone() for t in list_] for list_ in args[1:3]]
    grads = [torch.randn_like(t) for t in outputs[: 1 + cell.states]]
    for given, need in ((grads, True), ([None, *grads[1:]], False)):
        needs = [True, *[need] * len(weights)]
        saved = outputs[1 + cell.states :]
        torch.library.opcheck(
            cell.backward_op,
            (
                given,
                args[0],
                hx,
                weights,
                *LayerOptions(layer.batch_sizes),
                outputs[0],
                saved,
                needs,
            ),
        )


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_any_subset_of_the_inputs(cell):
    layer = make(Case(cell, 3, 2, 4, 5, F64, D=2))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    full = [t.detach().clone().requires_grad_() for t in layer.tensors]
    expected = torch.autograd.grad(layer.with_tensors(full).ours(), full, cotangents)
    count = len(full)
    subsets = [*itertools.combinations(range(count), 1), *itertools.combinations(range(count), 2)]
    subsets += [tuple(range(count)[:-1]), tuple(range(1, count))]
    for subset in subsets:
        tensors = [t.detach().clone() for t in layer.tensors]
        wanted = [tensors[k].requires_grad_() for k in subset]
        grads = torch.autograd.grad(layer.with_tensors(tensors).ours(), wanted, cotangents)
        assert all(torch.equal(g, expected[k]) for g, k in zip(grads, subset, strict=True)), subset


@pytest.mark.parametrize("cell", CELLS)
def test_loss_on_any_subset_of_the_outputs(cell):
    layer = make(Case(cell, 3, 2, 4, 5, F64))
    for used in itertools.product([True, False], repeat=1 + len(layer.hx)):
        if not any(used):
            continue
        results = []
        for run in (type(layer).ours, type(layer).reference):
            tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
            outputs = run(layer.with_tensors(tensors))
            loss = sum((t**2).sum() for t, use in zip(outputs, used, strict=True) if use)
            results.append(torch.autograd.grad(loss, tensors, allow_unused=True))
        for ours, exact in zip(*results, strict=True):
            torch.testing.assert_close(ours, torch.zeros_like(ours) if exact is None else exact)


def test_backward_twice_gives_the_same():
    layer = make(Case("lstm", 4, 3, 5, 6))
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    loss = layer.with_tensors(tensors).ours()[0].sum()
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    second = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_change_in_place_before_backward_is_noticed():
    layer = make(Case("gru", 4, 3, 5, 6))
    tensors = [t.detach().clone().requires_grad_() for t in layer.tensors]
    y = layer.with_tensors(tensors).ours()[0]
    with torch.no_grad():
        tensors[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
