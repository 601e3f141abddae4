"""Times the depthwise convolutions against torch's in one process, case by case.

Every operator by itself, and a training step as autograd runs it. Each result is first compared, on
some channels, with torch's convolution in double precision: a channel does not depend on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import conv_blocks, gate, machine
from bench.cases import DTYPES
from bench.conv_cases import ConvJob, elements, flops
from bench.peak import Peak, Rates
from bench.run import Row, Settings, timed

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

    def chosen(values: gate.Values) -> gate.Values:
        at = {"y": (1, outs), "dx": (1, channels), "dweight": (0, outs), "dbias": (0, outs)}
        return {k: v.index_select(*at[k]).double() for k, v in values.items()}

    verdicts = {}
    for op in ops:
        mine = chosen(named(ours(p, op)(), op))
        theirs = chosen(named(torchs(p, op)(), op))
        exact = {name: truth[name] for name in mine}
        eps = torch.finfo(p.x.dtype).eps
        worst = [_verdict(k, mine[k], theirs[k], exact[k], eps) for k in mine]
        verdict = max(worst, key=lambda v: v.ours / v.limit)
        status = "ok" if all(v.ok for v in worst) else "WRONG"
        verdicts[op] = {"status": status, "check": str(verdict)}
    return verdicts


def _exact(p: Problem, channels: int) -> Call:
    stride, padding, dilation = p.job.case.window
    n = p.job.case.n
    around = [pad for k in reversed(range(n)) for pad in (padding[k], padding[n + k])]
    return _training(
        lambda x, w, b: CONVS[n](F.pad(x, around), w, b, stride, 0, dilation, channels), p
    )


def _verdict(name: str, mine: Tensor, theirs: Tensor, exact: Tensor, eps: float) -> gate.Verdict:
    scale = exact.abs().max().clamp(min=1e-30)
    own, other = (float((t - exact).abs().max() / scale) for t in (mine, theirs))
    limit = gate.FACTOR * other + gate.FLOOR_ULPS * eps
    return gate.Verdict(own <= limit, name, own, other, limit)


def measure(jobs: Sequence[ConvJob], ops: Sequence[str], settings: Settings) -> Iterator[Row]:
    """Check and time everything that is asked for, one row per measurement."""
    before = torch.get_num_threads()
    try:
        for job in jobs:
            torch.set_num_threads(max(settings.threads))
            problem = build(job)
            checked = check(problem, ops)
            for op in ops:
                for threads in settings.threads:
                    torch.set_num_threads(threads)
                    yield _row(problem, op, threads, settings, checked[op])
    finally:
        torch.set_num_threads(before)


def _row(p: Problem, op: str, threads: int, settings: Settings, checked: Row) -> Row:
    job, case = p.job, p.job.case
    row: Row = {"case": case.name, "shape": str(case), "dtype": job.dtype, "layout": job.layout}
    row |= {"B": job.B, "op": op, "threads": threads, "malloc": machine.malloc()} | checked
    size = p.x.element_size() * elements(case, job.B, op)
    return row | timed(row, ours(p, op), torchs(p, op), settings, flops(case, job.B, op), size)


def run(
    jobs: Sequence[ConvJob], ops: Sequence[str], settings: Settings, blocks: bool
) -> tuple[list[Row], Rates]:
    """Print and return everything that is asked for, and the peak rates of the machine.

    blocks: whether separable blocks and a MobileNet are measured after the grid.
    """
    peak = Peak()
    for threads in settings.threads:
        for dtype in {job.dtype for job in jobs}:
            peak.measure(dtype, threads, 0.3)
    print(HEADER)
    found = []
    for row in chain(measure(jobs, ops, settings), conv_blocks.measure(settings) if blocks else ()):
        found.append(row)
        print(line(row), flush=True)
    return found, peak.rates


HEADER = (
    f"{'case':24}{'dtype':>5} {'chan.':5} {'B':>3} {'op':8}{'thr':>3}{'ours ms':>11}{'±%':>4}"
    f"{'torch ms':>11}{'±%':>4}{'ratio':>8}{'GFLOP/s':>9}{'':>7}{'GB/s':>7}{'':>6}{'faults':>8}"
)


def line(row: Row) -> str:
    """One row of the table; a wrong result has no times and no ratio."""
    start = f"{row['case']:24}{row['dtype']:>5} {row['layout']:5} {row['B']:3} {row['op']:8}"
    start += f"{row['threads']:3}"
    if row["status"] != "ok":
        return f"{start}   {row['status']}: {row['check']}"
    a, b = row["ours"], row["torch"]
    return (
        f"{start}{_time(a)}{_time(b)}{row['ratio']:8.2f}{a['gflops']:9.1f}{b['gflops']:7.1f}"
        f"{a['gbytes']:7.1f}{b['gbytes']:6.1f}{a['page_faults']:8.0f}{b['page_faults']:8.0f}"
        + "  disturbed"
        * row["disturbed"]
    )


def _time(side: Row) -> str:
    spread = 50 * (side["high_s"] - side["low_s"]) / side["median_s"]
    return f"{1e3 * side['median_s']:11.4f}{spread:4.0f}"
