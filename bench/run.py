"""Times adl_kernels against torch.nn in one process, case by case."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import adl_kernels
from bench import gate, machine, report
from bench.cases import CLASSES, DTYPES, GATES, MODES, Job, flops
from bench.peak import Peak, Rates, read_gbytes

Row = dict[str, Any]
Step = Callable[[], object]

# A call this long settles at once; to throw some away would double the time of a run.
SLOW_S = 0.25


@dataclass(frozen=True)
class Settings:
    jobs: Sequence[Job]
    threads: Sequence[int] = (1, 2)
    modes: Sequence[str] = MODES
    seconds: float = 2.0  # per row, both sides together
    rounds: tuple[int, int] = (5, 200)  # at least, at most
    sample_s: float = 2e-3  # shorter calls are repeated until a sample lasts this long
    # What the gate said of a cell, dtype and case in each mode, where another process asked it.
    checked: Mapping[tuple[str, ...], dict[str, Row]] = field(default_factory=dict)


def of_both_mallocs(settings: Settings, rows: Sequence[Row]) -> Settings:
    """What is also measured without page faults: layers in float32, with the checks of rows."""
    jobs = [job for job in settings.jobs if job.dtype == "f32"]
    checked: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found = checked.setdefault((row["cell"], row["dtype"], row["case"]), {})
        found[row["mode"]] = {key: row[key] for key in ("status", "check")}
    jobs = [job for job in jobs if job.case.kind in ("layer", "stack")]
    return replace(settings, jobs=jobs, checked=checked)


@dataclass
class Side:
    """One of the two competitors in one row."""

    step: Step
    inner: int = 1  # calls per sample
    seconds: list[float] = field(default_factory=list)  # per call, one entry per sample
    faults: list[float] = field(default_factory=list)  # page faults per call
    slow: bool = False

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
            if call > SLOW_S:
                break
        self.slow = call > SLOW_S
        self.inner = max(1, math.ceil(sample_s / call))

    def forget(self) -> None:
        self.seconds.clear()
        self.faults.clear()


def build(job: Job) -> tuple[nn.Module, nn.Module, gate.Problem]:
    """Ours and torch.nn's module with the same weights, and what they are asked to compute."""
    torch.manual_seed(0)
    case, number = job.case, DTYPES[job.dtype]
    if case.kind == "cell":
        kind, options = CLASSES[job.cell] + "Cell", {}
    else:
        kind = CLASSES[job.cell]
        options = {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
    theirs = getattr(nn, kind)(case.I, case.H, **options).to(number)
    ours = getattr(adl_kernels, kind)(case.I, case.H, **options, dtype=number)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, _problem(job).to(number)


def _problem(job: Job) -> gate.Problem:
    case = job.case
    states = 2 if job.cell == "lstm" else 1
    # One step stands for the steps of a loop, which hands on the state.
    given = states if case.kind in ("step", "cell") else 0
    x = torch.randn(*case.rows, case.I)
    hx = tuple(torch.randn(case.state) for _ in range(given))
    dy = () if case.kind == "cell" else (torch.randn(*case.rows, case.directions * case.H),)
    dstate = tuple(torch.randn(case.state) for _ in range(states))
    return gate.Problem(x, hx, dy + dstate, case.batch_sizes)


def make_step(module: nn.Module, problem: gate.Problem, mode: str) -> Step:
    """One call as a user makes it. The loss is given by its gradients and so costs nothing."""
    if mode == "train":
        return lambda: gate.gradients(module, problem)
    arguments = problem.arguments()
    return lambda: module(*arguments)


def race(ours: Side, theirs: Side, settings: Settings) -> None:
    """Sample the two in turns, so that drift of the machine's speed meets both alike."""
    for side in (ours, theirs):
        side.warm_up(settings.sample_s)
    gc.collect()
    gc.disable()
    try:
        # The first round after a collection is slower, most of all for whoever begins.
        for side in (ours, theirs):
            if not side.slow:
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


def timed(
    row: Row, mine: Step, theirs: Step, settings: Settings, operations: int, size: int
) -> Row:
    """What is to be added to a row: medians and spreads of both, and their ratio.

    size: bytes that must be read or written once at least.
    """
    if row["status"] != "ok":
        return {}
    sides = Side(mine), Side(theirs)
    others = machine.Disturbance()
    race(*sides, settings)
    found: Row = {}
    for name, side in zip(("ours", "torch"), sides, strict=True):
        low, middle, high = quantiles(side.seconds)
        found[name] = {
            "median_s": middle,
            "low_s": low,
            "high_s": high,
            "samples": len(side.seconds),
            "gflops": operations / middle * 1e-9,
            "gbytes": size / middle * 1e-9,
            "page_faults": quantiles(side.faults)[1],
        }
    found["ratio"] = found["torch"]["median_s"] / found["ours"]["median_s"]
    found["disturbed"] = others.took_one_of(row["threads"])
    return found


def refer_to_peak(rows: Sequence[Row], peak: Peak) -> None:
    """Shares of the peak as it stands at the end of a run."""
    for row in rows:
        for side in (row.get("ours", {}), row.get("torch", {})):
            if side:
                side["share_of_peak"] = side["gflops"] / peak.of(row["dtype"], row["threads"])


def measure(settings: Settings) -> tuple[list[Row], Rates]:
    """Print and return everything that is asked for, and the peak rates seen meanwhile."""
    peak = Peak()
    for threads in settings.threads:
        for dtype in {job.dtype for job in settings.jobs}:
            peak.measure(dtype, threads, 0.3)
    print(report.peak_line(peak.rates), report.header(), sep="\n\n")
    found = []
    for row in rows(settings, peak):
        found.append(row)
        print(report.line(row), flush=True)
    return found, peak.rates


def rows(settings: Settings, peak: Peak) -> Iterator[Row]:
    """Check and time everything that is asked for, one row per measurement."""
    before = torch.get_num_threads()
    try:
        for job in settings.jobs:
            yield from _rows_of(job, settings, peak)
    finally:
        torch.set_num_threads(before)


def _rows_of(job: Job, settings: Settings, peak: Peak) -> Iterator[Row]:
    torch.set_num_threads(max(settings.threads))
    ours, theirs, problem = build(job)
    checked = settings.checked.get((job.cell, job.dtype, job.case.name))
    checked = checked or check(ours, theirs, problem, settings.modes)
    for mode in settings.modes:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            row = _key(job) | {"malloc": machine.malloc(), "threads": threads, "mode": mode}
            row |= checked[mode]
            if row["status"] == "ok":
                sides = tuple(Side(make_step(m, problem, mode)) for m in (ours, theirs))
                peak.measure(job.dtype, threads)
                others = machine.Disturbance()
                with torch.set_grad_enabled(mode == "train"):
                    race(*sides, settings)
                operations = flops(job.cell, job.case, mode)
                row |= _measure(sides, operations, peak.of(job.dtype, threads))
                row["disturbed"] = others.took_one_of(threads)
                row |= _read_share(job, row)
            yield row


def check(
    ours: nn.Module,
    theirs: nn.Module,
    problem: gate.Problem,
    modes: Sequence[str],
    tf32: bool = False,
) -> dict[str, Row]:
    """What the gate says of each mode. With most threads: the bits do not depend on them."""
    truth = gate.reference(theirs, problem)
    allowed = gate.torch_errors(theirs, problem, truth)
    found = {}
    for mode in modes:
        verdict = gate.judge(gate.values(ours, problem, mode), truth, allowed, tf32)
        found[mode] = {"status": "ok" if verdict.ok else "WRONG", "check": str(verdict)}
    return found


def _key(job: Job) -> Row:
    case = job.case
    sizes = {"T": case.T, "B": case.B, "I": case.I, "H": case.H}
    return {"cell": job.cell, "dtype": job.dtype, "case": case.name, "shape": str(case)} | sizes


def _read_share(job: Job, row: Row) -> Row:
    """How fast a single sequence reads W_hh, against reading a buffer of that size."""
    case = job.case
    if (case.kind, case.B, job.dtype, row["mode"]) != ("layer", 1, "f32", "infer"):
        return {}
    size = 4 * GATES[job.cell] * case.H * case.H
    rate = read_gbytes(size, row["threads"])
    step_s = row["ours"]["median_s"] / case.T
    return {} if rate is None else {"read_share": size / step_s * 1e-9 / rate}
