"""The tiers of teams of blocks, emulated: the blocks of a cluster, and those of a whole grid."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lanes import slow
from layers import Case, assert_layer_is_accurate, gradients, gradients_in_tf32, make, widened
from test_extras import CHOOSERS, Asked, assert_as_defined
from test_tiers import assert_the_same_in_pieces
from tolerance import assert_accurate

from adl_kernels.recurrent.cell_facts import CELLS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SERVED = [name for name, cell in CELLS.items() if name != "gru_reset_before"]
OF_TORCH = [name for name in SERVED if hasattr(torch._VF, name)]
OWN = [name for name in SERVED if name not in OF_TORCH]
RAGGED = (4, 4, 3, 1, 1)

PLAIN = [
    *(Case(cell, 3, 3, 2, 64, BF16) for cell in OF_TORCH),
    *(Case(cell, 4, 5, 3, 72, F16, D=2, lengths=RAGGED) for cell in OF_TORCH),
    Case("lstm", 1, 1, 1, 40, BF16, bias=False),
    # A last team with less sequences, and states that are no whole tiles.
    Case("lstm", 4, 70, 1, 72, BF16),
    # More sequences than tiles of eight, and than the threads of a team own.
    Case("lstm", 3, 70, 1, 64, BF16),
    # Weights that do not fit into registers.
    Case("lstm", 2, 2, 1, 512, BF16),
]
ODD = [
    Case("lstm", 3, 3, 2, 133, BF16, D=2),
    Case("gru", 3, 3, 2, 66, F16),
    Case("rnn_relu", 3, 2, 2, 5, F16),
    Case("gru", 4, 5, 3, 70, BF16, D=2, lengths=RAGGED),
]
ASKED = [
    *(
        Asked(Case(cell, 5, 4, 3, 64, BF16, D=2), "lengths reset bptt")
        for cell in ("lstm", "gru", "rnn_tanh")
    ),
    *(Asked(Case(cell, 3, 2, 2, 64, dtype)) for cell in OWN for dtype in (BF16, F16)),
    *(Asked(Case(cell, 3, 2, 2, 64, BF16), "peephole sigmoid") for cell in CHOOSERS),
    Asked(Case("lstm", 5, 4, 3, 64, F16, lengths=(5, 5, 3, 1)), "bptt1"),
    Asked(Case("gru", 5, 4, 3, 64, F16), "lengths"),
    Asked(Case("lstm", 5, 4, 3, 64, F16, D=2), "reset"),
]


@pytest.fixture(params=["cluster", "grid"])
def tier(request, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", request.param)
    monkeypatch.setenv("ADL_EMULATED_SMS", "16")
    return request.param


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_layers(case, tier):
    assert_layer_is_accurate(case)


@pytest.mark.parametrize("case", ODD, ids=str)
def test_any_hidden_size(case, tier):
    assert_layer_is_accurate(case)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_what_else_is_asked_for(asked, tier):
    assert_as_defined(asked)


@pytest.mark.parametrize(
    "hidden_size, cell",
    [
        *((40, cell) for cell in SERVED),
        (320, "lstm"),
        *slow(*((320, cell) for cell in SERVED if cell != "lstm")),
    ],
)
def test_tf32(cell, hidden_size, tier, monkeypatch):
    monkeypatch.setenv("ADL_EMULATED_TF32", "1")
    # Few steps: errors of the gradients grow with each.
    layer = make(Case(cell, 3 if hidden_size < 100 else 2, 2, 3, hidden_size, F32))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = gradients(widened(layer), type(layer).reference, [c.double() for c in cotangents])
    ours = gradients(layer, type(layer).ours, cotangents)
    tf32 = gradients_in_tf32(layer, cotangents)
    for a, b, peer in zip(*([*x, *y] for x, y in (ours, exact, tf32)), strict=True):
        assert_accurate(a, peer, b, "outputs and gradients", tf32=peer)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("lengths", [(), RAGGED], ids=["padded", "packed"])
def test_a_scan_in_pieces(cell, lengths, tier, monkeypatch):
    case = Case(cell, 4, 5, 3, 64, BF16, D=2, lengths=lengths)
    same = partial(torch.testing.assert_close, rtol=0, atol=0)
    assert_the_same_in_pieces(case, same, monkeypatch)


def test_a_nan_stays_in_its_sequence(tier):
    layer = make(Case("lstm", 3, 9, 2, 64, BF16))
    clean = layer.ours()
    layer.x[1, 3, 0] = float("nan")
    dirty = layer.ours()
    others = [b for b in range(9) if b != 3]
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[:, others], b[:, others])
        assert b[:, 3].isnan().any()


def test_the_same_bits_again(tier):
    layer = make(Case("lstm", 3, 9, 2, 64, BF16))
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    once, again = (gradients(layer, type(layer).ours, cotangents) for _ in range(2))
    for a, b in zip([*once[0], *once[1]], [*again[0], *again[1]], strict=True):
        assert torch.equal(a, b)


def test_too_small_a_gpu_streams_what_a_grid_would_serve(monkeypatch):
    """Where the blocks of a grid cannot be under way at once."""
    monkeypatch.setenv("ADL_CUDA_TIER", "grid")
    monkeypatch.setenv("ADL_EMULATED_SMS", "16")
    monkeypatch.setenv("ADL_EMULATOR_SMS", "2")
    assert_layer_is_accurate(Case("lstm", 3, 2, 2, 64, BF16))


@pytest.mark.parametrize(
    "name, case",
    [
        ("grid", Case("lstm", 2, 2, 2, 64, F32)),
        ("cluster", Case("lstm", 2, 2, 2, 64, F32)),
        ("cluster", Case("gru_reset_before", 2, 2, 2, 64, BF16)),
        ("cluster", Case("lstm", 2, 2, 2, 64, BF16, P=32)),
    ],
    ids=str,
)
def test_a_tier_that_does_not_serve_says_so(name, case, monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", name)
    monkeypatch.setenv("ADL_EMULATED_SMS", "16")
    with pytest.raises(RuntimeError, match=f"ADL_CUDA_TIER={name} does not serve hidden size"):
        make(case).ours()


def test_a_tier_that_is_none_says_so(monkeypatch):
    monkeypatch.setenv("ADL_CUDA_TIER", "blocks")
    tiers = "streaming, block, cluster, grid or cudnn"
    with pytest.raises(RuntimeError, match=f"must be {tiers}, got blocks"):
        make(Case("lstm", 2, 2, 2, 9, BF16)).ours()
