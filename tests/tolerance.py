"""How far results may be off: the one place for tolerances.

The contract: against a computation in double, at most twice the error that torch.nn itself makes
for the same input and dtype, plus a floor of a few units in the last place of the largest value,
or of the smallest normal number where that is larger: below it numbers are that far apart.
In float64 torch's error does not show, since the exact values are in double themselves: there it
is taken from float32 and scaled by the ratio of the units in the last place.
Where float32 may be rounded to tf32, the unit in the last place is that of tf32, and the error that
of the definition with all products rounded, if it is larger than torch's: torch's layer may not
have rounded for this size, and what stands for a layer that torch does not have does not round.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FLOOR_ULPS = 4
TF32_ULP = 2.0**-10
TURNED = 0.15  # of the norm
Bounds = dict[torch.dtype, float]
# For what torch.nn has not. In half precision every gate and state that backward reads is rounded.
ON_CPU: Bounds = {
    torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.02
}  # fmt: skip
ON_CUDA: Bounds = {
    torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.08, torch.float16: 0.01
}  # fmt: skip


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
    tf32: Tensor | None = None,
) -> None:
    """`exact` is in double; `ours` and `torchs` are of the dtype under test.

    float32: torch's result in float32 and its exact value, for a test in float64.
    tf32: the definition's result by `ProductsInTf32`, where ours may be rounded to it.
    """
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{what}: shape {ours.shape}, torch's {torchs.shape}"
    bound = allowed(torchs, exact, float32, tf32)
    assert error(ours, exact) <= bound, f"{what}: error {error(ours, exact):.2e}, bound {bound:.2e}"


def assert_near_as_a_whole(ours: Tensor, exact: Tensor, what: str) -> None:
    """For gradients through signs that rounding turns: much for single elements, little for all."""
    relative = ((ours.double() - exact).norm() / exact.norm()).item()
    assert relative <= TURNED, f"{what}: error {relative:.2e} of the norm, bound {TURNED:.2e}"


def assert_as_defined(ours: Tensor, exact: Tensor, what: str, bounds: Bounds, least: float) -> None:
    """For what torch.nn has not: a share of the largest value, or of `least` if that is larger."""
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape}, defined {exact.shape}"
    largest = exact.abs().max().item() if exact.numel() else 0.0
    bound = bounds[ours.dtype] * max(largest, least)
    assert error(ours, exact) <= bound, f"{what}: error {error(ours, exact):.2e}, bound {bound:.2e}"


def allowed(
    torchs: Tensor,
    exact: Tensor,
    float32: tuple[Tensor, Tensor] | None = None,
    tf32: Tensor | None = None,
) -> float:
    """The largest absolute error that a result may have."""
    dtype = torchs.dtype
    ulp = torch.finfo(dtype).eps if tf32 is None else TF32_ULP
    torchs_error = error(torchs, exact)
    if float32 is not None:
        torchs_error = max(torchs_error, error(*float32) * ulp / torch.finfo(torch.float32).eps)
    if tf32 is not None:
        torchs_error = max(torchs_error, error(tf32, exact))
    largest = exact.abs().max().item() if exact.numel() else 0.0
    floor = FLOOR_ULPS * ulp * max(largest, torch.finfo(dtype).smallest_normal)
    return 2 * torchs_error + floor


class ProductsInTf32(TorchDispatchMode):
    """Rounds the operands of matrix products in float32 to tf32, on any device."""

    PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in self.PRODUCTS:
            args = [to_tf32(a) if isinstance(a, Tensor) and a.dim() > 1 else a for a in args]
        return op(*args, **(kwargs or {}))


def to_tf32(x: Tensor) -> Tensor:
    """To the nearest number of 10 bits, halfway away from zero."""
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
