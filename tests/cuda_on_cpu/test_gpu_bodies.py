"""The bodies of the tests that only a GPU runs, on small cases over the emulated device."""

from __future__ import annotations

import pytest
import torch
from gpu import check_tier, test_conv, test_numbers, test_sizes, test_teams
from lanes import slow
from layers import Case

from adl_kernels import selftest
from adl_kernels.recurrent.cell_facts import CELLS

F32, BF16 = torch.float32, torch.bfloat16
TEAMS = ["cluster", "grid"]
OWN = [name for name in CELLS if not hasattr(torch._VF, name)]


@pytest.fixture(autouse=True)
def multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_EMULATED_SMS", "16")


@test_numbers.exact_and_tf32
@pytest.mark.parametrize("tier", ["block", "streaming"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu", *OWN])
def test_every_tier(cell: str, tier: str, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(cell, 6, 3, 4, 17, F32, D=2)
    if (cell, tier) == ("gru_reset_before", "block"):
        with pytest.raises(pytest.skip.Exception, match="does not serve"):
            test_numbers.test_every_tier(case, tier, tf32, monkeypatch)
        return
    test_numbers.test_every_tier(case, tier, tf32, monkeypatch)


@pytest.mark.parametrize("tier", ["grid", *slow("cluster")])
@pytest.mark.parametrize("cell", ["lstm_no_forget", *slow("lstm", "gru")])
def test_teams_in_float32(
    cell: str, tier: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(cell, 3, 2, 3, 40, F32)
    test_teams.test_at_most_twice_the_error_of_cudnn(tier, case, monkeypatch)
    test_teams.test_the_same_bits_every_time(tier, case, monkeypatch)


@pytest.mark.parametrize("tier", TEAMS)
@pytest.mark.parametrize("extras", [False, True], ids=["steps", "extras"])
def test_teams_as_streamed(tier: str, extras: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    test_teams.assert_as_streamed(tier, monkeypatch, "GRU", 7, 4, 64, extras)


@pytest.mark.parametrize("cell", CELLS)
def test_a_long_scan(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test_sizes.assert_a_long_scan_is_accurate(cell, 40, monkeypatch)


@pytest.mark.parametrize("last", [False, True])
def test_the_last_image(last: bool) -> None:
    test_conv.assert_the_last_image_is_as_alone(3, 4, 10, 3, last)


@pytest.mark.parametrize("dtype", check_tier.DTYPES)
@pytest.mark.parametrize("tier", check_tier.UNITS)
def test_a_check_of_a_tier(
    tier: str, dtype: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_tier, "REPEATS", 2)
    monkeypatch.setenv("ADL_CUDA_TIER", "")  # to be put back
    monkeypatch.setenv("ADL_EMULATED_TF32", str(int(dtype == "tf32")))
    monkeypatch.setenv("ADL_EMULATED_CUDNN", "1")
    row = check_tier.check(tier, "lstm", dtype, T=3, B=2, I=3, H=40)
    assert row["ok"], row
    assert 0 < row["forward"] <= 1 and 0 < row["backward"] <= 1 and row["same_bits"] == 2


def test_a_check_tells_what_is_wrong(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADL_CUDA_TIER", "")
    row = check_tier.check("block", "lstm", "bf16", T=3, B=2, I=3, H=200)
    assert not row["ok"] and "does not serve hidden size 200" in row["problem"]
    assert not check_tier.good({"forward": float("nan"), "backward": 0.1, "same_bits": 20})
    right = {"forward": 0.5, "backward": 0.5, "same_bits": check_tier.REPEATS}
    assert check_tier.good(right) and not check_tier.good(right | {"same_bits": 3})
    assert not check_tier.good(right | {"graph": False})


@pytest.mark.slow
@pytest.mark.parametrize("tf32", [False, True], indirect=True)
def test_selftest_of_every_tier(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teams have float32 only as tf32."""
    tiers = {name: [(2, 2, 3, 40, 1)] for name in ("block", "cluster", "grid", "cudnn")}
    monkeypatch.setenv("ADL_EMULATED_CUDNN", "1")
    monkeypatch.setattr(selftest, "SIZES", [(3, 2, 3, 20, 1)])
    found = {name: (e, b) for name, e, b in selftest.results(torch.device("cpu"), tiers, tf32)}
    assert all(error <= bound for error, bound in found.values())
    assert ("lstm, float32, grid" in found) == ("gru, float32, cluster" in found) == tf32
    assert "lstm, bfloat16, grid" in found and "lstm, float64, block" not in found
    assert "gru_reset_before, bfloat16, block" not in found
    assert "lstm, float32, cudnn" in found and "lstm_coupled, float32, cudnn" not in found


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu", "lstm_no_forget"])
def test_tf32_in_as_many_steps_as_on_a_gpu(
    cell: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors grow with the steps, and by turned signs: with what is allowed."""
    for dtype in (F32, torch.float16):
        test_numbers.test_every_tier(Case(cell, 64, 9, 40, 128, dtype), "block", tf32, monkeypatch)
