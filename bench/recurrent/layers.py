"""LSTM, GRU and RNN layers against torch.nn: `python -m bench rnn`.

Times layers of each cell, forward alone (infer) and forward plus backward (train), ours and
torch.nn in turns in one process. Every result is first compared with torch.nn in double precision;
a wrong one is reported as WRONG, gets no speed-up and makes the exit status 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from adl_kernels import _C
from bench import machine, options, report
from bench.measure import Budget, timed
from bench.peak import Peak, Rates
from bench.recurrent import extras
from bench.recurrent.cases import CLASSES, DTYPES, GATES, GRIDS, MODES, NAMED, Job, flops, select
from bench.recurrent.problem import build, check, make_step
from bench.recurrent.report import goal_tables, group_table, groups
from bench.store import Row

HELP = "time LSTM, GRU and RNN layers against torch.nn (about 5 minutes)"
FILE = "cpu-rnn.json"
EPILOG = f"""\
Cases (T, B, I, H): {". ".join(f"{case.name} ({case})" for case in NAMED.values())}. The grid 'main'
has five of the layers; 'full' has all cases, float32 with and without page faults, and judges the
goals (about 40 minutes). The per cent of peak are of this machine's rate of multiply-adds, measured
in the same run, in float32 for f32 and f16, in bfloat16 for bf16, and half of float32's for f64."""


def add_options(command: argparse.ArgumentParser) -> None:
    options.add_list(command, "--cells", tuple(CLASSES))
    options.add_list(command, "--dtypes", tuple(DTYPES), "f32,bf16; all for the grid full")
    options.add_list(command, "--modes", MODES)
    add = command.add_argument
    add("--cases", metavar="LIST", help="names of cases or shapes TxBxIxH (default: the grid)")
    add("--grid", choices=tuple(GRIDS), default="main", help="the table of cases (default: main)")
    options.add_timing(command, "2; 1 for the grid full")
    options.add_files(command, FILE, "and a picture")


USUAL = Budget()


@dataclass(frozen=True)
class Settings:
    jobs: Sequence[Job]
    threads: Sequence[int] = (1, 2)
    modes: Sequence[str] = MODES
    budget: Budget = USUAL
    # What the gate said of a cell, dtype and case in each mode, where another process asked it.
    checked: Mapping[tuple[str, ...], dict[str, Row]] = field(default_factory=dict)


def main(asked: argparse.Namespace) -> int:
    full = asked.grid == "full"
    jobs = select(asked.grid, asked.cases, asked.cells, asked.dtypes)
    budget = options.budget(asked, Budget(1.0, (3, 200)) if full else USUAL)
    settings = Settings(jobs, asked.threads, asked.modes, budget)
    facts, peaks = machine.facts(asked.words), Peak()
    print(machine.line(facts))
    rows, rates = measure(settings)
    peaks.take(rates)
    steady = of_both_mallocs(settings, rows)
    if full and steady.jobs and machine.malloc() == "plain":
        others, rates = machine.without_page_faults(measure, steady)
        rows += others
        peaks.take(rates)
    whole = full and jobs == select("full", None, tuple(CLASSES), None)
    more = list(extras.measure(max(asked.threads), budget)) if whole else []
    refer_to_peak(rows, peaks)
    content = {
        "machine": facts,
        "grid": asked.grid,
        "peak_gflops": peaks.rates,
        "extras": more,
        "rows": rows,
        "summary": groups(rows),
    }
    print("", report.peak_line(peaks.rates), sep="\n")
    print("\ntime of torch.nn / time of adl_kernels", group_table(content["summary"]), sep="\n")
    if full:
        print("", *goal_tables(content), sep="\n\n")
    status = options.finish(asked, FILE, content, rows)
    if asked.save:
        from bench.recurrent import picture

        picture.draw((options.RESULTS / FILE).with_suffix(".png"), content)
    return status


def of_both_mallocs(settings: Settings, rows: Sequence[Row]) -> Settings:
    """What is also measured without page faults: layers in float32, with the checks of rows."""
    checked: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found = checked.setdefault((row["cell"], row["dtype"], row["case"]), {})
        found[row["mode"]] = {key: row[key] for key in ("status", "check")}
    jobs = [job for job in settings.jobs if job.dtype == "f32"]
    jobs = [job for job in jobs if job.case.kind in ("layer", "stack")]
    return replace(settings, jobs=jobs, checked=checked)


def measure(settings: Settings) -> tuple[list[Row], Rates]:
    """Print and return everything that is asked for, and the peak rates seen meanwhile."""
    peaks = Peak()
    peaks.measure_all({job.dtype for job in settings.jobs}, settings.threads)
    head = report.header(f"{'cell dtype thr mode  case':32}", SHOWN)
    print(report.peak_line(peaks.rates), head, sep="\n\n")
    return report.printed(measured_rows(settings, peaks), line), peaks.rates


SHOWN = ("gflops", "share_of_peak", "page_faults")


def line(row: Row) -> str:
    start = f"{row['cell']:4} {row['dtype']:5} {row['threads']:3} {row['mode']:5} {row['case']:12}"
    return report.line(start, row, SHOWN)


def measured_rows(settings: Settings, peaks: Peak) -> Iterator[Row]:
    """Check and time everything that is asked for, one row per measurement."""
    with machine.threads_kept():
        for job in settings.jobs:
            yield from _rows_of(job, settings, peaks)


def _rows_of(job: Job, settings: Settings, peaks: Peak) -> Iterator[Row]:
    torch.set_num_threads(max(settings.threads))
    ours, theirs, problem = build(job)
    checked = settings.checked.get((job.cell, job.dtype, job.case.name))
    checked = checked or check(ours, theirs, problem, settings.modes)
    for mode in settings.modes:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            row = job.row() | {"malloc": machine.malloc(), "threads": threads, "mode": mode}
            row |= checked[mode]
            peaks.measure(job.dtype, threads)
            steps = (make_step(module, problem, mode) for module in (ours, theirs))
            with torch.set_grad_enabled(mode == "train"):
                gflops = 1e-9 * flops(job.cell, job.case, mode)
                row = timed(row, *steps, settings.budget, gflops=gflops)
            refer_to_peak([row], peaks)
            yield row | _read_share(job, row)


def refer_to_peak(rows: Sequence[Row], peaks: Peak) -> None:
    """Shares of the peak as it stands; at the end of a run once more."""
    for row in rows:
        for side in (row.get("ours", {}), row.get("torch", {})):
            if side:
                side["share_of_peak"] = side["gflops"] / peaks.of(row["dtype"], row["threads"])


def _read_share(job: Job, row: Row) -> Row:
    """How fast a single sequence reads W_hh, against reading a buffer of that size."""
    case = job.case
    where = (case.kind, case.B, job.dtype, row["mode"], row["status"])
    if where != ("layer", 1, "f32", "infer", "ok"):
        return {}
    size = 4 * GATES[job.cell] * case.H * case.H
    rate = 1e9 * _C.read_gbytes(size, row["threads"], 0.05)
    return {"read_share": size * case.T / row["ours"]["median_s"] / rate}
