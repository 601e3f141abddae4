"""torch.nn's layer and ours side by side: the same module twice, called with the same things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
)

import adl_kernels

# Nothing may warn, least of all about weights that are not one contiguous chunk.
MARKS = [
    pytest.mark.filterwarnings("error"),
    # torch's own, when it first loads its forward derivatives.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    # cuDNN's, of torch's own layers.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous"),
]

KINDS = {
    "LSTM": (nn.LSTM, adl_kernels.LSTM, {}),
    "GRU": (nn.GRU, adl_kernels.GRU, {}),
    "RNN_TANH": (nn.RNN, adl_kernels.RNN, {}),
    "RNN_RELU": (nn.RNN, adl_kernels.RNN, {"nonlinearity": "relu"}),
}
CELL_NAMES = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

T, B, I, H = 5, 3, 4, 7

every_kind = pytest.mark.parametrize("kind", KINDS)
# Where the class matters, not the formula.
every_class = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH"])


def pair(kind: str, *sizes: Any, dtype: Any = torch.float64, **options: Any) -> list[nn.RNNBase]:
    """torch's module and ours, made from the same seed."""
    options = {"device": DEVICE} | options
    modules = []
    for cls in KINDS[kind][:2]:
        torch.manual_seed(0)
        modules.append(cls(*(sizes or (I, H)), dtype=dtype, **KINDS[kind][2], **options))
    return modules


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def states(module: nn.RNNBase, batch: int | None, dtype: torch.dtype = torch.float64) -> Any:
    """hx that fits the module; without a batch dimension for batch None."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    lead = (count,) if batch is None else (count, batch)
    h = random(*lead, module.proj_size or module.hidden_size, seed=2, dtype=dtype)
    return (h, random(*lead, module.hidden_size, seed=3, dtype=dtype)) if is_lstm(module) else h


def contiguous(hx: Any) -> Any:
    """The states as cuDNN, and so torch's module on a GPU, wants them."""
    return hx.contiguous() if isinstance(hx, Tensor) else tuple(h.contiguous() for h in hx)


def is_lstm(module: nn.RNNBase) -> bool:
    return module.mode == "LSTM"


def tensors(value: Any) -> list[Tensor]:
    """The tensors of an output, a state or an hx, in order."""
    if value is None:
        return []
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors(item)]


def leaves(hx: Any) -> Any:
    """hx as inputs of which a gradient is asked, with the strides it has."""
    if hx is None:
        return None
    if isinstance(hx, Tensor):
        return hx.detach().requires_grad_()
    return type(hx)(h.detach().requires_grad_() for h in hx)


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    """Upstream gradients, whole numbers so that they are the same in every dtype."""
    return [(2 * random(*o.shape, seed=10 + k)).round().to(o.dtype) for k, o in enumerate(outputs)]


def results(
    module: nn.RNNBase, x: Tensor, hx: Any = None, pack: Callable[[Tensor], Any] = lambda x: x
) -> dict[str, Tensor | None]:
    """Outputs and the gradients of x, hx and all parameters, from a loss that reaches everything.

    `pack` makes what the module is called with from x.
    """
    x, hx = leaves(x), leaves(hx)
    module.zero_grad()
    torch.manual_seed(4)  # for dropout
    outputs = tensors(module(pack(x), hx))
    torch.autograd.backward(outputs, cotangents(outputs))
    found: dict[str, Tensor | None] = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
    found["random state"] = torch.get_rng_state()
    found["dx"] = x.grad
    found.update((f"dhx {k}", h.grad) for k, h in enumerate(tensors(hx)))
    found.update((f"d{name}", p.grad) for name, p in module.named_parameters())
    return found


