"""What recomputing the gates saves in memory and costs in time: `python -m bench recompute`.

Four layers in training, to bench/results/cpu-recompute.json.
"""

from __future__ import annotations

import argparse
import copy
import gc
from collections.abc import Iterator

from bench import machine, options, store
from bench.measure import Budget
from bench.recurrent.cases import Case, Job
from bench.recurrent.extras import Extra, extra, peak_memory, speedup_in
from bench.recurrent.problem import build, make_step
from bench.report import printed

HELP = "time and memory of layers that recompute their gates (half a minute)"
CASE = Case("deep-512", 100, 64, 512, 512, "stack", num_layers=4)


def add_options(command: argparse.ArgumentParser) -> None:
    """None."""


def main(asked: argparse.Namespace) -> int:
    rows = measure(Budget())
    found = printed(rows, lambda row: f"{row['where']:40} {row['what']:8} {row['value']:.2f}")
    content = {"machine": machine.facts(asked.words), "recomputing / keeping": found}
    store.save(options.RESULTS / "cpu-recompute.json", content)
    return 0


def measure(budget: Budget) -> Iterator[Extra]:
    """A training step that recomputes / one that keeps its gates: time, peak memory."""
    for cell in ("lstm", "gru"):
        job, where = Job(cell, "f32", CASE), f"{cell} {CASE}"
        keeping, _, problem = build(job)
        recomputing = copy.deepcopy(keeping)
        recomputing.recompute = True
        steps = (make_step(module, problem, "train") for module in (recomputing, keeping))
        yield extra("time", "train", where, 1 / speedup_in("train", *steps, budget))
        del keeping, recomputing, steps
        gc.collect()
        less, more = (machine.in_new_process(peak_memory, job, 0, flag) for flag in (True, False))
        yield extra("memory", "train", where, less / more)
