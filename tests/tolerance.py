"""How far results may be off: the one place for tolerances.

The contract: against a computation in double, at most twice the error that torch.nn itself makes
for the same input and dtype, plus a floor of a few units in the last place of the largest value.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR_ULPS = 4


def error(value: Tensor, exact: Tensor) -> float:
    """The largest absolute difference; a NaN or an infinity on one side only is infinite."""
    difference = (value.double() - exact.double()).abs()
    return (
        float("inf")
        if difference.isnan().any()
        else difference.max().item()
        if value.numel()
        else 0.0
    )


def assert_accurate(ours: Tensor, torchs: Tensor, exact: Tensor, what: str) -> None:
    """`exact` is in double; `ours` and `torchs` are of the dtype under test."""
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{what}: shape {ours.shape}, torch's {torchs.shape}"
    largest = exact.abs().max().item() if exact.numel() else 0.0
    floor = FLOOR_ULPS * torch.finfo(ours.dtype).eps * largest
    bound = 2 * error(torchs, exact) + floor
    assert error(ours, exact) <= bound, f"{what}: error {error(ours, exact):.2e}, bound {bound:.2e}"
