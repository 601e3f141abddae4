"""Whether the tests of tests/gpu meet the tiers that they name, by the model, on an H100."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu import check_tier, few_ops, test_numbers, test_streams, test_teams
from layers import SHORT, Case
from pairs import KINDS

from adl_kernels import _C, selftest
from adl_kernels.recurrent.cell_facts import CELLS

pytestmark = pytest.mark.cpu_only

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def serves(tier: str, case: Case, tf32: bool, backward: bool) -> bool:
    """Whether this tier can have the case where ADL_CUDA_TIER asks for it."""
    if tier == "streaming":
        return True
    if case.P or case.cell == "gru_reset_before":
        return False
    cell = CELLS[case.cell]
    plan = _C.cuda_plan(
        gates=cell.gates,
        pre_activations=cell.pre_activations,
        hidden_size=case.H,
        sequences=case.B,
        steps=case.T,
        directions=case.D,
        dtype="tf32" if tf32 and case.dtype == F32 else SHORT[case.dtype],
        backward=backward,
        tier=tier,
    )
    return plan["serves"]


def meant() -> Iterator[tuple[str, str, Case, bool]]:
    """A test, the tier that it is meant for, a case, and whether float32 is tf32 there."""
    for tier, cases in test_teams.CASES.items():
        for case in cases:
            yield "teams", tier, case, True
    for tier, H in test_teams.UNITS.items():
        for cell in ("lstm", "gru"):
            yield "lengths and resets", tier, Case(cell, 40, 20, 16, H, BF16, D=2), True
    for tier, H in test_teams.FULL.items():
        yield "several streams", tier, Case("lstm", 200, 16, 64, H, BF16), True
    for tier, H in test_streams.TIERS.items():
        for kind in KINDS:
            for dtype in (F32, BF16):
                yield "streams", tier, Case(kind.lower(), 20, 8, 24, H, dtype, D=2), True
    for case in test_numbers.SMALL:
        for tf32 in (False, True):
            if case.cell != "gru_reset_before":
                yield "every tier", "block", case, tf32
    for tier, H in check_tier.UNITS.items():
        for cell in ("lstm", "gru"):
            for dtype in check_tier.DTYPES.values():
                yield "check_tier", tier, Case(cell, 50, 16, 64, H, dtype), True
    for tier, sizes in few_ops.TIERS.items():
        for H in sizes:
            yield "few ops", tier, Case("lstm", 4, 5, 6, H, F32, D=2), True
    for tier, sizes in selftest.TIERS.items():
        for T, B, I, H, D in sizes:
            for dtype in (F32, BF16):
                yield "self-test", tier, Case("lstm", T, B, I, H, dtype, D=D), True


@pytest.mark.parametrize("where, tier, case, tf32", list(meant()), ids=str)
def test_a_case_meets_its_tier(where: str, tier: str, case: Case, tf32: bool) -> None:
    for backward in (False, True):
        assert serves(tier, case, tf32, backward), "backward" if backward else "forward"


def test_exact_float32_is_none_of_a_teams() -> None:
    """What these tests failed by: their cases in float32 ran without tf32."""
    cases = [case for case in test_teams.CASES["grid"] if case.dtype == F32]
    assert cases and not any(serves("grid", case, False, False) for case in cases)