def assert_same(
    ours: dict[str, Tensor | None],
    theirs: dict[str, Tensor | None],
    tolerance: float = 1e-12,
) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        got = ours[name]
        if expected is None or got is None:
            assert got is expected, name
            continue
        torch.testing.assert_close(
            got, expected, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def same_tensors(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(tensors(ours), tensors(theirs), rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Case:
    """A module and what it is called with."""

    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (T, B, I)  # of x as the module is given it
    hidden: int = H
    hx: type | None = tuple  # None: not given; of an LSTM a tuple or list
    lengths: tuple[int, ...] = ()  # of the sequences of a packed x

    def __call__(
        self, module: nn.RNNBase, rounded: torch.dtype = torch.float64
    ) -> dict[str, Tensor | None]:
        """Results of the module, in its dtype, for arguments that are exact in `rounded`."""
        dtype = module.weight_hh_l0.dtype
        batch_dim = 0 if module.batch_first else 1
        batch = self.shape[batch_dim] if len(self.shape) == 3 else None
        hx = None if self.hx is None else states(module, batch, rounded)
        if is_lstm(module) and hx is not None:
            hx = self.hx(h.to(dtype) for h in hx)
        elif hx is not None:
            hx = hx.to(dtype)
        x = random(*self.shape, dtype=rounded).to(dtype)
        return results(module, x, hx, self.pack(module))

    def pack(self, module: nn.RNNBase) -> Callable[[Tensor], Any]:
        if not self.lengths:
            return lambda x: x
        lengths = torch.tensor(self.lengths)
        is_sorted = list(self.lengths) == sorted(self.lengths, reverse=True)
        return lambda x: pack_padded_sequence(
            x, lengths, batch_first=module.batch_first, enforce_sorted=is_sorted
        )


TWO = {"num_layers": 2}
BOTH = {"bidirectional": True}
FIRST = {"batch_first": True}


def reproducible(cases: dict[str, Case]) -> dict[str, Case]:
    """Those whose dropout is drawn as torch's module draws it; cuDNN draws in its own way."""
    certain = (0.0, 1.0)
    return {
        name: case
        for name, case in cases.items()
        if DEVICE == "cpu" or case.options.get("dropout", 0.0) in certain
    }


ALL_CASES = {
    "one-layer": Case(),
    "no-hx": Case(hx=None),
    "hx-list": Case(hx=list),
    "three-layers": Case({"num_layers": 3}),
    "bidirectional": Case(BOTH),
    "bidirectional-three-layers-no-hx": Case({"num_layers": 3} | BOTH, hx=None),
    "no-bias": Case({"bias": False}),
    "no-bias-bidirectional-two-layers": Case({"bias": False} | TWO | BOTH),
    "batch-first": Case(FIRST),
    "batch-first-bidirectional-two-layers": Case(FIRST | TWO | BOTH),
    "batch-first-no-hx": Case(FIRST, hx=None),
    "unbatched": Case(shape=(T, I)),
    "unbatched-no-hx": Case(shape=(T, I), hx=None),
    "unbatched-batch-first-bidirectional": Case(FIRST | BOTH, shape=(T, I)),
    "dropout": Case({"num_layers": 3, "dropout": 0.4}),
    "dropout-bidirectional-batch-first": Case({"dropout": 0.5} | TWO | BOTH | FIRST),
    "dropout-everything": Case({"dropout": 1.0} | TWO),
    "batch-0": Case(shape=(T, 0, I)),
    "batch-0-bidirectional-two-layers": Case(TWO | BOTH | FIRST, shape=(0, T, I), hx=None),
    "one-step": Case(shape=(1, B, I)),
    "one-step-one-sequence-bidirectional": Case(TWO | BOTH, shape=(1, 1, I), hx=None),
    "sizes-of-one": Case(shape=(2, 1, 1), hidden=1),
    "wider-than-a-vector": Case(BOTH, shape=(3, 19, 33), hidden=41),
    "packed": Case(lengths=(5, 3, 1)),
    "packed-no-hx": Case(lengths=(5, 3, 1), hx=None),
    "packed-unsorted": Case(lengths=(2, 5, 3)),
    "packed-unsorted-bidirectional-two-layers": Case(TWO | BOTH, lengths=(1, 5, 2)),
    "packed-unsorted-batch-first": Case(FIRST | TWO, shape=(B, T, I), lengths=(4, 5, 4)),
    "packed-dropout-no-bias": Case(TWO | {"dropout": 0.5, "bias": False}, lengths=(5, 5, 2)),
    "packed-lengths-of-one": Case(BOTH, lengths=(1, 1, 1)),
    "packed-one-sequence": Case(BOTH, shape=(T, 1, I), lengths=(4,)),
}

CASES = reproducible(ALL_CASES)

ALL_PROJECTIONS = {
    "projection": Case({"proj_size": 3}),
    "projection-no-hx-bidirectional": Case({"proj_size": 3} | BOTH, hx=None),
    "projection-two-layers-no-bias": Case({"proj_size": 1, "bias": False} | TWO | BOTH),
    "projection-batch-first-dropout": Case({"proj_size": 6, "dropout": 0.5} | TWO | FIRST),
    "projection-unbatched": Case({"proj_size": 3} | FIRST, shape=(T, I)),
    "projection-batch-0": Case({"proj_size": 3} | TWO, shape=(T, 0, I)),
    "projection-packed": Case({"proj_size": 3} | TWO | BOTH, lengths=(3, 5, 1)),
}

PROJECTIONS = reproducible(ALL_PROJECTIONS)
