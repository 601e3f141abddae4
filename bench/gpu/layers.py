"""Layers on a GPU against torch.nn on cuDNN: `python -m bench gpu`.

Times layers, forward and training, with CUDA events, ours and torch.nn's in turns; every result is
first compared with torch.nn in double precision. Also measures what the GPU does at best, and
judges the goals. Writes bench/results/<name of GPU>.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import machine, options, store
from bench.goals import judge_all
from bench.gpu import report
from bench.gpu.grids import COLUMNS, GRIDS, NAMED, NUMBERS
from bench.measure import Budget, Clock, Step, race, timed, wall
from bench.recurrent.cases import CLASSES, MODES, Job, flops, jobs, parse_cases
from bench.recurrent.problem import Problem, build, check, make_step
from bench.store import Row

HELP = "time LSTM, GRU and RNN layers on a GPU against torch.nn on cuDNN (4 minutes)"

# A sample is long enough that the GPU has work queued while it is timed.
SAMPLE_S, ROUNDS = 4e-3, (3, 100)


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the command itself")
    options.add_list(command, "--cells", tuple(CLASSES))
    tf32 = "; tf32 is float32 that may be rounded to it"
    options.add_list(command, "--dtypes", tuple(NUMBERS), more=tf32)
    add(
        "--grid",
        choices=tuple(GRIDS),
        default="wide",
        help="goals: the shapes that the persistent kernels are held to, to "
        "<name of GPU>-goals.json; first: what tells most in two minutes",
    )
    add("--graphs", action="store_true", help="also replay every call from a CUDA graph")
    add("--cases", metavar="LIST", help="names of cases or shapes TxBxIxH (default: the grid)")
    add(
        "--seconds",
        type=float,
        default=200.0,
        metavar="S",
        help="for all rows together; 0: three samples each (default: %(default)s)",
    )
    add("--json", type=Path, metavar="PATH", help="write to PATH instead")


@dataclass(frozen=True)
class Settings:
    jobs: Sequence[Job]
    device: str = "cuda"
    seconds: float = 200.0  # for all rows together
    sample_s: float = SAMPLE_S
    graphs: bool = False  # also replay the calls from CUDA graphs


def main(asked: argparse.Namespace) -> int:
    """Prints the tables; on a GPU, or where a path is given, writes them down, too."""
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench: torch finds no GPU here")
    grid = GRIDS[asked.grid]
    if asked.cases is None:
        chosen = grid.select(asked.cells, asked.dtypes)
    else:
        chosen = jobs(parse_cases(asked.cases, NAMED), asked.cells, asked.dtypes)
    settings = Settings(chosen, asked.device, asked.seconds, graphs=asked.graphs)
    known = facts(asked.words, asked.device)
    found = ceilings(asked.device, 8192 if known["gpu"] else 64)
    path = asked.json
    if path is None and known["gpu"]:
        name = known["gpu"] if asked.grid == "wide" else f"{known['gpu']} {asked.grid}"
        path = options.RESULTS / f"{store.slug(name)}.json"
    rows: list[Row] = []
    start = time.perf_counter()

    def content() -> dict[str, Any]:
        lines = judge_all(grid.goals, COLUMNS, rows)
        return {"machine": known, "ceilings": found, "goals": lines, "rows": rows}

    for row in measure(settings):
        rows.append(row)
        if row["status"] != "ok":
            print(report.problem_line(row), flush=True)
        if path is not None:  # now, in case this is the last that is heard of the GPU
            store.write_json(path, content())
    print(machine.line(known), report.markdown(content()), sep="\n\n")
    print(f"\n{len(rows)} rows in {time.perf_counter() - start:.0f} s")
    if path is not None:
        store.save(path, content())
    return int(any(row["status"] != "ok" for row in rows))


def facts(words: Sequence[str], device: str) -> dict[str, Any]:
    found = machine.facts(words)
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


# Time


def clock_of(device: str) -> Clock:
    return by_events if torch.device(device).type == "cuda" else wall


def by_events(step: Step, calls: int = 1) -> float:
    """Seconds per call that a GPU is busy, from the first to the last operation."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / calls


def allow_tf32(may: bool) -> None:
    """In layers, and in products, by which torch's cells are made."""
    torch.backends.cudnn.allow_tf32 = may
    torch.set_float32_matmul_precision("high" if may else "highest")


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


# Rows


def measure(settings: Settings) -> Iterator[Row]:
    """Check and time every job, one row per mode; what time does not allow for is left out."""
    end = time.perf_counter() + settings.seconds
    for done, job in enumerate(settings.jobs):
        left = end - time.perf_counter()
        if settings.seconds > 0 and left < 0:
            print(f"out of time: {len(settings.jobs) - done} of {len(settings.jobs)} jobs left out")
            return
        rows_left = len(MODES) * (len(settings.jobs) - done)
        # Half of the time goes into building, checking and warming up.
        seconds = max(0.0, left) / rows_left / (4 if settings.graphs else 2)
        yield from _rows_of(job, settings, Budget(seconds, ROUNDS, settings.sample_s))


def _rows_of(job: Job, settings: Settings, budget: Budget) -> Iterator[Row]:
    case, clock = job.case, clock_of(settings.device)
    allow_tf32(job.dtype == "tf32")
    try:
        *modules, problem = pair(job, settings.device)
        checked = check(*modules, problem, MODES, tf32=job.dtype == "tf32")
    except RuntimeError as error:  # the other cases may well run
        failed = {"status": "FAILED", "check": str(error).splitlines()[0]}
        checked = dict.fromkeys(MODES, failed)
    for mode in MODES:
        row = job.row() | {"mode": mode} | checked[mode]
        if row["status"] == "ok":
            for module in modules:
                module.train(mode == "train")  # in eval mode cuDNN keeps nothing for backward
            steps = [make_step(module, problem, mode) for module in modules]
            with torch.set_grad_enabled(mode == "train"):
                for step in steps:
                    clock(step, 1)  # loads what this mode needs
                tflops = 1e-12 * flops(job.cell, case, mode)
                row = timed(row, *steps, budget, clock, tflops=tflops)
                for side in (row["ours"], row["torch"]):
                    side["us_per_step"] = 1e6 * side["median_s"] / case.T
                if settings.graphs and clock is by_events:
                    row["graph"] = _replayed(steps, case.T, budget)
        yield row


def _replayed(steps: Sequence[Step], T: int, budget: Budget) -> Row:
    """Without the host's part: microseconds per step of graphs of the calls."""
    try:
        sides = race(*(captured(step) for step in steps), budget, by_events)
    except RuntimeError as error:
        return {"problem": str(error).splitlines()[0]}
    ours, theirs = (1e6 * side.median / T for side in sides)
    return {"ours_us": ours, "torch_us": theirs, "ratio": theirs / ours}


def pair(job: Job, device: str) -> tuple[nn.Module, nn.Module, Problem]:
    """Ours and torch.nn's module on the device, and what both are asked to compute."""
    dtype = "f32" if job.dtype == "tf32" else job.dtype
    with torch.device(device):  # random numbers are made there, too: the host takes seconds
        ours, theirs, problem = build(replace(job, dtype=dtype))
    return ours, theirs, replace(problem, batch_sizes=job.case.batch_sizes)


# Ceilings


def ceilings(device: str, size: int = 8192) -> dict[str, float]:
    """What the GPU does at best: copies, matrix products on random numbers, launches."""
    clock = clock_of(device)

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
