"""How far results may be off: the one place for tolerances.

The contract: against a computation in double, at most twice the error that torch.nn itself makes
for the same input and dtype, plus a floor of a few units in the last place of the largest value,
or of the smallest normal number where that is larger: below it numbers are that far apart.
In float64 torch's error does not show, since the exact values are in double themselves: there it
is taken from float32 and scaled by the ratio of the units in the last place.
Where float32 may be rounded to tf32, the unit in the last place is that of tf32: torch's layer may
not have rounded for this size, and what stands for a layer that torch has not does not round.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR_ULPS = 4
TF32_ULP = 2.0**-10


def error(value: Tensor, exact: Tensor) -> float:
    """The largest absolute difference, on any devices; a NaN on one side is infinite."""
    difference = (value.double().cpu() - exact.double().cpu()).abs()
    if difference.isnan().any():
        return float("inf")
    return difference.max().item() if value.numel() else 0.0


def assert_accurate(
    ours: Tensor,
    torchs: Tensor,
    exact: Tensor,
    what: str,
    float32: tuple[Tensor, Tensor] | None = None,
    tf32: bool = False,
) -> None:
    """`exact` is in double; `ours` and `torchs` are of the dtype under test.

    float32: torch's result in float32 and its exact value, for a test in float64.
    tf32: whether what is multiplied in float32 may be rounded to tf32.
    """
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{what}: shape {ours.shape}, torch's {torchs.shape}"
    bound = allowed(torchs, exact, float32, tf32)
    assert error(ours, exact) <= bound, f"{what}: error {error(ours, exact):.2e}, bound {bound:.2e}"


def allowed(
    torchs: Tensor,
    exact: Tensor,
    float32: tuple[Tensor, Tensor] | None = None,
    tf32: bool = False,
) -> float:
    """The largest absolute error that a result may have."""
    dtype = torchs.dtype
    ulp = TF32_ULP if tf32 and dtype == torch.float32 else torch.finfo(dtype).eps
    torchs_error = error(torchs, exact)
    if float32 is not None:
        torchs_error = max(torchs_error, error(*float32) * ulp / torch.finfo(torch.float32).eps)
    largest = exact.abs().max().item() if exact.numel() else 0.0
    return 2 * torchs_error + FLOOR_ULPS * ulp * max(largest, torch.finfo(dtype).smallest_normal)
