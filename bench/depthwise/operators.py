"""Depthwise convolutions against torch's: `python -m bench conv`.

Times every operator by itself (forward, gradient of the input, of weight and bias) and a training
step as autograd runs it, ours and torch's in turns in one process. Every result is first compared,
on some channels, with torch's in double precision: a channel does not depend on others. A wrong one
is reported as WRONG, gets no speed-up and makes the exit status 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import gate, machine, options, report
from bench.depthwise import blocks, cases
from bench.depthwise.cases import LAYOUTS, OPS, ConvJob, elements, flops
from bench.depthwise.goals import case_table, table
from bench.measure import Budget, timed
from bench.peak import Peak, Rates
from bench.recurrent.cases import DTYPES
from bench.store import Content, Row

HELP = "time depthwise and separable convolutions against torch's"
EPILOG = f"Cases (channels@size kernel): {', '.join(f'{c.name} ({c})' for c in cases.CASES)}."
FILE = "cpu-conv.json"

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
CHECKED = 6  # channels

Call = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """The tensors of a job; those of torch's side differ where it cannot pad on one side only."""

    job: ConvJob
    x: Tensor  # [B, C, ..]
    weight: Tensor  # [C M, 1, k..]
    bias: Tensor
    dy: Tensor  # [B, C M, ..]
    dy_torch: Tensor  # the same, and zeros for outputs past the end if causal


def build(job: ConvJob) -> Problem:
    torch.manual_seed(0)
    case, dtype = job.case, DTYPES[job.dtype]
    outs = case.C * case.multiplier
    weight = torch.randn(outs, 1, *[case.k] * case.n) / case.k**case.n**0.5
    x = _laid_out(torch.randn(job.B, case.C, *case.size), job.layout).to(dtype)
    dy = _laid_out(torch.randn(job.B, outs, *case.out), job.layout).to(dtype)
    dy_torch = _laid_out(F.pad(dy, (0, case.pad)), job.layout) if case.causal else dy
    return Problem(job, x, weight.to(dtype), torch.randn(outs).to(dtype), dy, dy_torch)


def _laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "first":
        return t.contiguous()
    if t.dim() == 3:
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    return t.contiguous(memory_format=FORMATS[t.dim() - 2])


def ours(p: Problem, op: str) -> Call:
    ops, case = torch.ops.adl_kernels, p.job.case
    window, kernel = case.window, [case.k] * case.n
    if op == "forward":
        return lambda: ops.depthwise_conv(p.x, p.weight, p.bias, *window)
    if op == "input":
        return lambda: ops.depthwise_conv_input_grad(p.dy, p.weight, p.x.shape, *window)
    if op == "weight":
        return lambda: ops.depthwise_conv_weight_grad(p.dy, p.x, kernel, *window, bias=True)
    return _training(lambda x, w, b: ops.depthwise_conv(x, w, b, *window), p)


def torchs(p: Problem, op: str) -> Call:
    """What a user of torch writes, the faster way where there are two.

    A causal convolution pads both sides and takes the beginning; with the channels side by side,
    where torch copies anyhow, forward pads one side only.
    """
    case = p.job.case
    stride, _, dilation = case.window
    pad, zeros, groups = [case.pad] * case.n, [0] * case.n, case.C

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if case.causal and p.job.layout == "last":
            return F.conv1d(F.pad(x, (case.pad, 0)), w, b, stride, 0, dilation, groups)
        y = CONVS[case.n](x, w, b, stride, pad, dilation, groups)
        return y[..., : case.size[-1]] if case.causal else y

    def backward(mask: list[bool]) -> Call:
        geometry = (stride, pad, dilation, False, zeros, groups, mask)
        bias = [p.bias.numel()]
        run = torch.ops.aten.convolution_backward
        return lambda: run(p.dy_torch, p.x, p.weight, bias, *geometry)

    if op == "forward":
        return lambda: conv(p.x, p.weight, p.bias)
    if op == "input":
        return backward([True, False, False])
    if op == "weight":
        return backward([False, True, True])
    return _training(conv, p)


def _training(conv: Callable[[Tensor, Tensor, Tensor], Tensor], p: Problem) -> Call:
    inputs = [t.detach().requires_grad_() for t in (p.x, p.weight, p.bias)]
    return lambda: (y := conv(*inputs), *torch.autograd.grad(y, inputs, p.dy))


def named(found: Any, op: str) -> gate.Values:
    """Results of one side by name; torch's backward has holes where nothing was asked for."""
    found = [found] if isinstance(found, Tensor) else [t for t in found if t is not None]
    names = {"forward": ["y"], "input": ["dx"], "weight": ["dweight", "dbias"]}
    train = ["y", "dx", "dweight", "dbias"]
    return dict(zip(names.get(op, train), [t.detach() for t in found], strict=True))


