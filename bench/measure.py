"""Two sides timed in turns in one process, and what is said of their times."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bench import machine
from bench.store import Row

Step = Callable[[], object]
Clock = Callable[[Step, int], float]  # seconds of a call, by so many calls

# A call this long settles at once; to throw some away would double the time of a run.
SLOW_S = 0.25


@dataclass(frozen=True)
class Budget:
    seconds: float = 2.0  # per row, both sides together
    rounds: tuple[int, int] = (5, 200)  # at least, at most
    sample_s: float = 2e-3  # shorter calls are repeated until a sample lasts this long


QUICK = Budget(0.0, (3, 3))


def wall(step: Step, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


@dataclass
class Side:
    """One of the two competitors in one row."""

    step: Step
    clock: Clock = wall
    calls: int = 1  # per sample
    seconds: list[float] = field(default_factory=list)  # per call, one entry per sample
    faults: list[float] = field(default_factory=list)  # page faults per call, likewise
    slow: bool = False

    def warm_up(self, sample_s: float) -> None:
        """Run until caches, allocator and lazily built code have settled; choose `calls`."""
        call = self.clock(self.step, 1)
        if call <= SLOW_S:
            call = min(call, self.clock(self.step, 1))
        self.slow = call > SLOW_S
        self.calls = max(1, math.ceil(sample_s / call))

    def sample(self) -> None:
        faults = machine.page_faults()
        self.seconds.append(self.clock(self.step, self.calls))
        self.faults.append((machine.page_faults() - faults) / self.calls)

    def forget(self) -> None:
        self.seconds.clear()
        self.faults.clear()

    @property
    def median(self) -> float:
        return quantiles(self.seconds)[1]

    def figures(self) -> Row:
        low, middle, high = quantiles(self.seconds)
        return {
            "median_s": middle,
            "low_s": low,
            "high_s": high,
            "samples": len(self.seconds),
            "calls_per_sample": self.calls,
            "page_faults": quantiles(self.faults)[1],
        }


def race(ours: Step, theirs: Step, budget: Budget, clock: Clock = wall) -> tuple[Side, Side]:
    """Sample the two in turns, so that drift of the machine's speed meets both alike."""
    sides = Side(ours, clock), Side(theirs, clock)
    for side in sides:
        side.warm_up(budget.sample_s)
    gc.collect()
    gc.disable()
    try:
        # The first round after a collection is slower, most of all for whoever begins.
        for side in sides:
            if not side.slow:
                side.sample()
                side.forget()
        end = time.perf_counter() + budget.seconds
        at_least, at_most = budget.rounds
        for done in range(at_most):
            if done >= at_least and time.perf_counter() > end:
                break
            for side in sides:
                side.sample()
    finally:
        gc.enable()
    return sides


def speedup(ours: Step, theirs: Step, budget: Budget) -> float:
    """Median time of theirs / of ours."""
    a, b = race(ours, theirs, budget)
    return b.median / a.median


def timed(
    row: Row,
    ours: Step,
    theirs: Step,
    budget: Budget,
    clock: Clock = wall,
    **amounts: float,
) -> Row:
    """The row and what a race adds to it, if the gate found our result right: medians and spreads
    of both sides, their ratio, and at which rate each did the amounts of a call."""
    if row["status"] != "ok":
        return row
    others = machine.Disturbance()
    sides = race(ours, theirs, budget, clock)
    low, _, high = quantiles([b / a for a, b in zip(*(s.seconds for s in sides), strict=True)])
    found: Row = {}
    for name, side in zip(("ours", "torch"), sides, strict=True):
        rates = {unit: amount / side.median for unit, amount in amounts.items()}
        found[name] = side.figures() | rates
    ratio = found["torch"]["median_s"] / found["ours"]["median_s"]
    found |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    if "threads" in row:  # on the CPU
        found["disturbed"] = others.took_one_of(row["threads"])
    return row | found


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    low, middle, high = torch.tensor(samples, dtype=torch.float64).quantile(points).tolist()
    return low, middle, high
