"""Every kind of tensor that torch can make, in every call: the right numbers, or an exception.

`python tests/test_tensor_kinds.py SEED CALLS` makes so many random calls, and prints each before it
is made: the last line of a process that died says in what.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import adl_kernels as adl


class Plain(Tensor):
    """A subclass that changes nothing."""


class Doubles(Tensor):
    """A subclass by __torch_function__."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A subclass by __torch_dispatch__, with no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = pytree.tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return func(*args, **kwargs)


def zero_tensor(t):
    v = torch.ones_like(t, requires_grad=True)
    return torch.autograd.grad(torch.sgn(v).sum(), v)[0]


def negated(t):
    found = torch.complex(t, -t).conj().imag
    assert found.is_neg()
    return found


def unaligned(t):
    room = torch.empty(t.numel() * t.element_size() + 1, dtype=torch.uint8)
    whole = torch.frombuffer(room.numpy(), dtype=t.dtype, offset=1, count=t.numel())
    return whole.view(t.shape).copy_(t)


def every_other(t):
    wide = torch.empty(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    return wide[..., ::2].copy_(t)


def fake(t):
    return FakeTensorMode().from_tensor(t)


def dual(t):
    return forward_ad.make_dual(t, torch.ones_like(t)) if forward_ad._current_level >= 0 else t


def inference(t):
    with torch.inference_mode():
        return t.clone()


def freed(t):
    t.untyped_storage().resize_(0)
    return t


# With the numbers of t.
SAME = {
    "clone": torch.clone,
    "parameter": nn.Parameter,
    "requires grad": lambda t: t.clone().requires_grad_(),
    "of a graph": lambda t: t.clone().requires_grad_() * 1,
    "negated": negated,
    "unaligned": unaligned,
    "every other": every_other,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 1 else t,
    "lazy clone": torch._lazy_clone,
    "subclass": lambda t: t.as_subclass(Plain),
    "by function": lambda t: t.as_subclass(Doubles),
    "by dispatch": Wrapped,
    "inference": inference,
    "dual": dual,
    "numpy": lambda t: torch.from_numpy(t.numpy()),
}  # fmt: skip
# With other numbers, sizes or no numbers at all.
OTHERS = {
    "zero tensor": zero_tensor,
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "fake": fake,
    "functional": torch._to_functional_tensor,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.flatten(1).to_sparse_csr() if t.dim() > 1 else t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "masked": lambda t: torch.masked.masked_tensor(t, t > 0),
    "complex": lambda t: torch.complex(t, t),
    "conjugated": lambda t: torch.complex(t, t).conj(),
    "int": lambda t: t.long(),
    "bool": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "scalar": lambda t: t.sum(),
    "shorter": lambda t: t[..., :-1],
    "no rows": lambda t: t[:0],
    "one more dimension": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "overlapping": lambda t: t.as_strided(t.shape, [1] * t.dim()),
    "freed": freed,
    "none": lambda t: None,
    "a list": lambda t: t.tolist(),
}  # fmt: skip
CONTEXTS = {
    "plain": contextlib.nullcontext,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "dual": forward_ad.dual_level,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fake": FakeTensorMode,
    "meta device": lambda: torch.device("meta"),
}


class Recorded(TorchDispatchMode):
    """Keeps the calls of this package's ops."""

    def __init__(self):
        super().__init__()
        self.calls: dict[Any, list[Any]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "adl_kernels":
            kept = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs or {}))
            self.calls.setdefault(func, []).append(kept)
        return func(*args, **(kwargs or {}))


def modules() -> list[tuple[nn.Module, Any]]:
    """With arguments for each."""
    h = torch.randn(2, 3, 5)
    made: list[tuple[nn.Module, Any]] = [
        (adl.LSTM(4, 5), (torch.randn(6, 3, 4),)),
        (adl.LSTM(4, 5, 2, batch_first=True), (torch.randn(3, 6, 4), (h, h.clone()))),
        (adl.LSTM(4, 5, bidirectional=True, proj_size=2), (torch.randn(6, 3, 4),)),
        (adl.LSTM(4, 5, peephole=True, zoneout=0.1).eval(), (torch.randn(6, 3, 4), (h[:1], h[1:]))),
        (adl.GRU(4, 5), (torch.randn(6, 3, 4), h[:1])),
        (adl.GRU(4, 5, layer_norm=True, bptt_steps=2), (torch.randn(6, 4),)),
        (adl.RNN(4, 5, bidirectional=True), (torch.randn(6, 3, 4), h)),
        (adl.LSTMCell(4, 5), (torch.randn(3, 4), (h[0], h[1]))),
        (adl.GRUCell(4, 5), (torch.randn(3, 4), h[0])),
        (adl.RNNCell(4, 5, bias=False), (torch.randn(4),)),
        (adl.DepthwiseConv1d(4, 8, 3), (torch.randn(2, 4, 9),)),
        (adl.DepthwiseConv2d(4, 4, 3, padding=1, stride=2), (torch.randn(2, 4, 7, 8),)),
        (adl.DepthwiseConv3d(4, 4, 3, activation="silu"), (torch.randn(1, 4, 4, 5, 6),)),
        (adl.CausalConv1d(4, 3), (torch.randn(2, 4, 9),)),
        (adl.SeparableConv2d(4, 5, 3, norm=True, dw_norm=True).eval(), (torch.randn(2, 4, 7, 8),)),
    ]
    return made


