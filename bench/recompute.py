"""What recomputing the gates in backward saves in memory, and what it costs in time."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator

from bench import machine
from bench.cases import Case, Job
from bench.limits import Extra, peak_memory, speedup
from bench.run import Settings, build, make_step

CASE = Case("deep-512", 100, 64, 512, 512, "stack", num_layers=4)


def measure(settings: Settings) -> Iterator[Extra]:
    """A training step that recomputes / one that keeps its gates: time, peak memory."""
    for cell in ("lstm", "gru"):
        job = Job(cell, "f32", CASE)
        keeping, _, problem = build(job)
        recomputing = copy.deepcopy(keeping)
        recomputing.recompute = True
        steps = make_step(recomputing, problem, "train"), make_step(keeping, problem, "train")
        time = 1 / speedup(*steps, "train", settings)
        yield {"what": "time", "mode": "train", "where": f"{cell} {CASE}", "value": time}
        del keeping, recomputing, steps
        gc.collect()
        less, more = (machine.in_new_process(peak_memory, job, 0, flag) for flag in (True, False))
        yield {"what": "memory", "mode": "train", "where": f"{cell} {CASE}", "value": less / more}
