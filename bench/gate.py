"""The gate before every measurement: is the result right?

Both sides are compared with torch in double precision. Ours may be wrong by at most twice what
torch is wrong by for the same input and number type, plus a few units in the last place. That is
the contract of tests/tolerance.py, which raises at once where a row of a table needs a verdict; the
two are kept apart so that no measurement depends on pytest's import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FLOOR_ULPS = 4.0
TF32_EPS = 2.0**-10

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """The tensor that comes closest to its limit; errors relative to its largest magnitude."""

    ok: bool
    tensor: str
    ours: float
    torch: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.tensor} is off by {self.ours:.1e}, torch.nn by {self.torch:.1e}, "
            f"allowed {self.limit:.1e}"
        )

    def row(self) -> dict[str, str]:
        return {"status": "ok" if self.ok else "WRONG", "check": str(self)}


def errors(found: Values, truth: Values) -> dict[str, float]:
    return {name: _error(value, truth[name]) for name, value in found.items()}


def _error(found: Tensor, truth: Tensor) -> float:
    largest = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((found.double() - truth).abs().max() / largest).item()


def judge(
    found: Values, truth: Values, torch_error: Mapping[str, float], tf32: bool = False
) -> Verdict:
    """Compare every tensor with its limit and report the worst.

    tf32: float32 may be rounded to it, though torch.nn need not have done so for this size.
    """
    verdicts = []
    for name, error in errors(found, truth).items():
        eps = TF32_EPS if tf32 else torch.finfo(found[name].dtype).eps
        limit = FACTOR * torch_error[name] + FLOOR_ULPS * eps
        # Written so that NaN, for which every comparison is false, is a failure.
        verdicts.append(Verdict(error <= limit, name, error, torch_error[name], limit))
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    return max(wrong or verdicts, key=lambda verdict: verdict.ours / verdict.limit)
