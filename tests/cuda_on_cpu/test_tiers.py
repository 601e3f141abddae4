"""Every tier of the CUDA kernels, emulated: `pytest --cuda-on-cpu VARIANT tests/cuda_on_cpu`.

Small cases, because they run under many schedules, the race detector and the sanitizers.
"""

from __future__ import annotations

import pytest
import torch
from layers import Case, assert_layer_is_accurate, gradients, gradients_in_tf32, make, widened
from tolerance import assert_accurate

from adl_kernels.recurrent.cell_facts import CELLS

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
RAGGED = (4, 4, 3, 1, 1)
# Those that torch has; test_extras.py has all others.
CELLS_OF_TORCH = [name for name in CELLS if hasattr(torch._VF, name)]
IN_BLOCKS = [name for name in CELLS if name != "gru_reset_before"]

BLOCK = [
    *(Case(cell, 4, 5, 3, 18, dtype, D=2) for cell in CELLS_OF_TORCH for dtype in (F32, BF16, F16)),
    *(Case(cell, 4, 5, 3, 20, F32, D=2, lengths=RAGGED) for cell in CELLS_OF_TORCH),
    *(Case(cell, 3, 1, 2, 1, BF16, bias=False) for cell in CELLS_OF_TORCH),
    # Weights that do not fit into registers lie in shared memory.
    Case("lstm", 2, 3, 2, 70, F32),
    Case("gru", 2, 3, 2, 90, F32, D=2),
    # As many sequences for a block as it takes.
    Case("lstm", 2, 33, 2, 17, BF16),
    Case("gru", 2, 33, 2, 17, F32),
    # As many units.
    Case("lstm", 2, 2, 1, 128, BF16),
]
STREAMING = [
    *(Case(cell, 3, 2, 4, 33, dtype) for cell in CELLS_OF_TORCH for dtype in (F64, F32, BF16, F16)),
    *(Case(cell, 4, 5, 3, 7, F32, D=2, lengths=RAGGED) for cell in CELLS_OF_TORCH),
    *(Case("lstm", 3, 4, 5, 9, dtype, D=2, P=4) for dtype in (F32, BF16, F16)),
    Case("lstm", 4, 5, 3, 7, F64, D=2, P=3, bias=False, lengths=RAGGED),
    Case("gru", 2, 2, 3, 300, F32),
]


@pytest.fixture
def tier(monkeypatch):
    return lambda name: monkeypatch.setenv("ADL_CUDA_TIER", name)


def assert_the_same_in_pieces(case: Case, assert_same, monkeypatch) -> None:
    layer = make(case)
    whole = layer.ours()
    bytes_of_a_step = case.D * case.B * CELLS[case.cell].gates * case.H * 4
    for steps in (1, 3):  # which does not divide four
        monkeypatch.setenv("ADL_EMULATED_PROJECTED", str(steps * bytes_of_a_step))
        for a, b in zip(layer.ours(), whole, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("case", BLOCK, ids=str)
def test_block_resident(case, tier):
    tier("block")
    assert_layer_is_accurate(case)


@pytest.mark.parametrize("case", STREAMING, ids=str)
def test_streaming(case, tier):
    tier("streaming")
    assert_layer_is_accurate(case)


@pytest.mark.parametrize("cell", IN_BLOCKS)
@pytest.mark.parametrize("hidden_size", [18, 90])
def test_tf32(cell, hidden_size, tier, monkeypatch):
    tier("block")
    case = Case(cell, 3, 5, 3, hidden_size, F32)
    layer = make(case)
    cotangents = [torch.randn_like(t) for t in layer.ours()]
    exact = gradients(widened(layer), type(layer).reference, [c.double() for c in cotangents])
    plain = gradients(layer, type(layer).ours, cotangents)
    monkeypatch.setenv("ADL_EMULATED_TF32", "1")
    rounded = gradients(layer, type(layer).ours, cotangents)
    tf32 = gradients_in_tf32(layer, cotangents)
    for *three, peer in zip(*([*a, *b] for a, b in (rounded, plain, exact, tf32)), strict=True):
        assert_accurate(*three, "outputs and gradients", tf32=peer)
    assert not torch.equal(rounded[0][0], plain[0][0])


def test_a_single_step_is_exact_unless_products_may_be_tf32(tier, monkeypatch):
    """torch's cells have a switch of their own, that of products."""
    tier("block")
    one, two = (make(Case("lstm", T, 3, 4, 18, F32)) for T in (1, 2))
    exact = one.ours(), two.ours()
    monkeypatch.setenv("ADL_EMULATED_TF32", "1")
    assert torch.equal(one.ours()[0], exact[0][0])
    assert not torch.equal(two.ours()[0], exact[1][0])
    monkeypatch.setenv("ADL_EMULATED_TF32_PRODUCTS", "1")
    assert not torch.equal(one.ours()[0], exact[0][0])


@pytest.mark.parametrize(
    "name, cell", [*(("block", c) for c in IN_BLOCKS), *(("streaming", c) for c in CELLS)]
)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("lengths", [(), RAGGED], ids=["padded", "packed"])
def test_a_scan_in_pieces(cell, dtype, lengths, name, tier, monkeypatch):
    """Where W_ih x would take too much memory, a few steps at a time are projected and scanned."""
    tier(name)
    case = Case(cell, 4, 5, 3, 18, dtype, D=2, lengths=lengths)
    assert_the_same_in_pieces(case, torch.testing.assert_close, monkeypatch)


@pytest.mark.parametrize("cell", IN_BLOCKS)
def test_a_nan_stays_in_its_sequence(cell, tier):
    tier("block")
    layer = make(Case(cell, 3, 9, 2, 17, BF16))
    clean = layer.ours()
    layer.x[1, 3, 0] = float("nan")
    dirty = layer.ours()
    others = [b for b in range(9) if b != 3]
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[:, others], b[:, others])
        assert b[:, 3].isnan().any()


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", 2, 2, 2, 129, BF16),
        Case("lstm", 2, 2, 2, 9, F32, P=3),
        Case("gru", 2, 2, 2, 9, F64),
        Case("gru_reset_before", 2, 2, 2, 9, F32),
    ],
    ids=str,
)
def test_a_tier_that_does_not_serve_says_so(case, tier):
    tier("block")
    with pytest.raises(RuntimeError, match="ADL_CUDA_TIER=block does not serve hidden size"):
        make(case).ours()
