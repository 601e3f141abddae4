"""Gradients of the layers, used in every way that torch.nn allows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import (
    BOTH,
    FIRST,
    MARKS,
    TWO,
    B,
    H,
    I,
    T,
    assert_same,
    contiguous,
    cotangents,
    every_class,
    every_kind,
    is_lstm,
    leaves,
    pair,
    random,
    results,
    same_tensors,
    states,
    tensors,
)
from torch import Tensor

pytestmark = MARKS


def slices(*shape: int, seed: int) -> Tensor:
    """Every second element of something larger, in every dimension."""
    return random(*(2 * size for size in shape), seed=seed)[tuple(slice(1, None, 2) for _ in shape)]


def transposed(*shape: int, seed: int) -> Tensor:
    return random(*reversed(shape), seed=seed).permute(*reversed(range(len(shape))))


def expanded(*shape: int, seed: int) -> Tensor:
    return random(shape[0], 1, shape[-1], seed=seed).expand(shape)


@every_kind
@pytest.mark.parametrize("layout", [slices, transposed, expanded], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options", [{}, FIRST | TWO | BOTH], ids=["plain", "batch-first-bidirectional-two-layers"]
)
def test_any_strides_of_input_states_and_upstream_gradients(
    kind: str, layout: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    theirs, ours = pair(kind, **options)
    x = layout(T, B, I, seed=1)
    shapes = [h.shape for h in tensors(states(ours, x.size(0 if ours.batch_first else 1)))]
    found = []
    for module in (theirs, ours):
        inputs = [leaves(x), *(leaves(layout(*s, seed=k)) for k, s in enumerate(shapes))]
        assert not any(t.is_contiguous() for t in inputs)
        hx = tuple(inputs[1:]) if is_lstm(module) else inputs[1]
        outputs = tensors(module(inputs[0], contiguous(hx) if module is theirs else hx))
        upstream = [layout(*o.shape, seed=20 + k) for k, o in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, [*inputs, *module.parameters()], upstream)
        found.append([*outputs, *gradients])
    same_tensors(found[1], found[0])


LOSSES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "output": lambda outputs: outputs[0].square().sum(),
    "h_n": lambda outputs: outputs[1].square().sum(),
    "last-state": lambda outputs: outputs[-1].sin().sum(),
    "one-step": lambda outputs: outputs[0][2].square().sum(),
    "one-number": lambda outputs: outputs[0][1, 2, 0],
    "forward-direction": lambda outputs: outputs[0][..., :H].square().sum(),
    "one-layer-of-h_n": lambda outputs: outputs[1][1].square().sum(),
    "all": lambda outputs: sum(o.cos().sum() for o in outputs),
}


@every_kind
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_on_some_of_the_outputs(kind: str, loss: str) -> None:
    found = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        inputs = [random(T, B, I).requires_grad_(), *tensors(leaves(states(module, B)))]
        outputs = tensors(module(inputs[0], tuple(inputs[1:]) if is_lstm(module) else inputs[1]))
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(
            LOSSES[loss](outputs), [*inputs, *parameters], allow_unused=True
        )
        keys = ["x", *(f"hx {k}" for k in range(len(inputs) - 1)), *names]
        # torch says None for some and zeros for others of those that do not matter.
        found.append(
            {
                key: torch.zeros_like(t) if g is None else g
                for key, g, t in zip(keys, gradients, [*inputs, *parameters], strict=True)
            }
        )
    assert_same(found[1], found[0])


@every_kind
def test_backward_twice_gives_the_same(kind: str) -> None:
    _, ours = pair(kind, num_layers=2, bidirectional=True)
    x = random(T, B, I).requires_grad_()
    outputs = tensors(ours(x))
    inputs = [x, *ours.parameters()]
    first, second = (
        torch.autograd.grad(outputs, inputs, cotangents(outputs), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.grad(outputs, inputs, cotangents(outputs))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(outputs, inputs, cotangents(outputs))


@pytest.mark.cpu_only
@every_kind
def test_batched_gradients(kind: str) -> None:
    """Several upstream gradients at once: what torch calls is_grads_batched and vectorize."""
    found = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        x = random(T, B, I).requires_grad_()
        y = module(x)[0]
        upstream = random(4, *y.shape)
        inputs = [x, *module.parameters()]
        gradients = torch.autograd.grad(y, inputs, upstream, is_grads_batched=True)
        jacobian = torch.autograd.functional.jacobian(
            lambda x, m=module: m(x)[0], x.detach(), vectorize=True
        )
        found.append([*gradients, jacobian])
    same_tensors(found[1], found[0])


@every_kind
def test_saved_tensors_may_be_packed_away(kind: str) -> None:
    """As torch.autograd.graph.save_on_cpu does it."""
    _, ours = pair(kind, num_layers=2)
    expected, seen = results(ours, random(T, B, I)), []

    def put_away(t: Tensor) -> bytes:
        buffer = io.BytesIO()
        torch.save(t, buffer)
        seen.append(t)
        return buffer.getvalue()

    with torch.autograd.graph.saved_tensors_hooks(
        put_away, lambda kept: torch.load(io.BytesIO(kept))
    ):
        got = results(ours, random(T, B, I))
    assert seen
    assert_same(got, expected, 0)


@every_class
def test_anomaly_detection(kind: str) -> None:
    theirs, ours = pair(kind)
    expected = results(theirs, random(T, B, I))
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        assert_same(results(ours, random(T, B, I)), expected)


@every_kind
def test_gradients_accumulate(kind: str) -> None:
    theirs, ours = pair(kind)
    for module in (theirs, ours):
        for seed in (1, 2):
            tensors(module(random(T, B, I, seed=seed)))[0].sum().backward()
    same_tensors([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@every_kind
def test_gradient_of_a_gradient(kind: str) -> None:
    """A gradient penalty: the loss holds the gradient with respect to the input."""
    penalties = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        x = random(T, B, I).requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):  # it has no second derivative
            outputs = tensors(module(x, leaves(states(module, B))))
        (dx,) = torch.autograd.grad(outputs, x, cotangents(outputs), create_graph=True)
        inputs = [x, *module.parameters()]
        again = torch.autograd.grad(dx.square().sum(), inputs, allow_unused=True)
        penalties.append(
            [torch.zeros_like(t) if g is None else g for g, t in zip(again, inputs, strict=True)]
        )
    same_tensors(penalties[1], penalties[0], 1e-11)


@every_kind
def test_an_input_written_after_the_call_is_noticed(kind: str) -> None:
    for module in pair(kind):
        x = random(T, B, I)
        outputs = tensors(module(x))
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(outputs, cotangents(outputs))


@every_kind
def test_no_grad_and_frozen_modules_keep_no_graph(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    with torch.no_grad():
        outputs = ours(x)
    with torch.inference_mode():
        inferred = ours(x)
    ours.requires_grad_(False)
    frozen = ours(x)
    for found in (outputs, inferred, frozen):
        assert not any(o.requires_grad for o in tensors(found))
        same_tensors(found, [o.detach() for o in tensors(theirs(x))])
