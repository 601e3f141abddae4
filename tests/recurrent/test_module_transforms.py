"""Autocast, torch.func and forward-mode AD of the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import (
    CASES,
    CELL_NAMES,
    MARKS,
    B,
    H,
    I,
    T,
    cotangents,
    every_class,
    every_kind,
    is_lstm,
    pair,
    random,
    results,
    same_tensors,
    states,
    tensors,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from adl_kernels.recurrent import reference

pytestmark = MARKS


# Autocast


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["one-layer", "no-hx", "packed-unsorted-bidirectional-two-layers"])
def test_autocast(kind: str, dtype: torch.dtype, name: str) -> None:
    """Not compared with torch under autocast, whose GRU computes in float32 there."""
    case = CASES[name]
    theirs, ours = pair(kind, dtype=torch.float32, **case.options)
    x = random(*case.shape, dtype=torch.float32)
    hx = None if case.hx is None else states(ours, B, torch.float32)
    expected = results(theirs, x, hx, case.pack(theirs))
    with torch.autocast(DEVICE, dtype):
        got = results(ours, x, hx, case.pack(ours))
    scale = 8 * torch.finfo(dtype).eps
    for key, true in expected.items():
        is_output = key.startswith("output")
        assert got[key].dtype == (dtype if is_output else true.dtype), key
        bound = scale * max(1.0, true.abs().max().item())
        assert (got[key].double() - true.double()).abs().max().item() <= bound, key


@every_kind
def test_autocast_takes_states_and_inputs_of_other_dtypes(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32, num_layers=2)
    x, hx = random(T, B, I, dtype=torch.float32), states(ours, B, torch.float32)
    low = torch.bfloat16
    small = tuple(h.to(low) for h in hx) if is_lstm(ours) else hx.to(low)
    with torch.autocast(DEVICE, low):
        expected = ours(x, hx)
        for got in (ours(x, small), ours(x.to(low), hx), ours(x.to(low), small)):
            assert all(o.dtype == low for o in tensors(got))
            same_tensors(got, expected, 0)
    with torch.autocast(DEVICE, enabled=False):
        assert ours(x, hx)[0].dtype == torch.float32


@every_kind
def test_backward_outside_autocast(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32)
    x, found = random(T, B, I, dtype=torch.float32), []
    for inside in (True, False):
        with torch.autocast(DEVICE, torch.bfloat16):
            y = ours(x)[0]
            if inside:
                gradients = torch.autograd.grad(y.sum(), ours.parameters())
        if not inside:
            gradients = torch.autograd.grad(y.sum(), ours.parameters())
        found.append(gradients)
    same_tensors(found[1], found[0], 0)


@every_kind
def test_autocast_under_vmap(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32, num_layers=2)
    x = random(4, T, B, I, dtype=torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = [torch.stack(o) for o in zip(*(outputs_of(ours)(one) for one in x), strict=True)]
        got = vmap(outputs_of(ours))(x)
    same_tensors(got, expected, 0.02)


@every_kind
def test_autocast_leaves_double_alone(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    with torch.autocast(DEVICE, torch.bfloat16):
        same_tensors(ours(x, states(ours, B)), theirs(x, states(theirs, B)))


@every_class
def test_autocast_of_a_low_precision_module(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.bfloat16)
    x = random(T, B, I, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16):
        same_tensors(ours(x), ours.float()(x), 0)


# torch.func and forward-mode AD


def outputs_of(module: nn.RNNBase) -> Callable[..., tuple[Tensor, ...]]:
    """The module as a function of tensors that returns a tuple of tensors."""

    def run(x: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
        given = None if not hx else tuple(hx) if is_lstm(module) else hx[0]
        return tuple(tensors(module(x, given)))

    return run


@every_kind
def test_vmap_over_inputs(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x = random(4, T, B, I)
    expected = [torch.stack(o) for o in zip(*(outputs_of(theirs)(one) for one in x), strict=True)]
    same_tensors(vmap(outputs_of(ours))(x), expected)
    same_tensors(vmap(outputs_of(ours), in_dims=1)(x.transpose(0, 1)), expected)


@every_kind
def test_vmap_over_inputs_and_states(kind: str) -> None:
    theirs, ours = pair(kind, batch_first=True)
    x = random(4, T, I)  # unbatched inside
    hx = [random(4, 1, H, seed=k) for k in range(2 if is_lstm(ours) else 1)]
    run = outputs_of(theirs)
    each = [run(x[k], *(h[k] for h in hx)) for k in range(4)]
    same_tensors(vmap(outputs_of(ours))(x, *hx), [torch.stack(o) for o in zip(*each, strict=True)])


@every_class
def test_vmap_of_dropout(kind: str) -> None:
    _, ours = pair(kind, num_layers=2, dropout=0.5)
    x = random(T, B, I)
    twice = torch.stack([x, x])
    torch.manual_seed(4)
    expected = ours(x)[0]
    torch.manual_seed(4)
    same = vmap(lambda x: ours(x)[0], randomness="same")(twice)
    same_tensors(same, torch.stack([expected, expected]))
    different = vmap(lambda x: ours(x)[0], randomness="different")(twice)
    assert not torch.allclose(different[0], different[1])


@every_kind
def test_vmap_over_an_ensemble(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        theirs.reset_parameters()
        members.append(copy.deepcopy(theirs))
    stacked, _ = torch.func.stack_module_state(members)
    got = vmap(lambda p: functional_call(ours, p, (x,))[0])(stacked)
    same_tensors(got, torch.stack([member(x)[0] for member in members]))


@every_kind
def test_gradients_per_sample(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2)
    x = random(T, B, I)

    def loss(module: nn.RNNBase, parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, parameters, (sample,))[0].square().sum()

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    got = vmap(grad(lambda p, s: loss(ours, p, s)), in_dims=(None, 1))(parameters, x)
    for b in range(B):
        expected = torch.autograd.grad(theirs(x[:, b])[0].square().sum(), theirs.parameters())
        same_tensors([g[b] for g in got.values()], expected)


@every_kind
def test_functional_gradient_of_packed_sequences(kind: str) -> None:
    case = CASES["packed-unsorted-bidirectional-two-layers"]
    theirs, ours = pair(kind, **case.options)
    x, hx = random(*case.shape), states(ours, B)
    expected = torch.autograd.grad(
        [o.square().sum() for o in tensors(theirs(case.pack(theirs)(x), hx))], theirs.parameters()
    )

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        outputs = tensors(functional_call(ours, parameters, (case.pack(ours)(x), hx)))
        return sum(o.square().sum() for o in outputs)

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    same_tensors(list(grad(loss)(parameters).values()), expected)


@every_kind
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd], ids=lambda f: f.__name__)
def test_jacobians(kind: str, jacobian: Callable[..., Any]) -> None:
    theirs, ours = pair(kind, bidirectional=True)
    x = random(3, 2, I)
    expected = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x)
    same_tensors(jacobian(lambda x: ours(x)[0])(x), expected)


@pytest.mark.cpu_only
@every_kind
def test_jvp_and_vjp(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    primals = [random(T, B, I), *tensors(states(ours, B))]
    directions = [random(*p.shape, seed=30 + k) for k, p in enumerate(primals)]
    # In double torch's LSTM has a forward derivative; in float32 oneDNN's has none.
    expected = jvp(outputs_of(theirs), tuple(primals), tuple(directions))
    same_tensors(jvp(outputs_of(ours), tuple(primals), tuple(directions)), expected)
    outputs, pull = vjp(outputs_of(theirs), *primals)
    upstream = tuple(cotangents(list(outputs)))
    outputs, ours_pull = vjp(outputs_of(ours), *primals)
    same_tensors([*outputs, *ours_pull(upstream)], [*expected[0], *pull(upstream)])


@pytest.mark.cpu_only
@every_kind
def test_dual_numbers_in_inputs_and_weights(kind: str) -> None:
    theirs, ours = pair(kind)
    x, found = random(T, B, I), []
    for module in (theirs, ours):
        with forward_ad.dual_level():
            weights = {
                name: forward_ad.make_dual(p.detach(), random(*p.shape, seed=k))
                for k, (name, p) in enumerate(module.named_parameters())
            }
            dual = forward_ad.make_dual(x, random(*x.shape, seed=50))
            outputs = tensors(functional_call(module, weights, (dual,)))
            found.append([part for o in outputs for part in forward_ad.unpack_dual(o)])
    same_tensors(found[1], found[0])


@every_kind
def test_dual_numbers_in_float32(kind: str) -> None:
    """Against the definition: torch's LSTM cannot do it."""
    _, ours = pair(kind, dtype=torch.float32)
    x, dx = random(T, B, I, dtype=torch.float32), random(T, B, I, seed=2, dtype=torch.float32)
    hx = tensors(states(ours, B, torch.float32))
    weights = [p.detach() for p in ours.parameters()]
    _, expected = jvp(
        lambda x: tuple(reference.layer(CELL_NAMES[kind], x, hx, weights)), (x,), (dx,)
    )
    with forward_ad.dual_level():
        outputs = outputs_of(ours)(forward_ad.make_dual(x, dx), *hx)
        got = [forward_ad.unpack_dual(o).tangent for o in outputs]
    same_tensors(got, expected, 1e-5)


@pytest.mark.cpu_only
@every_class
def test_hessians(kind: str) -> None:
    theirs, ours = pair(kind)
    x, direction = random(3, 2, I), random(3, 2, I, seed=2)
    loss = [lambda x, m=m: m(x)[0].square().sum() for m in (theirs, ours)]
    _, expected = torch.autograd.functional.hvp(loss[0], x, direction)
    same_tensors(torch.autograd.functional.hvp(loss[1], x, direction)[1], expected)
    same_tensors(jvp(grad(loss[1]), (x,), (direction,))[1], expected)
    expected = torch.autograd.functional.hessian(loss[0], x)
    same_tensors(hessian(loss[1])(x), expected)