def check(p: Problem, ops: Sequence[str]) -> dict[str, Row]:
    """What the gate says of each op."""
    case = p.job.case
    channels = torch.linspace(0, case.C - 1, min(CHECKED, case.C)).round().long()
    outs = (channels[:, None] * case.multiplier + torch.arange(case.multiplier)).flatten()
    some = Problem(
        p.job,
        p.x[:, channels].double(),
        p.weight[outs].double(),
        p.bias[outs].double(),
        p.dy[:, outs].double(),
        p.dy_torch[:, outs].double(),
    )
    truth = named(_exact(some, len(channels))(), "train")
    at = {"y": (1, outs), "dx": (1, channels), "dweight": (0, outs), "dbias": (0, outs)}

    def chosen(call: Call, op: str) -> gate.Values:
        return {name: t.index_select(*at[name]) for name, t in named(call(), op).items()}

    verdicts = {}
    for op in ops:
        theirs = gate.errors(chosen(torchs(p, op), op), truth)
        verdicts[op] = gate.judge(chosen(ours(p, op), op), truth, theirs).row()
    return verdicts


def _exact(p: Problem, channels: int) -> Call:
    stride, padding, dilation = p.job.case.window
    n = p.job.case.n
    around = [pad for k in reversed(range(n)) for pad in (padding[k], padding[n + k])]
    return _training(
        lambda x, w, b: CONVS[n](F.pad(x, around), w, b, stride, 0, dilation, channels), p
    )


def measure(
    jobs: Sequence[ConvJob], ops: Sequence[str], threads: Sequence[int], budget: Budget
) -> Iterator[Row]:
    """Check and time everything that is asked for, one row per measurement."""
    with machine.threads_kept():
        for job in jobs:
            torch.set_num_threads(max(threads))
            problem = build(job)
            checked = check(problem, ops)
            for op, n in product(ops, threads):
                torch.set_num_threads(n)
                yield _row(problem, op, n, budget, checked[op])


def _row(p: Problem, op: str, threads: int, budget: Budget, checked: Row) -> Row:
    job, case = p.job, p.job.case
    row: Row = {"case": case.name, "shape": str(case), "dtype": job.dtype, "layout": job.layout}
    row |= {"B": job.B, "op": op, "threads": threads, "malloc": machine.malloc()} | checked
    amounts = {
        "gflops": 1e-9 * flops(case, job.B, op),
        "gbytes": 1e-9 * p.x.element_size() * elements(case, job.B, op),
    }
    return timed(row, ours(p, op), torchs(p, op), budget, **amounts)


# The command


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--cases", metavar="LIST", help="names of cases (default: all)")
    options.add_list(command, "--dtypes", tuple(DTYPES), "those of each case")
    options.add_list(command, "--ops", OPS)
    options.add_list(command, "--layouts", LAYOUTS, more=": where the channels lie")
    add("--batches", type=options.counts, metavar="LIST", help="sizes (default: of each case)")
    add("--no-blocks", action="store_true", help="only the operators, no separable blocks")
    options.add_timing(command, "0.5")
    options.add_files(command, FILE, "and again without page faults")


def main(asked: argparse.Namespace) -> int:
    chosen = cases.jobs(asked.cases, asked.dtypes, asked.layouts, asked.batches)
    facts = machine.facts(asked.words)
    print(machine.line(facts))
    # Whoever asks for a part of the grid wants no blocks.
    whole = asked.cases is None and not asked.no_blocks
    budget = options.budget(asked, Budget(0.5, (3, 200)))
    arguments = (chosen, asked.ops, asked.threads, budget, whole)
    rows, peaks = run(*arguments)
    if asked.save and machine.malloc() == "plain":
        rows += machine.without_page_faults(run, *arguments)[0]
    content = {"machine": facts, "peak_gflops": peaks, "convolutions": rows}
    print("", report.peak_line(peaks), table(rows), sep="\n\n")
    return options.finish(asked, FILE, content, rows)


def run(
    jobs: Sequence[ConvJob], ops: Sequence[str], threads: Sequence[int], budget: Budget, whole: bool
) -> tuple[list[Row], Rates]:
    """Print and return everything that is asked for, and the peak rates of the machine.

    whole: whether separable blocks and a MobileNet are measured after the grid.
    """
    peak = Peak()
    peak.measure_all({job.dtype for job in jobs}, threads)
    print(report.header(f"{'case':24}{'dtype':>5} {'chan.':5} {'B':>3} {'op':8}thr", SHOWN))
    more = blocks.measure(threads, budget) if whole else ()
    rows = chain(measure(jobs, ops, threads, budget), more)
    return report.printed(rows, line), peak.rates


SHOWN = ("gflops", "gbytes", "page_faults")


def line(row: Row) -> str:
    start = f"{row['case']:24}{row['dtype']:>5} {row['layout']:5} {row['B']:3} {row['op']:8}"
    return report.line(f"{start}{row['threads']:3}", row, SHOWN)


def markdown(content: Content) -> str:
    rows = content["convolutions"]
    return table(rows) + "\n\n" + case_table(rows)
