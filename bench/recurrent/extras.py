"""What the goals ask besides ratios: denormals, memory, and bf16 products for float32."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import machine
from bench.measure import Budget, Step, speedup
from bench.recurrent.cases import CLASSES, MODES, NAMED, Case, Job
from bench.recurrent.problem import build, gradients, make_step

Extra = dict[str, Any]  # what, mode, where, value

DENORMAL = 1e-39  # times a normal variate or a weight: below 1.2e-38, the least normal float


def measure(threads: int, budget: Budget) -> Iterator[Extra]:
    with machine.threads_kept():
        torch.set_num_threads(threads)
        yield from denormals(NAMED["medium-256"], budget)
        yield from medium([NAMED["medium-256"], NAMED["large-512"]], budget)
    yield from memory([NAMED["large-512"], NAMED["huge-1024"]])


def denormals(case: Case, budget: Budget) -> Iterator[Extra]:
    """Our time with denormal numbers / our time with normal ones."""
    for cell, place, mode in product(CLASSES, ("x", "weights"), MODES):
        normal, _, problem = build(Job(cell, "f32", case))
        other, _, tiny = build(Job(cell, "f32", case))
        with torch.no_grad():
            for value in (tiny.x,) if place == "x" else other.parameters():
                value.mul_(DENORMAL)
        steps = make_step(other, tiny, mode), make_step(normal, problem, mode)
        where = f"{cell} {case.name}, {place}, {mode}"
        yield extra("denormal", mode, where, 1 / speedup_in(mode, *steps, budget))


def medium(cases: Sequence[Case], budget: Budget) -> Iterator[Extra]:
    """Our time under set_float32_matmul_precision("highest") / under "medium"."""
    before = torch.get_float32_matmul_precision()
    try:
        for cell, case, mode in product(("lstm", "gru"), cases, MODES):
            ours, _, problem = build(Job(cell, "f32", case))
            step = make_step(ours, problem, mode)
            steps = _under("medium", step), _under("highest", step)
            where = f"{cell} {case.name}"
            yield extra("medium", mode, where, speedup_in(mode, *steps, budget))
    finally:
        torch.set_float32_matmul_precision(before)


def _under(precision: str, step: Step) -> Step:
    def under() -> None:
        torch.set_float32_matmul_precision(precision)
        step()

    return under


def speedup_in(mode: str, faster: Step, slower: Step, budget: Budget) -> float:
    with torch.set_grad_enabled(mode == "train"):
        return speedup(faster, slower, budget)


def memory(cases: Sequence[Case]) -> Iterator[Extra]:
    """The growth of our peak memory in a training step / of torch's, each in its own process."""
    if not Path("/proc/self/clear_refs").exists():
        return
    for cell, case in product(("lstm", "gru"), cases):
        job = Job(cell, "f32", case)
        ours, theirs = (machine.in_new_process(peak_memory, job, side) for side in (0, 1))
        yield extra("memory", "train", f"{cell} {case.name}", ours / theirs)


def peak_memory(job: Job, side: int, recompute: bool = False) -> int:
    """By how many bytes a training step raises the process's peak memory; side 1 is torch."""
    tiny = build(Job(job.cell, job.dtype, Case("tiny", 2, 2, 8, 8)))
    gradients(tiny[side], tiny[2])  # libraries and threads are there from now on
    *modules, problem = build(job)
    module: nn.Module = modules[side]
    if recompute:
        module.recompute = True
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    gradients(module, problem)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def extra(what: str, mode: str, where: str, value: float) -> Extra:
    return {"what": what, "mode": mode, "where": where, "value": value}