def numbers(result: Any) -> list[Tensor]:
    found = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
    return [t.detach().as_subclass(Tensor) for t in found]


def call_of(rng: random.Random, calls: list[Any], named: Any) -> tuple[str, Any, list[Any]]:
    """What is called, its tensors and other leaves, and how they are put together."""
    if rng.random() < 0.5:
        func, recorded = rng.choice(calls)
        args, kwargs = rng.choice(recorded)
        leaves, spec = pytree.tree_flatten((args, kwargs))

        def run(given):
            args, kwargs = pytree.tree_unflatten(given, spec)
            return func(*args, **kwargs)

        return str(func), run, leaves
    module, args = rng.choice(named)
    names = [name for name, p in module.named_parameters()]
    inputs, spec = pytree.tree_flatten(args)
    weights = [module.get_parameter(name).detach() for name in names]

    def run(given):
        owners = [(module.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names]
        before = [owner._parameters[name] for owner, name in owners]
        try:
            for (owner, name), t in zip(owners, given[len(inputs) :], strict=True):
                owner._parameters[name] = t
            return module(*pytree.tree_unflatten(given[: len(inputs)], spec))
        finally:
            for (owner, name), old in zip(owners, before, strict=True):
                owner._parameters[name] = old

    return type(module).__name__, run, [*inputs, *weights]


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    rng = random.Random(seed)
    named = modules()
    with Recorded() as recorded:
        for module, args in named:
            result = module(*args)
            sum(t.sum() for t in pytree.tree_leaves(result)).backward()
            with torch.no_grad():
                module(*args)
    calls = list(recorded.calls.items())
    outcomes = {"returned": 0, "raised": 0, "compared": 0}
    while sum(outcomes.values()) - outcomes["compared"] < count:
        name, run, leaves = call_of(rng, calls, named)
        at = [k for k, t in enumerate(leaves) if isinstance(t, Tensor)]
        chosen = rng.sample(at, min(len(at), rng.choice([1, 1, 2])))
        kinds = [rng.choice([*SAME, *OTHERS]) for _ in chosen]
        if rng.random() < 0.2:  # all of one kind
            chosen, kinds = at, [rng.choice([*SAME, *OTHERS])] * len(at)
        context = rng.choice(list(CONTEXTS))
        if context not in ("no grad", "inference") and {"functional", "freed"} & set(kinds):
            continue  # torch's own operators die of these, and may run there
        if "freed" in kinds and len(set(kinds)) > 1:
            continue  # as they do where they print one in a message
        says = f"{name} {context} " + ", ".join(
            f"{k}: {kind}" for k, kind in zip(chosen, kinds, strict=True)
        )
        print(says, flush=True)
        given = list(leaves)
        try:
            with CONTEXTS[context]():
                for k, kind in zip(chosen, kinds, strict=True):
                    make = SAME.get(kind) or OTHERS[kind]
                    if leaves[k].is_floating_point() or kind not in SAME:
                        given[k] = make(leaves[k].clone())
                found = run(given)
                if context in ("plain", "no grad") and rng.random() < 0.3:
                    sums = [
                        t.sum()
                        for t in pytree.tree_leaves(found)
                        if isinstance(t, Tensor) and t.requires_grad
                    ]
                    if sums:
                        sum(sums).backward()
                outcomes["returned"] += 1
        except Exception:
            outcomes["raised"] += 1
            continue
        if context in ("plain", "no grad") and all(kind in SAME for kind in kinds):
            for a, b in zip(numbers(found), numbers(run(leaves)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            outcomes["compared"] += 1
    print(outcomes)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "calls", [1500, pytest.param(50000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_kind_of_tensor(seed: int, calls: int) -> None:
    command = [sys.executable, str(Path(__file__)), str(seed), str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.returncode} in: {said[-1:]}\n{done.stderr[-3000:]}"
    assert len(said) == calls + 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
