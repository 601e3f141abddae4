"""The gate before every measurement: is the result right?

Both sides are compared with torch.nn in double precision. Ours may be wrong by at most twice what
torch.nn is wrong by for the same input and number type, plus a few units in the last place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

FACTOR = 2.0
FLOOR_ULPS = 4.0
TF32_EPS = 2.0**-10

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """The tensor that comes closest to its limit; errors relative to its largest magnitude."""

    ok: bool
    tensor: str
    ours: float
    torch: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.tensor} is off by {self.ours:.1e}, torch.nn by {self.torch:.1e}, "
            f"allowed {self.limit:.1e}"
        )


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


def errors(found: Values, truth: Values) -> dict[str, float]:
    return {name: _error(value, truth[name]) for name, value in found.items()}


def _error(found: Tensor, truth: Tensor) -> float:
    largest = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((found.double() - truth).abs().max() / largest).item()


def judge(
    found: Values, truth: Values, torch_error: Mapping[str, float], tf32: bool = False
) -> Verdict:
    """Compare every tensor with its limit and report the worst.

    tf32: float32 may be rounded to it, though torch.nn need not have done so for this size.
    """
    verdicts = []
    for name, error in errors(found, truth).items():
        eps = TF32_EPS if tf32 else torch.finfo(found[name].dtype).eps
        limit = FACTOR * torch_error[name] + FLOOR_ULPS * eps
        # Written so that NaN, for which every comparison is false, is a failure.
        verdicts.append(Verdict(error <= limit, name, error, torch_error[name], limit))
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    return max(wrong or verdicts, key=lambda verdict: verdict.ours / verdict.limit)
