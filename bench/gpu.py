"""Times adl_kernels against torch.nn on cuDNN, case by case, and the ceilings of the GPU."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import gate, gpu_report, machine, store
from bench.cases import MODES, Job, flops
from bench.gpu_grid import GOALS, NUMBERS, Goal, Row, goal_lines
from bench.run import Step, build, check, make_step, quantiles

SAMPLE_S = 4e-3  # shorter calls are repeated, so that the GPU has work queued while it is timed
ROUNDS = (3, 100)  # at least, at most


@dataclass(frozen=True)
class Settings:
    jobs: Sequence[Job]
    device: str = "cuda"
    seconds: float = 200.0  # for all rows together
    sample_s: float = SAMPLE_S
    modes: Sequence[str] = MODES
    goals: Sequence[Goal] = GOALS
    name: str = ""  # of the grid, as the result file has it
    graphs: bool = False  # also replay the calls from CUDA graphs


# Time


class Clock:
    """Seconds that a device is busy with something, from its first to its last operation."""

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def __call__(self, step: Step, calls: int = 1) -> float:
        """Per call."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(calls):
                step()
            return (time.perf_counter() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / calls


@dataclass
class Side:
    """One of the two competitors in one row."""

    step: Step
    clock: Clock
    calls: int = 1  # per sample
    seconds: list[float] = field(default_factory=list)  # per call, one entry per sample

    def warm_up(self, sample_s: float) -> None:
        self.clock(self.step)
        call = min(self.clock(self.step) for _ in range(2))
        self.calls = max(1, math.ceil(sample_s / call))

    def sample(self) -> None:
        self.seconds.append(self.clock(self.step, self.calls))

    def figures(self, job: Job, mode: str) -> Row:
        low, middle, high = quantiles(self.seconds)
        return {
            "median_s": middle,
            "low_s": low,
            "high_s": high,
            "samples": len(self.seconds),
            "calls_per_sample": self.calls,
            "us_per_step": 1e6 * middle / job.case.T,
            "tflops": flops(job.cell, job.case, mode) / middle * 1e-12,
        }


def race(sides: Sequence[Side], seconds: float, sample_s: float) -> None:
    """Sample both in turns, so that drift of the clock rate meets both alike."""
    for side in sides:
        side.warm_up(sample_s)
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        at_least, at_most = ROUNDS
        for done in range(at_most):
            if done >= at_least and time.perf_counter() > end:
                break
            for side in sides:
                side.sample()
    finally:
        gc.enable()


def allow_tf32(may: bool) -> None:
    """In layers, and in products, by which torch's cells are made."""
    torch.backends.cudnn.allow_tf32 = may
    torch.set_float32_matmul_precision("high" if may else "highest")


# Rows


def measure(settings: Settings) -> Iterator[Row]:
    """Check and time every job, one row per mode; what time does not allow for is left out."""
    clock, end = Clock(settings.device), time.perf_counter() + settings.seconds
    for done, job in enumerate(settings.jobs):
        left = end - time.perf_counter()
        if settings.seconds > 0 and left < 0:
            print(f"out of time: {len(settings.jobs) - done} of {len(settings.jobs)} jobs left out")
            return
        rows_left = len(settings.modes) * (len(settings.jobs) - done)
        # Half of the time goes into building, checking and warming up.
        yield from _rows_of(job, settings, clock, max(0.0, left) / rows_left / 2)


def _rows_of(job: Job, settings: Settings, clock: Clock, seconds: float) -> Iterator[Row]:
    case = job.case
    key = {"cell": job.cell, "dtype": job.dtype, "case": case.name, "shape": str(case)}
    key |= {"kind": case.kind, "T": case.T, "B": case.B, "I": case.I, "H": case.H}
    key |= {"layers": case.num_layers, "directions": case.directions, "tokens": case.tokens}
    allow_tf32(job.dtype == "tf32")
    try:
        *modules, problem = pair(job, settings.device)
        checked = check(*modules, problem, settings.modes, tf32=job.dtype == "tf32")
    except RuntimeError as error:  # the other cases may well run
        failed = {"status": "FAILED", "check": str(error).splitlines()[0]}
        checked = dict.fromkeys(settings.modes, failed)
    for mode in settings.modes:
        row = key | {"mode": mode} | checked[mode]
        if row["status"] == "ok":
            steps = []
            for module in modules:
                module.train(mode == "train")  # in eval mode cuDNN keeps nothing for backward
                steps.append(make_step(module, problem, mode))
            share = seconds / 2 if settings.graphs else seconds
            with torch.set_grad_enabled(mode == "train"):
                sides = [Side(step, clock) for step in steps]
                race(sides, share, settings.sample_s)
                row |= _figures(sides, job, mode)
                if settings.graphs and clock.on_gpu:
                    row["graph"] = _replayed(steps, clock, job, share, settings.sample_s)
        yield row


def _replayed(
    steps: Sequence[Step], clock: Clock, job: Job, seconds: float, sample_s: float
) -> Row:
    """Without the host's part: microseconds per step of graphs of the calls."""
    try:
        sides = [Side(captured(step), clock) for step in steps]
        race(sides, seconds, sample_s)
    except RuntimeError as error:
        return {"problem": str(error).splitlines()[0]}
    ours, theirs = (1e6 * quantiles(side.seconds)[1] / job.case.T for side in sides)
    return {"ours_us": ours, "torch_us": theirs, "ratio": theirs / ours}


def captured(step: Step) -> Step:
    """The replay of a CUDA graph of the call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _figures(sides: Sequence[Side], job: Job, mode: str) -> Row:
    ours, theirs = (side.figures(job, mode) for side in sides)
    low, _, high = quantiles([b / a for a, b in zip(*(s.seconds for s in sides), strict=True)])
    ratio = theirs["median_s"] / ours["median_s"]
    return {"ours": ours, "torch": theirs, "ratio": ratio, "ratio_low": low, "ratio_high": high}


def pair(job: Job, device: str) -> tuple[nn.Module, nn.Module, gate.Problem]:
    """Ours and torch.nn's module on the device, and what both are asked to compute."""
    dtype = "f32" if job.dtype == "tf32" else job.dtype
    with torch.device(device):  # random numbers are made there, too: the host takes seconds
        ours, theirs, problem = build(replace(job, dtype=dtype))
    return ours, theirs, replace(problem, batch_sizes=job.case.batch_sizes)


# Ceilings


def ceilings(device: str, size: int = 8192) -> dict[str, float]:
    """What the GPU does at best: copies, matrix products on random numbers, launches."""
    clock = Clock(device)

    def best(step: Step, calls: int) -> float:
        clock(step, calls)
        return min(clock(step, calls) for _ in range(5))

    source = torch.randn(size * size, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    found = {"copy GB/s": moved / best(lambda: target.copy_(source), 5) * 1e-9}
    for name in ("f32", "tf32", "bf16", "f16"):
        allow_tf32(name == "tf32")
        a, b = (torch.randn(size, size, device=device).to(NUMBERS[name]) for _ in range(2))
        found[f"matmul {name} TFLOP/s"] = 2 * size**3 / best(lambda a=a, b=b: a @ b, 3) * 1e-12
    allow_tf32(False)
    one = torch.zeros(1, device=device)
    found["launch µs"] = 1e6 * best(one.zero_, 1000)
    return found


# The command


def facts(arguments: Sequence[str], device: str) -> dict[str, Any]:
    found = machine.facts(["-m", "bench", *arguments])
    if torch.device(device).type != "cuda":
        return found | {"gpu": None}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_GiB": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def main(settings: Settings, arguments: Sequence[str], path: Path | None, results: Path) -> int:
    """Prints the tables; on a GPU, or where a path is given, writes them down, too."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench: torch finds no GPU here")
    known = facts(arguments, settings.device)
    found = ceilings(settings.device, 8192 if known["gpu"] else 64)
    if path is None and known["gpu"]:
        path = results / f"{store.slug(' '.join([known['gpu'], settings.name]))}.json"
    rows: list[Row] = []
    start = time.perf_counter()

    def content() -> dict[str, Any]:
        goals = goal_lines(rows, settings.goals)
        return {"machine": known, "ceilings": found, "goals": goals, "rows": rows}

    for row in measure(settings):
        rows.append(row)
        if row["status"] != "ok":
            print(gpu_report.problem_line(row), flush=True)
        if path is not None:  # now, in case this is the last that is heard of the GPU
            store.write_json(path, content())
    print(gpu_report.markdown(content()))
    print(f"\n{len(rows)} rows in {time.perf_counter() - start:.0f} s")
    if path is not None:
        store.write_json(path, content())
        print(f"written: {path}")
    return int(any(row["status"] != "ok" for row in rows))
