"""The rates that this machine reaches, measured beside the cases: multiply-adds and reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from adl_kernels import _C

# The number type whose multiply-adds compute a dtype; float16 is computed in float32.
ARITHMETIC = {"f32": "f32", "bf16": "bf16", "f16": "f32", "f64": "f64"}

Rates = dict[str, dict[int, float]]


class Peak:
    """The highest rates of multiply-adds seen, in GFLOP/s, by arithmetic and threads.

    A shared machine is slower at times, never faster: so the highest counts, for the whole run.
    """

    def __init__(self) -> None:
        self.rates: Rates = {}

    def measure(self, dtype: str, threads: int, seconds: float = 0.05) -> None:
        arithmetic = ARITHMETIC[dtype]
        self.take({arithmetic: {threads: _gflops(arithmetic, threads, seconds)}})

    def measure_all(self, dtypes: Iterable[str], threads: Iterable[int]) -> None:
        for dtype, n in product(sorted(dtypes), threads):
            self.measure(dtype, n, 0.3)

    def take(self, rates: Mapping[str, Mapping[int, float]]) -> None:
        for arithmetic, found in rates.items():
            mine = self.rates.setdefault(arithmetic, {})
            for threads, rate in found.items():
                mine[threads] = max(rate, mine.get(threads, 0.0))

    def of(self, dtype: str, threads: int) -> float:
        return self.rates[ARITHMETIC[dtype]][threads]


def _gflops(arithmetic: str, threads: int, seconds: float) -> float:
    if arithmetic == "bf16":
        return _C.bf16_gflops(threads, seconds)
    return {"f32": 1.0, "f64": 0.5}[arithmetic] * _C.fma_gflops(threads, seconds)
