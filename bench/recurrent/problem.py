"""A case as modules and tensors: what both sides are asked, and whether ours answers rightly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import adl_kernels
from bench import gate
from bench.gate import Values, errors
from bench.measure import Step
from bench.recurrent.cases import CLASSES, DTYPES, Job
from bench.store import Row


@dataclass(frozen=True)
class Problem:
    """What both sides are asked: the input and the gradients that arrive at every output."""

    x: Tensor  # [T, B, I]; [N, I] if packed; [B, I] for a cell
    hx: tuple[Tensor, ...]  # h_0, and c_0 for the LSTM; none for zeros
    douts: tuple[Tensor, ...]  # of y (not for a cell), h_n, and c_n for the LSTM
    batch_sizes: Tensor | None = None  # [T] if packed

    def to(self, dtype: torch.dtype) -> Problem:
        x, *hx = (value.detach().to(dtype).requires_grad_() for value in (self.x, *self.hx))
        return Problem(x, tuple(hx), tuple(d.to(dtype) for d in self.douts), self.batch_sizes)

    def arguments(self) -> tuple[object, ...]:
        """What a module is called with."""
        x = self.x if self.batch_sizes is None else PackedSequence(self.x, self.batch_sizes)
        return (x, self.hx if len(self.hx) > 1 else self.hx[0]) if self.hx else (x,)


def outputs(module: nn.Module, problem: Problem) -> tuple[Tensor, ...]:
    """y (not of a cell), h_n and, for the LSTM, c_n."""
    found = module(*problem.arguments())
    if isinstance(module, nn.RNNCellBase):
        return found if isinstance(found, tuple) else (found,)
    y, state = found
    y = y.data if isinstance(y, PackedSequence) else y
    return (y, *state) if isinstance(state, tuple) else (y, state)


def gradients(module: nn.Module, problem: Problem) -> tuple[Tensor, ...]:
    """Of the input, the first state and all weights, for a loss that reaches every output."""
    return _backward(outputs(module, problem), module, problem)


def _backward(found: tuple[Tensor, ...], module: nn.Module, problem: Problem) -> tuple[Tensor, ...]:
    inputs = (problem.x, *problem.hx, *module.parameters())
    return torch.autograd.grad(found, inputs, problem.douts)


def values(module: nn.Module, problem: Problem, mode: str) -> Values:
    """Everything that a call in this mode computes, by name."""
    with torch.set_grad_enabled(mode == "train"):
        found = outputs(module, problem)
    names = ("h_n", "c_n") if isinstance(module, nn.RNNCellBase) else ("y", "h_n", "c_n")
    named = dict(zip(names, found, strict=False))
    if mode == "train":
        leaves = ["x", *("h_0", "c_0")[: len(problem.hx)]]
        leaves += [name for name, _ in module.named_parameters()]
        gradients = _backward(found, module, problem)
        named |= {"d" + leaf: d for leaf, d in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in named.items()}


def reference(theirs: nn.Module, problem: Problem) -> Values:
    """The definition in double precision, for exactly these weights and inputs."""
    return values(copy.deepcopy(theirs).double(), problem.to(torch.float64), "train")


def torch_errors(theirs: nn.Module, problem: Problem, truth: Values) -> dict[str, float]:
    """The relative error of torch.nn itself, tensor by tensor.

    The reference is no more exact than torch.nn in double. There the error is torch.nn's in single
    precision, scaled: rounding errors are proportional to the unit in the last place. This needs
    weights and inputs that are exact in single precision, so that the truth is the same. To it
    comes what the reference itself is wrong by: MKL adds up products in double one by one, so
    that a gradient of weights over N rows, or of x over N gates, is off by some sqrt(N) / 4 units.
    """
    if problem.x.dtype != torch.float64:
        return errors(values(theirs, problem, "train"), truth)
    single = values(copy.deepcopy(theirs).float(), problem.to(torch.float32), "train")
    eps = torch.finfo(torch.float64).eps
    scale = eps / torch.finfo(torch.float32).eps
    longest = max(problem.x[..., 0].numel(), 4 * theirs.hidden_size)
    own = math.sqrt(longest) / 4 * eps
    return {name: scale * error + own for name, error in errors(single, truth).items()}


def build(job: Job) -> tuple[nn.Module, nn.Module, Problem]:
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


def _problem(job: Job) -> Problem:
    case = job.case
    states = 2 if job.cell == "lstm" else 1
    # One step stands for the steps of a loop, which hands on the state.
    given = states if case.kind in ("step", "cell") else 0
    x = torch.randn(*case.rows, case.I)
    hx = tuple(torch.randn(case.state) for _ in range(given))
    dy = () if case.kind == "cell" else (torch.randn(*case.rows, case.directions * case.H),)
    dstate = tuple(torch.randn(case.state) for _ in range(states))
    return Problem(x, hx, dy + dstate, case.batch_sizes)


def make_step(module: nn.Module, problem: Problem, mode: str) -> Step:
    """One call as a user makes it. The loss is given by its gradients and so costs nothing."""
    if mode == "train":
        return lambda: gradients(module, problem)
    arguments = problem.arguments()
    return lambda: module(*arguments)


def check(
    ours: nn.Module,
    theirs: nn.Module,
    problem: gate.Problem,
    modes: Sequence[str],
    tf32: bool = False,
) -> dict[str, Row]:
    """What the gate says of each mode. With most threads: the bits do not depend on them."""
    truth = reference(theirs, problem)
    allowed = torch_errors(theirs, problem, truth)
    found = {}
    for mode in modes:
        found[mode] = gate.judge(values(ours, problem, mode), truth, allowed, tf32).row()
    return found
