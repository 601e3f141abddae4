"""Times adl_kernels against torch.nn in one process, case by case."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import adl_kernels
from bench import gate, machine
from bench.cases import CLASSES, DTYPES, MODES, Case, flops

Row = dict[str, Any]
Step = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    cases: Sequence[Case]
    cells: Sequence[str] = ("lstm", "gru", "rnn")
    dtypes: Sequence[str] = ("f32", "bf16")
    threads: Sequence[int] = (1, 2)
    modes: Sequence[str] = MODES
    seconds: float = 2.0  # per row, both sides together
    rounds: tuple[int, int] = (5, 200)  # at least, at most
    sample_s: float = 2e-3  # shorter calls are repeated until a sample lasts this long


@dataclass
class Side:
    """One of the two competitors in one row."""

    step: Step
    inner: int = 1  # calls per sample
    seconds: list[float] = field(default_factory=list)  # per call, one entry per sample
    faults: list[float] = field(default_factory=list)  # page faults per call

    def sample(self) -> None:
        faults = machine.page_faults()
        start = time.perf_counter()
        for _ in range(self.inner):
            self.step()
        self.seconds.append((time.perf_counter() - start) / self.inner)
        self.faults.append((machine.page_faults() - faults) / self.inner)

    def warm_up(self, sample_s: float) -> None:
        """Run until caches, allocator and lazily built code have settled; choose `inner`."""
        call = math.inf
        for _ in range(2):
            start = time.perf_counter()
            self.step()
            call = min(call, time.perf_counter() - start)
        self.inner = max(1, math.ceil(sample_s / call))

    def forget(self) -> None:
        self.seconds.clear()
        self.faults.clear()


def build(cell: str, case: Case, dtype: str) -> tuple[nn.Module, nn.Module, gate.Problem]:
    """Ours and torch.nn's module with the same weights, and what they are asked to compute."""
    torch.manual_seed(0)
    kind, number = CLASSES[cell], DTYPES[dtype]
    theirs = getattr(nn, kind)(case.I, case.H, dtype=number)
    ours = getattr(adl_kernels, kind)(case.I, case.H, dtype=number)
    ours.load_state_dict(theirs.state_dict())
    x, dy = torch.randn(case.T, case.B, case.I), torch.randn(case.T, case.B, case.H)
    states = 2 if cell == "lstm" else 1
    dstate = tuple(torch.randn(1, case.B, case.H) for _ in range(states))
    return ours, theirs, gate.Problem(x, dy, dstate).to(number)


def make_step(module: nn.Module, problem: gate.Problem, mode: str) -> Step:
    """One call as a user makes it. The loss is given by its gradients and so costs nothing."""
    if mode == "train":
        return lambda: gate.gradients(module, problem)

    def infer() -> None:
        with torch.no_grad():
            module(problem.x)

    return infer


def race(ours: Side, theirs: Side, settings: Settings) -> None:
    """Sample the two in turns, so that drift of the machine's speed meets both alike."""
    for side in (ours, theirs):
        side.warm_up(settings.sample_s)
    gc.collect()
    gc.disable()
    try:
        # The first round after a collection is slower, most of all for whoever begins.
        for side in (ours, theirs):
            side.sample()
            side.forget()
        end = time.perf_counter() + settings.seconds
        at_least, at_most = settings.rounds
        for done in range(at_most):
            if done >= at_least and time.perf_counter() > end:
                break
            ours.sample()
            theirs.sample()
    finally:
        gc.enable()


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    low, middle, high = torch.tensor(samples, dtype=torch.float64).quantile(points).tolist()
    return low, middle, high


def _figures(side: Side, operations: int, peak: float) -> Row:
    low, middle, high = quantiles(side.seconds)
    gflops = operations / middle * 1e-9
    return {
        "median_s": middle,
        "low_s": low,
        "high_s": high,
        "samples": len(side.seconds),
        "calls_per_sample": side.inner,
        "gflops": gflops,
        "share_of_peak": gflops / peak,
        "page_faults": quantiles(side.faults)[1],
    }


def _measure(sides: tuple[Side, Side], operations: int, peak: float) -> Row:
    ours, theirs = sides
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    found = {
        "ours": _figures(ours, operations, peak),
        "torch": _figures(theirs, operations, peak),
    }
    ratio = found["torch"]["median_s"] / found["ours"]["median_s"]
    low, _, high = quantiles(ratios)
    return found | {"ratio": ratio, "ratio_low": low, "ratio_high": high}


def refer_to_peak(rows: Sequence[Row], peak: dict[int, float]) -> None:
    """Shares of the peak as it stands at the end of a run."""
    for row in rows:
        for side in (row.get("ours", {}), row.get("torch", {})):
            if side:
                side["share_of_peak"] = side["gflops"] / peak[row["threads"]]


def peaks(threads: Sequence[int]) -> dict[int, float]:
    """The measured rate of single-precision multiply-adds in GFLOP/s, by number of threads."""
    return {n: adl_kernels._C.fma_gflops(n, 0.3) for n in threads}


def rows(settings: Settings, peak: dict[int, float]) -> Iterator[Row]:
    """Check and time everything that is asked for, one row per measurement."""
    before = torch.get_num_threads()
    try:
        for cell in settings.cells:
            for dtype in settings.dtypes:
                for case in settings.cases:
                    yield from _rows_of(cell, dtype, case, settings, peak)
    finally:
        torch.set_num_threads(before)


def _rows_of(
    cell: str, dtype: str, case: Case, settings: Settings, peak: dict[int, float]
) -> Iterator[Row]:
    torch.set_num_threads(max(settings.threads))
    ours, theirs, problem = build(cell, case, dtype)
    truth = gate.reference(theirs, problem)
    for mode in settings.modes:
        allowed = gate.torch_errors(theirs, problem, mode, truth)
        for threads in settings.threads:
            torch.set_num_threads(threads)
            row = {"cell": cell, "dtype": dtype, "threads": threads, "mode": mode}
            row |= {"case": case.name, "T": case.T, "B": case.B, "I": case.I, "H": case.H}
            verdict = gate.judge(gate.values(ours, problem, mode), truth, allowed)
            row |= {"status": "ok" if verdict.ok else "WRONG", "check": str(verdict)}
            if verdict.ok:
                sides = tuple(Side(make_step(m, problem, mode)) for m in (ours, theirs))
                # The highest rate seen counts: a shared machine is slower at times, never faster.
                peak[threads] = max(peak[threads], adl_kernels._C.fma_gflops(threads, 0.05))
                others = machine.Disturbance()
                race(*sides, settings)
                row |= _measure(sides, flops(cell, case, mode), peak[threads])
                row["disturbed"] = others.took_one_of(threads)
            yield row
