"""The layers at work: training, checkpointing, sharing, tracing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import (
    MARKS,
    B,
    H,
    I,
    T,
    assert_same,
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
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
)
from torch.utils.checkpoint import checkpoint

pytestmark = MARKS


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_training_has_torchs_loss_curve(kind: str, packed: bool) -> None:
    curves = []
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    options["dropout"] = 0.3 if DEVICE == "cpu" else 0.0  # cuDNN draws in its own way
    for layer in pair(kind, **options):
        torch.manual_seed(5)
        head = nn.Linear(2 * H, 2, dtype=torch.float64, device=DEVICE)
        optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
        losses = []
        for step in range(5):
            x, hx = random(B, T, I, seed=step), None
            if packed:
                x = pack_padded_sequence(x, torch.tensor([2, 5, 4]), True, enforce_sorted=False)
            y, hx = layer(x)
            y = pad_packed_sequence(y, batch_first=True)[0] if packed else y
            loss = head(y).square().mean() + tensors(hx)[-1].sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
    assert curves[1][-1] < curves[1][0]


@every_kind
def test_states_carried_over_and_detached(kind: str) -> None:
    """Truncated backpropagation: the state of one call is the hx of the next."""
    found = []
    for module in pair(kind, num_layers=2):
        hx, kept = None, []
        for step in range(3):
            y, hx = module(random(T, B, I, seed=step), hx)
            y.square().sum().backward()
            hx = tuple(h.detach() for h in hx) if is_lstm(module) else hx.detach()
            kept += [y, *tensors(hx)]
        found.append([*kept, *(p.grad for p in module.parameters())])
    same_tensors(found[1], found[0])


@pytest.mark.cpu_only
@every_class
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_complex_modules_run_torchs_own_layer(kind: str, packed: bool) -> None:
    theirs, ours = pair(kind, dtype=torch.complex64, num_layers=2, bidirectional=True)
    x = random(*((9, I) if packed else (T, B, I)), dtype=torch.complex64) * (1 - 0.5j)
    hx = states(ours, B, torch.complex64)

    def pack(x: Tensor) -> Any:
        # torch packs complex numbers without a gradient only.
        return PackedSequence(x, torch.tensor([3, 2, 2, 1, 1])) if packed else x

    for states_given in (None, hx):
        expected = results(theirs, x, states_given, pack)
        assert_same(results(ours, x, states_given, pack), expected, 0)


@every_class
def test_checkpointing_draws_the_same_dropout_again(kind: str) -> None:
    _, ours = pair(kind, num_layers=3, dropout=0.5)
    expected = results(ours, random(T, B, I))
    plain = ours.forward
    ours.forward = lambda *args: checkpoint(plain, *args, use_reentrant=False)
    got = results(ours, random(T, B, I))
    # Recomputing leaves the generator elsewhere.
    del got["random state"], expected["random state"]
    assert_same(got, expected, 0)


@pytest.mark.cpu_only
@every_class
def test_shared_memory_is_shared(kind: str) -> None:
    _, ours = pair(kind)
    assert not any(p.is_shared() for p in ours._flat_weights)
    ours.share_memory()
    assert all(p.is_shared() for p in ours._flat_weights)


@every_class
def test_tracing(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says what it cannot see
        traced = torch.jit.trace(ours, (random(T, B, I),))
    x = random(T + 2, B + 1, I)
    same_tensors(traced(x), theirs(x))


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_recomputed_gates_are_the_same(kind: str, packed: bool, num_layers: int) -> None:
    _, layer = pair(kind, num_layers=num_layers, bidirectional=True, dropout=0.2 * (num_layers - 1))
    x = random(T, B, I).requires_grad_()
    lengths, found = torch.tensor([2, 5, 4]), []
    for layer.recompute in (False, True):
        torch.manual_seed(3)
        y = layer(pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x)[0]
        y = y.data if packed else y
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    assert all(map(torch.equal, *found))


def test_recomputing_keeps_no_gates() -> None:
    _, layer = pair("LSTM", 8, 16, num_layers=2)
    kept = []
    for layer.recompute in (False, True):
        kept.append(0)

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(random(T, B, 8))
    assert kept[1] < kept[0] / 2
