"""LSTM, GRU and RNN cannot be told from torch.nn's, which run beside them in every test."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tolerance import assert_accurate
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.utils.checkpoint import checkpoint

import adl_kernels
from adl_kernels import reference

# Nothing here may warn, least of all about weights that are not one contiguous chunk.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    # torch's own, when it first loads its forward derivatives.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
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


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """How many threads is for test_ops.py; torch's small ops crawl where cores are shared."""
    threads(1)


def pair(kind: str, *sizes: Any, dtype: Any = torch.float64, **options: Any) -> list[nn.RNNBase]:
    """torch's module and ours, made from the same seed."""
    modules = []
    for cls in KINDS[kind][:2]:
        torch.manual_seed(0)
        modules.append(cls(*(sizes or (I, H)), dtype=dtype, **KINDS[kind][2], **options))
    return modules


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def states(module: nn.RNNBase, batch: int | None, dtype: torch.dtype = torch.float64) -> Any:
    """hx that fits the module; without a batch dimension for batch None."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    lead = (count,) if batch is None else (count, batch)
    h = random(*lead, module.proj_size or module.hidden_size, seed=2, dtype=dtype)
    return (h, random(*lead, module.hidden_size, seed=3, dtype=dtype)) if is_lstm(module) else h


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


# Constructors

CONSTRUCTIONS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "sizes": ("LSTM", (4, 7), {}),
    "keywords": ("GRU", (), {"input_size": 4, "hidden_size": 7, "num_layers": 2}),
    "all-positional": ("LSTM", (4, 7, 2, False, True, 0.25, True, 3), {}),
    "all-positional-gru": ("GRU", (4, 7, 2, False, True, 0.25, True), {}),
    "all-positional-rnn": ("RNN_TANH", (4, 7, 2, "relu", False, True, 0.25, True), {}),
    "nonlinearity-keyword": ("RNN_RELU", (4, 7), {}),
    "nonlinearity-positional": ("RNN_TANH", (4, 7, 1, "tanh"), {"bias": False}),
    "no-bias": ("GRU", (4, 7), {"bias": False}),
    "batch-first": ("RNN_TANH", (4, 7), {"batch_first": True}),
    "bidirectional": ("GRU", (4, 7, 2), {"bidirectional": True}),
    "projection": ("LSTM", (4, 7, 2), {"proj_size": 3, "bidirectional": True}),
    "projection-no-bias": ("LSTM", (4, 7), {"proj_size": 3, "bias": False}),
    "dropout-int": ("LSTM", (4, 7, 2), {"dropout": 1}),
    "three-layers-of-one": ("RNN_RELU", (1, 1, 3), {}),
    "float64": ("LSTM", (4, 7), {"dtype": torch.float64}),
    "bfloat16": ("GRU", (4, 7), {"dtype": torch.bfloat16, "device": "cpu"}),
    "complex64": ("RNN_TANH", (4, 7), {"dtype": torch.complex64}),
    "meta": ("LSTM", (4, 7, 2), {"device": torch.device("meta")}),
}

ATTRIBUTES = (
    "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size "
    "nonlinearity training __constants__ __jit_unused_properties__ _all_weights "
    "_flat_weights_names"
).split()


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructor_makes_the_same_module(name: str) -> None:
    kind, args, options = CONSTRUCTIONS[name]
    theirs_cls, ours_cls, extra = KINDS[kind]
    torch.manual_seed(3)
    theirs = theirs_cls(*args, **options, **extra)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    ours = ours_cls(*args, **options, **extra)

    assert repr(ours) == repr(theirs)
    for attribute in ATTRIBUTES:
        missing = object()
        expected = getattr(theirs, attribute, missing)
        assert expected is missing or getattr(ours, attribute) == expected, attribute
        assert hasattr(ours, attribute) == hasattr(theirs, attribute), attribute
    assert type(ours.dropout) is float
    assert set(vars(ours)) == set(vars(theirs))

    # The same seed gives the same weights, bit for bit, and leaves the same seed behind.
    assert torch.equal(torch.get_rng_state(), state)
    expected = dict(theirs.named_parameters())
    assert list(expected) == [key for key, _ in ours.named_parameters()]
    for key, p in ours.named_parameters():
        assert type(p) is nn.Parameter and p.requires_grad
        assert (p.dtype, p.device, p.shape) == (
            expected[key].dtype,
            expected[key].device,
            expected[key].shape,
        )
        assert p.is_meta or torch.equal(p, expected[key]), key
    flat = [p for group in ours.all_weights for p in group]
    assert len(flat) == len(ours._flat_weights) == len(ours._flat_weight_refs) == len(expected)
    for p, key, kept, ref in zip(
        flat, ours._flat_weights_names, ours._flat_weights, ours._flat_weight_refs, strict=True
    ):
        assert p is getattr(ours, key) and p is kept and p is ref()


BAD_CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "nothing": ((), {}),
    "no-hidden-size": ((4,), {}),
    "unknown-keyword": ((4, 7), {"size": 3}),
    "too-many": ((4, 7, 1, "tanh", True, True, 0.0, False, 0, None, None, 1), {}),
    "bias-int": ((4, 7), {"bias": 1}),
    "bias-none": ((4, 7), {"bias": None}),
    "batch-first-int": ((4, 7), {"batch_first": 0}),
    "batch-first-str": ((4, 7), {"batch_first": "yes"}),
    "input-size-float": ((4.0, 7), {}),
    "input-size-zero": ((0, 7), {}),
    "input-size-negative": ((-1, 7), {}),
    "hidden-size-float": ((4, 7.5), {}),
    "hidden-size-zero": ((4, 0), {}),
    "hidden-size-negative": ((4, -2), {}),
    "num-layers-zero": ((4, 7, 0), {}),
    "num-layers-negative": ((4, 7, -1), {}),
    "num-layers-float": ((4, 7, 1.0), {}),
    "num-layers-str": ((4, 7, "1"), {}),
    "dropout-negative": ((4, 7, 2), {"dropout": -0.1}),
    "dropout-above-one": ((4, 7, 2), {"dropout": 1.5}),
    "dropout-bool": ((4, 7, 2), {"dropout": True}),
    "dropout-str": ((4, 7, 2), {"dropout": "0.5"}),
    "dropout-word": ((4, 7, 2), {"dropout": "half"}),
    "dropout-none": ((4, 7, 2), {"dropout": None}),
    "dtype-int": ((4, 7), {"dtype": torch.int64}),
    "dtype-str": ((4, 7), {"dtype": "float"}),
    "device-unknown": ((4, 7), {"device": "nowhere"}),
    # The first of several mistakes is the one reported.
    "dropout-and-bias": ((4, 7), {"dropout": 2.0, "bias": 1}),
    "bias-and-sizes": ((0, 0), {"bias": 1}),
    "sizes-and-layers": ((4, 0, 0), {}),
}

BAD_PROJECTIONS: dict[str, dict[str, Any]] = {
    "negative": {"proj_size": -1},
    "as-wide-as-hidden": {"proj_size": 7},
    "wider-than-hidden": {"proj_size": 8},
    "float": {"proj_size": 2.5},
    "and-dropout": {"proj_size": -1, "dropout": 3.0},
}


def failure(cls: type, *args: Any, **kwargs: Any) -> tuple[type, str]:
    try:
        cls(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    pytest.fail(f"{cls} accepted {args} {kwargs}")


@every_kind
@pytest.mark.parametrize("name", BAD_CONSTRUCTIONS)
def test_constructor_refuses_what_torch_refuses(kind: str, name: str) -> None:
    theirs, ours, extra = KINDS[kind]
    args, kwargs = BAD_CONSTRUCTIONS[name]
    assert failure(ours, *args, **kwargs, **extra) == failure(theirs, *args, **kwargs, **extra)


@pytest.mark.parametrize("name", BAD_PROJECTIONS)
def test_constructor_refuses_bad_projections(name: str) -> None:
    bad = BAD_PROJECTIONS[name]
    assert failure(adl_kernels.LSTM, 4, 7, **bad) == failure(nn.LSTM, 4, 7, **bad)


@pytest.mark.parametrize("kind", ["GRU", "RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_only_lstm_has_projections(kind: str, proj_size: int) -> None:
    theirs, ours, extra = KINDS[kind]
    expected = failure(theirs, 4, 7, proj_size=proj_size, **extra)
    assert failure(ours, 4, 7, proj_size=proj_size, **extra) == expected
    assert expected[0] is ValueError and "only supported for LSTM" in expected[1]


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((4, 7), {"nonlinearity": "sigmoid"}),
        ((4, 7, 1, "RELU"), {}),
        ((4, 7), {"nonlinearity": None}),
        ((4, 7, 1, True), {}),  # bias where torch.nn.RNN has nonlinearity
        ((4, 7, 1, "tanh"), {"nonlinearity": "tanh"}),
        ((4, 7, 1, "oops"), {"proj_size": 2}),
    ],
    ids=["keyword", "positional", "none", "bias-in-its-place", "twice", "and-projection"],
)
def test_rnn_refuses_other_nonlinearities(args: Any, kwargs: Any) -> None:
    assert failure(adl_kernels.RNN, *args, **kwargs) == failure(nn.RNN, *args, **kwargs)


@every_kind
def test_dropout_on_one_layer_warns(kind: str) -> None:
    theirs, ours, extra = KINDS[kind]
    texts = []
    for cls in (theirs, ours):
        with pytest.warns(UserWarning, match="non-zero dropout expects") as record:
            cls(4, 7, dropout=0.5, **extra)
        texts.append([str(warning.message) for warning in record])
    assert texts[0] == texts[1] and len(texts[0]) == 1


@every_class
def test_is_an_rnnbase_with_its_methods(kind: str) -> None:
    theirs, ours = pair(kind, 4, 7, 2, bidirectional=True)
    assert isinstance(ours, nn.RNNBase)
    public = {name for name in dir(type(theirs)) if not name.startswith("_")}
    assert public <= set(dir(type(ours)))
    x, sizes = random(T, B, I), torch.tensor([2, 1])
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    assert ours.get_expected_hidden_size(x, sizes) == theirs.get_expected_hidden_size(x, sizes)
    hx, order = states(ours, B), torch.tensor([2, 0, 1])
    same_tensors(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    assert ours.permute_hidden(hx, None) is hx
    ours.check_forward_args(x, hx, None)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module.check_forward_args(x, states(ours, B + 1), None)
    if kind == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


# Outputs and gradients


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

CASES = {
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

PROJECTIONS = {
    "projection": Case({"proj_size": 3}),
    "projection-no-hx-bidirectional": Case({"proj_size": 3} | BOTH, hx=None),
    "projection-two-layers-no-bias": Case({"proj_size": 1, "bias": False} | TWO | BOTH),
    "projection-batch-first-dropout": Case({"proj_size": 6, "dropout": 0.5} | TWO | FIRST),
    "projection-unbatched": Case({"proj_size": 3} | FIRST, shape=(T, I)),
    "projection-batch-0": Case({"proj_size": 3} | TWO, shape=(T, 0, I)),
    "projection-packed": Case({"proj_size": 3} | TWO | BOTH, lengths=(3, 5, 1)),
}


@pytest.mark.parametrize(
    "kind, name",
    [(kind, name) for kind in KINDS for name in CASES] + [("LSTM", name) for name in PROJECTIONS],
)
def test_outputs_and_gradients(kind: str, name: str) -> None:
    case = (CASES | PROJECTIONS)[name]
    theirs, ours = pair(kind, case.shape[-1], case.hidden, **case.options)
    expected = case(theirs)
    got = case(ours)
    assert_same(got, expected)
    assert all(g is not None for g in got.values())


ROUNDING = {
    "bidirectional-two-layers": Case(TWO | BOTH, shape=(9, 4, 20), hidden=24),
    "one-step-one-sequence": Case(shape=(1, 1, 20), hidden=24),
    "packed": Case(BOTH, shape=(9, 4, 20), hidden=17, lengths=(4, 9, 1, 4)),
    "projection": Case({"proj_size": 5} | BOTH, shape=(9, 4, 20), hidden=24),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind, name",
    [(kind, name) for kind in KINDS for name in ROUNDING if kind == "LSTM" or name != "projection"],
)
def test_rounds_no_worse_than_torch(kind: str, name: str, dtype: torch.dtype) -> None:
    case = ROUNDING[name]
    theirs, ours = pair(kind, case.shape[-1], case.hidden, dtype=dtype, **case.options)
    # The computation in double is of the same rounded numbers.
    exact = case(copy.deepcopy(theirs).double(), dtype)
    torchs, got = case(theirs, dtype), case(ours, dtype)
    for key in exact.keys() - {"random state"}:
        assert_accurate(got[key], torchs[key], exact[key], key)


@every_class
@pytest.mark.parametrize("name", ["packed", "packed-unsorted", "packed-one-sequence"])
def test_packed_output_is_packed_as_the_input(kind: str, name: str) -> None:
    case = CASES[name]
    theirs, ours = pair(kind, bidirectional=True)
    packed = case.pack(ours)(random(*case.shape))
    expected, got = theirs(packed)[0], ours(packed)[0]
    assert type(got) is PackedSequence
    assert got.batch_sizes is packed.batch_sizes
    assert got.sorted_indices is packed.sorted_indices
    assert got.unsorted_indices is packed.unsorted_indices
    same_tensors(pad_packed_sequence(got), pad_packed_sequence(expected))
    assert got.data.stride() == expected.data.stride()


def test_pack_sequence_in_any_order_is_the_loop_over_sequences() -> None:
    theirs, ours = pair("GRU", bidirectional=True, num_layers=2)
    sequences = [random(length, I, seed=length) for length in (2, 4, 1, 4)]
    y, h_n = ours(pack_sequence(sequences, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [2, 4, 1, 4]
    for b, sequence in enumerate(sequences):
        alone, h = theirs(sequence)
        same_tensors([padded[: len(sequence), b], h_n[:, b]], [alone, h])


@every_class
def test_arguments_by_name_and_types_of_results(kind: str) -> None:
    theirs, ours = pair(kind)
    x, hx = random(T, B, I), states(ours, B)
    got = ours(input=x, hx=hx)
    same_tensors(got, theirs(input=x, hx=hx))
    same_tensors(ours(x, hx=None), theirs(x, None))
    assert type(got) is tuple and type(got[1]) is type(hx)


STRIDES = {
    "time-first": ({}, (T, B, I)),
    "batch-first": (FIRST, (B, T, I)),
    "batch-first-bidirectional-two-layers": (FIRST | TWO | BOTH, (B, T, I)),
    "unbatched": ({}, (T, I)),
    "unbatched-batch-first": (FIRST | BOTH, (T, I)),
}


@every_kind
@pytest.mark.parametrize("name", STRIDES)
def test_results_have_torchs_strides(kind: str, name: str) -> None:
    options, shape = STRIDES[name]
    theirs, ours = pair(kind, **options)
    x = random(*shape)
    for expected, got in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
        assert got.stride() == expected.stride()


@every_class
def test_states_given_are_never_written(kind: str) -> None:
    _, ours = pair(kind, num_layers=2)
    x, hx = random(T, B, I), states(ours, B)
    before = [x.clone(), *(h.clone() for h in tensors(hx))]
    results(ours, x, hx)
    same_tensors([x, hx], before, 0)


@every_class
def test_dropout_can_be_changed_and_is_off_in_eval(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=3, dropout=0.2)
    x = random(T, B, I)
    first = results(ours, x)
    for module in (theirs, ours):
        module.dropout = 0.7
    second = results(ours, x)
    assert_same(second, results(theirs, x))
    assert not torch.equal(first["output 0"], second["output 0"])
    for module in (theirs, ours):
        module.eval()
    expected = results(theirs, x)  # backward in eval mode, too
    assert_same(results(ours, x), expected)
    for module in (theirs, ours):
        module.train()
        module.dropout = 0.0
    trained = results(ours, x)
    assert_same(trained, expected)


# Gradients, used in every way


def slices(*shape: int, seed: int) -> Tensor:
    """Every second element of something larger, in every dimension."""
    return random(*(2 * size for size in shape), seed=seed)[tuple(slice(1, None, 2) for _ in shape)]


def transposed(*shape: int, seed: int) -> Tensor:
    return random(*reversed(shape), seed=seed).permute(*reversed(range(len(shape))))


def expanded(*shape: int, seed: int) -> Tensor:
    return random(shape[0], 1, shape[-1], seed=seed).expand(shape)


@every_kind
@pytest.mark.parametrize("layout", [slices, transposed, expanded], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options", [{}, FIRST | TWO | BOTH], ids=["plain", "batch-first-bidirectional-two-layers"]
)
def test_any_strides_of_input_states_and_upstream_gradients(
    kind: str, layout: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    theirs, ours = pair(kind, **options)
    x = layout(T, B, I, seed=1)
    shapes = [h.shape for h in tensors(states(ours, x.size(0 if ours.batch_first else 1)))]
    found = []
    for module in (theirs, ours):
        inputs = [leaves(x), *(leaves(layout(*s, seed=k)) for k, s in enumerate(shapes))]
        assert not any(t.is_contiguous() for t in inputs)
        outputs = tensors(module(inputs[0], tuple(inputs[1:]) if is_lstm(module) else inputs[1]))
        upstream = [layout(*o.shape, seed=20 + k) for k, o in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, [*inputs, *module.parameters()], upstream)
        found.append([*outputs, *gradients])
    same_tensors(found[1], found[0])


LOSSES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "output": lambda outputs: outputs[0].square().sum(),
    "h_n": lambda outputs: outputs[1].square().sum(),
    "last-state": lambda outputs: outputs[-1].sin().sum(),
    "one-step": lambda outputs: outputs[0][2].square().sum(),
    "one-number": lambda outputs: outputs[0][1, 2, 0],
    "forward-direction": lambda outputs: outputs[0][..., :H].square().sum(),
    "one-layer-of-h_n": lambda outputs: outputs[1][1].square().sum(),
    "all": lambda outputs: sum(o.cos().sum() for o in outputs),
}


@every_kind
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_on_some_of_the_outputs(kind: str, loss: str) -> None:
    found = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        inputs = [random(T, B, I).requires_grad_(), *tensors(leaves(states(module, B)))]
        outputs = tensors(module(inputs[0], tuple(inputs[1:]) if is_lstm(module) else inputs[1]))
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(
            LOSSES[loss](outputs), [*inputs, *parameters], allow_unused=True
        )
        keys = ["x", *(f"hx {k}" for k in range(len(inputs) - 1)), *names]
        # torch says None for some and zeros for others of those that do not matter.
        found.append(
            {
                key: torch.zeros_like(t) if g is None else g
                for key, g, t in zip(keys, gradients, [*inputs, *parameters], strict=True)
            }
        )
    assert_same(found[1], found[0])


@every_kind
def test_backward_twice_gives_the_same(kind: str) -> None:
    _, ours = pair(kind, num_layers=2, bidirectional=True)
    x = random(T, B, I).requires_grad_()
    outputs = tensors(ours(x))
    inputs = [x, *ours.parameters()]
    first, second = (
        torch.autograd.grad(outputs, inputs, cotangents(outputs), retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.grad(outputs, inputs, cotangents(outputs))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(outputs, inputs, cotangents(outputs))


@every_kind
def test_batched_gradients(kind: str) -> None:
    """Several upstream gradients at once: what torch calls is_grads_batched and vectorize."""
    found = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        x = random(T, B, I).requires_grad_()
        y = module(x)[0]
        upstream = random(4, *y.shape)
        inputs = [x, *module.parameters()]
        gradients = torch.autograd.grad(y, inputs, upstream, is_grads_batched=True)
        jacobian = torch.autograd.functional.jacobian(
            lambda x, m=module: m(x)[0], x.detach(), vectorize=True
        )
        found.append([*gradients, jacobian])
    same_tensors(found[1], found[0])


@every_kind
def test_saved_tensors_may_be_packed_away(kind: str) -> None:
    """As torch.autograd.graph.save_on_cpu does it."""
    _, ours = pair(kind, num_layers=2)
    expected, seen = results(ours, random(T, B, I)), []

    def put_away(t: Tensor) -> bytes:
        buffer = io.BytesIO()
        torch.save(t, buffer)
        seen.append(t)
        return buffer.getvalue()

    with torch.autograd.graph.saved_tensors_hooks(
        put_away, lambda kept: torch.load(io.BytesIO(kept))
    ):
        got = results(ours, random(T, B, I))
    assert seen
    assert_same(got, expected, 0)


@every_class
def test_anomaly_detection(kind: str) -> None:
    theirs, ours = pair(kind)
    expected = results(theirs, random(T, B, I))
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        assert_same(results(ours, random(T, B, I)), expected)


@every_kind
def test_gradients_accumulate(kind: str) -> None:
    theirs, ours = pair(kind)
    for module in (theirs, ours):
        for seed in (1, 2):
            tensors(module(random(T, B, I, seed=seed)))[0].sum().backward()
    same_tensors([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@every_kind
def test_gradient_of_a_gradient(kind: str) -> None:
    """A gradient penalty: the loss holds the gradient with respect to the input."""
    penalties = []
    for module in pair(kind, num_layers=2, bidirectional=True):
        x = random(T, B, I).requires_grad_()
        outputs = tensors(module(x, leaves(states(module, B))))
        (dx,) = torch.autograd.grad(outputs, x, cotangents(outputs), create_graph=True)
        inputs = [x, *module.parameters()]
        again = torch.autograd.grad(dx.square().sum(), inputs, allow_unused=True)
        penalties.append(
            [torch.zeros_like(t) if g is None else g for g, t in zip(again, inputs, strict=True)]
        )
    same_tensors(penalties[1], penalties[0], 1e-11)


@every_kind
def test_an_input_written_after_the_call_is_noticed(kind: str) -> None:
    for module in pair(kind):
        x = random(T, B, I)
        outputs = tensors(module(x))
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.backward(outputs, cotangents(outputs))


@every_kind
def test_no_grad_and_frozen_modules_keep_no_graph(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    with torch.no_grad():
        outputs = ours(x)
    with torch.inference_mode():
        inferred = ours(x)
    ours.requires_grad_(False)
    frozen = ours(x)
    for found in (outputs, inferred, frozen):
        assert not any(o.requires_grad for o in tensors(found))
        same_tensors(found, [o.detach() for o in tensors(theirs(x))])


# The state of a module: the same is done to torch's module and ours between two calls


def old_pickle(module: nn.RNNBase) -> nn.RNNBase:
    """What a module saved before PyTorch 1.8 holds: parameters in all_weights, no proj_size."""
    state = module.__getstate__()
    state["all_weights"] = module.all_weights
    for name in ("proj_size", "_all_weights", "_flat_weights_names", "_flat_weights"):
        del state[name]
    new = type(module).__new__(type(module))
    new.__setstate__(copy.deepcopy(state))
    return new


def loaded_by_assignment(module: nn.RNNBase) -> nn.RNNBase:
    with torch.device("meta"):
        new = type(module)(I, H, 2, bidirectional=True, dtype=torch.float64)
    # Of an RNN the nonlinearity is not in the state.
    new.mode = module.mode
    new.load_state_dict(module.state_dict(), assign=True)
    return new


def loaded_into_empty(module: nn.RNNBase) -> nn.RNNBase:
    new = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    new.load_state_dict(module.state_dict(), strict=True)
    return new


def deleted_and_moved(module: nn.RNNBase) -> None:
    p = module.weight_hh_l0
    del module.weight_hh_l0
    module.to(torch.float64)
    module.weight_hh_l0 = p


def parametrized_and_back(module: nn.RNNBase) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Identity())
    parametrize.remove_parametrizations(module, "weight_hh_l0")


def saved_and_loaded(module: nn.RNNBase, **options: Any) -> nn.RNNBase:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([type(module)]):
        return torch.load(buffer, **options)


KEEPING: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch-save": lambda m: saved_and_loaded(m, weights_only=False),
    "torch-save-safe-global": saved_and_loaded,
    "old-pickle": old_pickle,
    "old-pickle-with-all-weights": lambda m: m.__setstate__(
        m.__getstate__() | {"all_weights": m.all_weights}
    ),
    "to-where-it-is": lambda m: m.to("cpu", torch.float64),
    "load-state-dict-assign": loaded_by_assignment,
    "meta-to-empty-load": loaded_into_empty,
    "share-memory": lambda m: m.share_memory(),
    "flatten-parameters": lambda m: m.flatten_parameters(),
    "deleted-moved-set-again": deleted_and_moved,
    "train-eval": lambda m: m.eval(),
    "zero-grad": lambda m: m.zero_grad(set_to_none=False),
    "transposed-parameter": lambda m: setattr(
        m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach().t().contiguous().t())
    ),
    "strided-data": lambda m: setattr(
        m.bias_ih_l0, "data", m.bias_ih_l0.detach().repeat_interleave(2)[::2]
    ),
    "parametrized-by-nothing": lambda m: parametrize.register_parametrization(
        m, "weight_hh_l0", nn.Identity()
    ),
    "parametrized-and-back": parametrized_and_back,
    "pruned-nowhere": lambda m: prune.identity(m, "weight_ih_l0"),
}


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def stepped(optimizer: type[torch.optim.Optimizer]) -> Callable[[nn.RNNBase], None]:
    # The gradients are there from the first call.
    return lambda module: optimizer(module.parameters(), lr=0.1).step()


def with_new_parameter(module: nn.RNNBase) -> None:
    del module.weight_hh_l0
    module.weight_hh_l0 = nn.Parameter(random(*module.weight_hh_l1.shape))


def with_tensor(module: nn.RNNBase) -> None:
    del module.weight_hh_l0
    module.weight_hh_l0 = random(*module.weight_hh_l1.shape)


def reset(module: nn.RNNBase) -> None:
    torch.manual_seed(7)
    module.reset_parameters()


def with_deprecated_weight_norm(module: nn.RNNBase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)


def with_weight_norm(module: nn.RNNBase) -> None:
    parametrizations.weight_norm(module, "weight_ih_l1")
    with torch.no_grad():
        module.parametrizations.weight_ih_l1.original0.mul_(2)


def with_spectral_norm(module: nn.RNNBase) -> None:
    # In training every look at the weight is a power iteration, and torch's modules look often.
    torch.manual_seed(8)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    module.eval()


def bfloat16_by_swapping(module: nn.RNNBase) -> nn.RNNBase:
    # By hand torch.utils.swap_tensors refuses the weights of every RNNBase, which are weakly
    # referenced.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.bfloat16().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


ALTERING: dict[str, Callable[[Any], Any]] = {
    "half-and-back": lambda m: m.half().double(),
    "bfloat16-and-back": lambda m: m.bfloat16().double(),
    "bfloat16-and-back-by-swapping": bfloat16_by_swapping,
    "reset-parameters": reset,
    "data-assigned": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 0.5),
    "data-multiplied": lambda m: m.weight_hh_l0.data.mul_(0.5),
    "parameter-in-place": lambda m: torch.no_grad()(m.bias_hh_l1_reverse.add_)(1),
    # Parameters that are parts of one vector, at odd addresses.
    "vector": lambda m: nn.utils.vector_to_parameters(
        torch.linspace(-1, 1, sum(p.numel() for p in m.parameters()) + 1).double()[1:],
        m.parameters(),
    ),
    "initialised": lambda m: nn.init.orthogonal_(m.weight_hh_l0_reverse),
    "parameter-set": lambda m: setattr(m, "bias_ih_l0", nn.Parameter(m.bias_ih_l0.detach() + 1)),
    "deleted-then-parameter": with_new_parameter,
    "deleted-then-tensor": with_tensor,
    "tied": lambda m: setattr(m, "weight_hh_l1", m.weight_hh_l0),
    "load-state-dict": lambda m: m.load_state_dict({k: -p for k, p in m.state_dict().items()}),
    "sgd-step": stepped(torch.optim.SGD),
    "adam-step": stepped(torch.optim.Adam),
    "parametrized": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Half()),
    "weight-norm": with_weight_norm,
    "deprecated-weight-norm": with_deprecated_weight_norm,
    "spectral-norm": with_spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.4),
    "pruned-for-good": lambda m: prune.remove(
        prune.l1_unstructured(m, "weight_ih_l1_reverse", amount=0.4), "weight_ih_l1_reverse"
    ),
}


@pytest.mark.parametrize(
    "kind, change",
    [(kind, change) for kind in ("LSTM", "GRU", "RNN_RELU") for change in KEEPING | ALTERING],
)
def test_changes_take_effect_on_the_next_call(kind: str, change: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        hx = states(module, B)
        before = results(module, x, hx)
        changed = (KEEPING | ALTERING)[change](module)
        module = changed if isinstance(changed, nn.RNNBase) else module
        after = results(module, x, hx)
        # Weight norm alone rounds.
        same = torch.allclose(before["output 0"], after["output 0"], rtol=0, atol=1e-14)
        assert same == (change in KEEPING)
        found.append(after)
    assert_same(found[1], found[0])


@every_class
def test_state_dict_goes_both_ways(kind: str) -> None:
    x = random(T, B, I)
    for source, target in (pair(kind, num_layers=2), reversed(pair(kind, num_layers=2))):
        reset(target)
        assert not torch.equal(target(x)[0], source(x)[0])
        assert list(target.state_dict()) == list(source.state_dict())
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same(results(target, x), results(source, x))


@every_class
def test_state_dict_that_does_not_fit_is_refused_as_by_torch(kind: str) -> None:
    texts = []
    for module in pair(kind):
        state = module.state_dict()
        state["weight_hh_l7"] = state.pop("weight_hh_l0")
        state["bias_ih_l0"] = state["bias_ih_l0"][1:]
        with pytest.raises(RuntimeError, match="Missing key") as info:
            module.load_state_dict(state)
        texts.append(str(info.value))
    assert texts[0] == texts[1]


@every_class
@pytest.mark.parametrize("convert", ["half", "bfloat16", "float", "double"])
def test_dtype_methods(kind: str, convert: str) -> None:
    theirs, ours = (getattr(module, convert)() for module in pair(kind, dtype=None))
    dtype = theirs.weight_hh_l0.dtype
    assert {p.dtype for p in ours.parameters()} == {dtype} and ours(random(T, B, I, dtype=dtype))[
        0
    ].dtype == dtype
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


@every_kind
@pytest.mark.parametrize("name", ["no-hx", "batch-first-bidirectional-two-layers", "unbatched"])
def test_meta_modules_give_shapes(kind: str, name: str) -> None:
    case = CASES[name]
    theirs, ours = pair(kind, device="meta", **case.options)
    x = random(*case.shape).to("meta")
    for expected, got in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
        assert got.is_meta and got.shape == expected.shape and got.dtype == expected.dtype
    outputs = tensors(ours(x.requires_grad_()))
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    assert x.grad.shape == x.shape
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in ours.parameters())


@every_class
def test_flatten_parameters_does_nothing(kind: str) -> None:
    _, ours = pair(kind, num_layers=2)
    before = [(p, p.data_ptr(), p._version) for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert before == [(p, p.data_ptr(), p._version) for p in ours._flat_weights]
    del ours.weight_hh_l1
    ours._flat_weights[1] = None
    assert ours.flatten_parameters() is None


@every_class
def test_only_parameters_that_ask_get_a_gradient(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        module.requires_grad_(False)
        for name in ("weight_hh_l0", "bias_ih_l1_reverse", "weight_ih_l1"):
            getattr(module, name).requires_grad_()
        outputs = tensors(module(x))
        torch.autograd.backward(outputs, cotangents(outputs))
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert sum(g is not None for g in found[1].values()) == 3
    assert_same(found[1], found[0])


@every_class
def test_pruning_reaches_the_flat_weights(kind: str) -> None:
    _, ours = pair(kind)
    ours(random(T, B, I))
    prune.l1_unstructured(ours, "weight_hh_l0", amount=0.5)
    ours(random(T, B, I))
    index = ours._flat_weights_names.index("weight_hh_l0")
    assert ours._flat_weights[index] is ours.weight_hh_l0
    assert (ours._flat_weights[index] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    prune.random_unstructured(ours, "weight_hh_l0", amount=0.5)
    masked = ours.weight_hh_l0_mask == 0
    (ours(random(T, B, I))[0]).sum().backward()
    assert ours.weight_hh_l0_orig.grad[masked].abs().max() == 0


@every_class
def test_tied_weights_sum_their_gradients(kind: str) -> None:
    _, ours = pair(kind, num_layers=2)
    untied = copy.deepcopy(ours)
    untied.weight_hh_l1 = nn.Parameter(untied.weight_hh_l0.detach().clone())
    ours.weight_hh_l1 = ours.weight_hh_l0
    assert len(list(ours.parameters())) == len(list(untied.parameters())) - 1
    x = random(T, B, I)
    tied, apart = results(ours, x), results(untied, x)
    same_tensors(tied["output 0"], apart["output 0"])
    same_tensors(tied["dweight_hh_l0"], apart["dweight_hh_l0"] + apart["dweight_hh_l1"])


@every_class
def test_gradients_reach_a_tensor_set_as_weight(kind: str) -> None:
    """As weight drop does it: the weight is computed from a parameter at every call."""
    found = []
    for module in pair(kind):
        raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        module.register_parameter("raw", raw)
        module.weight_hh_l0 = raw * 0.5
        once = results(module, random(T, B, I))
        module.weight_hh_l0 = raw.t().contiguous().t() * 2
        found.append([*once.values(), *results(module, random(T, B, I)).values()])
    same_tensors(found[1], found[0])


@every_class
def test_data_parallel_replicas_use_the_weights_they_are_given(kind: str) -> None:
    """What torch.nn.parallel.replicate does to a module, which it does on GPUs only."""
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2):
        module(x)
        gradients = []
        for factor in (1.0, 0.5):
            replica = module._replicate_for_data_parallel()
            assert not list(replica.parameters())
            for name, p in module.named_parameters():
                setattr(replica, name, p * factor)
            outputs = tensors(replica(x))
            found_here = torch.autograd.grad(
                outputs, list(module.parameters()), cotangents(outputs)
            )
            gradients += [*outputs, *found_here]
        found.append(gradients)
        assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    same_tensors(found[1], found[0])
    assert not torch.allclose(found[1][0], found[1][len(found[1]) // 2])


@every_class
def test_hooks_see_what_torchs_see(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        seen: list[Any] = []

        def before(_: Any, args: Any, kwargs: Any, seen: list[Any] = seen) -> Any:
            seen.extend(args)
            return (args[0] * 2, *args[1:]), kwargs

        def after(_: Any, args: Any, output: Any, seen: list[Any] = seen) -> Any:
            seen.extend([args[0], output])
            return output[0] * 3, output[1]

        def backward(_: Any, grad_input: Any, grad_output: Any, seen: list[Any] = seen) -> Any:
            seen.extend([*grad_input, *grad_output])
            return tuple(None if g is None else g * 5 for g in grad_input)

        def backward_before(_: Any, grad_output: Any, seen: list[Any] = seen) -> None:
            seen.extend(grad_output)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
        module.register_full_backward_hook(backward)
        module.register_full_backward_pre_hook(backward_before)
        found.append([results(module, x), tensors(seen)])
    assert_same(found[1][0], found[0][0])
    same_tensors(found[1][1], found[0][1])
    assert len(found[1][1]) > 5


@every_kind
def test_functional_call_uses_other_weights(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2):
        own = module(x)
        others = {
            name: random(*p.shape, seed=k).requires_grad_()
            for k, (name, p) in enumerate(module.named_parameters())
        }
        outputs = tensors(functional_call(module, others, (x, states(module, B))))
        gradients = torch.autograd.grad(outputs, list(others.values()), cotangents(outputs))
        assert all(p.grad is None for p in module.parameters())
        same_tensors(module(x), own)
        found.append([*outputs, *gradients])
    same_tensors(found[1], found[0])


# Autocast


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["one-layer", "no-hx", "packed-unsorted-bidirectional-two-layers"])
def test_autocast(kind: str, dtype: torch.dtype, name: str) -> None:
    """Not compared with torch under autocast, whose GRU computes in float32 there."""
    case = CASES[name]
    theirs, ours = pair(kind, dtype=torch.float32, **case.options)
    x = random(*case.shape, dtype=torch.float32)
    hx = None if case.hx is None else states(ours, B, torch.float32)
    expected = results(theirs, x, hx, case.pack(theirs))
    with torch.autocast("cpu", dtype):
        got = results(ours, x, hx, case.pack(ours))
    scale = 8 * torch.finfo(dtype).eps
    for key, true in expected.items():
        is_output = key.startswith("output")
        assert got[key].dtype == (dtype if is_output else true.dtype), key
        bound = scale * max(1.0, true.abs().max().item())
        assert (got[key].double() - true.double()).abs().max().item() <= bound, key


@every_kind
def test_autocast_takes_states_and_inputs_of_other_dtypes(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32, num_layers=2)
    x, hx = random(T, B, I, dtype=torch.float32), states(ours, B, torch.float32)
    low = torch.bfloat16
    small = tuple(h.to(low) for h in hx) if is_lstm(ours) else hx.to(low)
    with torch.autocast("cpu", low):
        expected = ours(x, hx)
        for got in (ours(x, small), ours(x.to(low), hx), ours(x.to(low), small)):
            assert all(o.dtype == low for o in tensors(got))
            same_tensors(got, expected, 0)
    with torch.autocast("cpu", enabled=False):
        assert ours(x, hx)[0].dtype == torch.float32


@every_kind
def test_backward_outside_autocast(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32)
    x, found = random(T, B, I, dtype=torch.float32), []
    for inside in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)[0]
            if inside:
                gradients = torch.autograd.grad(y.sum(), ours.parameters())
        if not inside:
            gradients = torch.autograd.grad(y.sum(), ours.parameters())
        found.append(gradients)
    same_tensors(found[1], found[0], 0)


@every_kind
def test_autocast_under_vmap(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.float32, num_layers=2)
    x = random(4, T, B, I, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [torch.stack(o) for o in zip(*(outputs_of(ours)(one) for one in x), strict=True)]
        got = vmap(outputs_of(ours))(x)
    same_tensors(got, expected, 0.02)


@every_kind
def test_autocast_leaves_double_alone(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        same_tensors(ours(x, states(ours, B)), theirs(x, states(theirs, B)))


@every_class
def test_autocast_of_a_low_precision_module(kind: str) -> None:
    _, ours = pair(kind, dtype=torch.bfloat16)
    x = random(T, B, I, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        same_tensors(ours(x), ours.float()(x), 0)


# torch.func and forward-mode AD


def outputs_of(module: nn.RNNBase) -> Callable[..., tuple[Tensor, ...]]:
    """The module as a function of tensors that returns a tuple of tensors."""

    def run(x: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
        given = None if not hx else tuple(hx) if is_lstm(module) else hx[0]
        return tuple(tensors(module(x, given)))

    return run


@every_kind
def test_vmap_over_inputs(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x = random(4, T, B, I)
    expected = [torch.stack(o) for o in zip(*(outputs_of(theirs)(one) for one in x), strict=True)]
    same_tensors(vmap(outputs_of(ours))(x), expected)
    same_tensors(vmap(outputs_of(ours), in_dims=1)(x.transpose(0, 1)), expected)


@every_kind
def test_vmap_over_inputs_and_states(kind: str) -> None:
    theirs, ours = pair(kind, batch_first=True)
    x = random(4, T, I)  # unbatched inside
    hx = [random(4, 1, H, seed=k) for k in range(2 if is_lstm(ours) else 1)]
    run = outputs_of(theirs)
    each = [run(x[k], *(h[k] for h in hx)) for k in range(4)]
    same_tensors(vmap(outputs_of(ours))(x, *hx), [torch.stack(o) for o in zip(*each, strict=True)])


@every_class
def test_vmap_of_dropout(kind: str) -> None:
    _, ours = pair(kind, num_layers=2, dropout=0.5)
    x = random(T, B, I)
    twice = torch.stack([x, x])
    torch.manual_seed(4)
    expected = ours(x)[0]
    torch.manual_seed(4)
    same = vmap(lambda x: ours(x)[0], randomness="same")(twice)
    same_tensors(same, torch.stack([expected, expected]))
    different = vmap(lambda x: ours(x)[0], randomness="different")(twice)
    assert not torch.allclose(different[0], different[1])


@every_kind
def test_vmap_over_an_ensemble(kind: str) -> None:
    theirs, ours = pair(kind)
    x = random(T, B, I)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        theirs.reset_parameters()
        members.append(copy.deepcopy(theirs))
    stacked, _ = torch.func.stack_module_state(members)
    got = vmap(lambda p: functional_call(ours, p, (x,))[0])(stacked)
    same_tensors(got, torch.stack([member(x)[0] for member in members]))


@every_kind
def test_gradients_per_sample(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2)
    x = random(T, B, I)

    def loss(module: nn.RNNBase, parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, parameters, (sample,))[0].square().sum()

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    got = vmap(grad(lambda p, s: loss(ours, p, s)), in_dims=(None, 1))(parameters, x)
    for b in range(B):
        expected = torch.autograd.grad(theirs(x[:, b])[0].square().sum(), theirs.parameters())
        same_tensors([g[b] for g in got.values()], expected)


@every_kind
def test_functional_gradient_of_packed_sequences(kind: str) -> None:
    case = CASES["packed-unsorted-bidirectional-two-layers"]
    theirs, ours = pair(kind, **case.options)
    x, hx = random(*case.shape), states(ours, B)
    expected = torch.autograd.grad(
        [o.square().sum() for o in tensors(theirs(case.pack(theirs)(x), hx))], theirs.parameters()
    )

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        outputs = tensors(functional_call(ours, parameters, (case.pack(ours)(x), hx)))
        return sum(o.square().sum() for o in outputs)

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    same_tensors(list(grad(loss)(parameters).values()), expected)


@every_kind
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd], ids=lambda f: f.__name__)
def test_jacobians(kind: str, jacobian: Callable[..., Any]) -> None:
    theirs, ours = pair(kind, bidirectional=True)
    x = random(3, 2, I)
    expected = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x)
    same_tensors(jacobian(lambda x: ours(x)[0])(x), expected)


@every_kind
def test_jvp_and_vjp(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    primals = [random(T, B, I), *tensors(states(ours, B))]
    directions = [random(*p.shape, seed=30 + k) for k, p in enumerate(primals)]
    # In double torch's LSTM has a forward derivative; in float32 oneDNN's has none.
    expected = jvp(outputs_of(theirs), tuple(primals), tuple(directions))
    same_tensors(jvp(outputs_of(ours), tuple(primals), tuple(directions)), expected)
    outputs, pull = vjp(outputs_of(theirs), *primals)
    upstream = tuple(cotangents(list(outputs)))
    outputs, ours_pull = vjp(outputs_of(ours), *primals)
    same_tensors([*outputs, *ours_pull(upstream)], [*expected[0], *pull(upstream)])


@every_kind
def test_dual_numbers_in_inputs_and_weights(kind: str) -> None:
    theirs, ours = pair(kind)
    x, found = random(T, B, I), []
    for module in (theirs, ours):
        with forward_ad.dual_level():
            weights = {
                name: forward_ad.make_dual(p.detach(), random(*p.shape, seed=k))
                for k, (name, p) in enumerate(module.named_parameters())
            }
            dual = forward_ad.make_dual(x, random(*x.shape, seed=50))
            outputs = tensors(functional_call(module, weights, (dual,)))
            found.append([part for o in outputs for part in forward_ad.unpack_dual(o)])
    same_tensors(found[1], found[0])


@every_kind
def test_dual_numbers_in_float32(kind: str) -> None:
    """Against the definition: torch's LSTM cannot do it."""
    _, ours = pair(kind, dtype=torch.float32)
    x, dx = random(T, B, I, dtype=torch.float32), random(T, B, I, seed=2, dtype=torch.float32)
    hx = tensors(states(ours, B, torch.float32))
    weights = [p.detach() for p in ours.parameters()]
    _, expected = jvp(
        lambda x: tuple(reference.layer(CELL_NAMES[kind], x, hx, weights)), (x,), (dx,)
    )
    with forward_ad.dual_level():
        outputs = outputs_of(ours)(forward_ad.make_dual(x, dx), *hx)
        got = [forward_ad.unpack_dual(o).tangent for o in outputs]
    same_tensors(got, expected, 1e-5)


@every_class
def test_hessians(kind: str) -> None:
    theirs, ours = pair(kind)
    x, direction = random(3, 2, I), random(3, 2, I, seed=2)
    loss = [lambda x, m=m: m(x)[0].square().sum() for m in (theirs, ours)]
    _, expected = torch.autograd.functional.hvp(loss[0], x, direction)
    same_tensors(torch.autograd.functional.hvp(loss[1], x, direction)[1], expected)
    same_tensors(jvp(grad(loss[1]), (x,), (direction,))[1], expected)
    expected = torch.autograd.functional.hessian(loss[0], x)
    same_tensors(hessian(loss[1])(x), expected)


# Together


@every_kind
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_training_has_torchs_loss_curve(kind: str, packed: bool) -> None:
    curves = []
    for layer in pair(kind, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True):
        torch.manual_seed(5)
        head = nn.Linear(2 * H, 2, dtype=torch.float64)
        optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
        losses = []
        for step in range(5):
            x, hx = random(B, T, I, seed=step), None
            if packed:
                x = pack_padded_sequence(x, torch.tensor([2, 5, 4]), True, enforce_sorted=False)
            y, hx = layer(x)
            y = pad_packed_sequence(y, batch_first=True)[0] if packed else y
            loss = head(y).square().mean() + tensors(hx)[-1].sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-9)
    assert curves[1][-1] < curves[1][0]


@every_kind
def test_states_carried_over_and_detached(kind: str) -> None:
    """Truncated backpropagation: the state of one call is the hx of the next."""
    found = []
    for module in pair(kind, num_layers=2):
        hx, kept = None, []
        for step in range(3):
            y, hx = module(random(T, B, I, seed=step), hx)
            y.square().sum().backward()
            hx = tuple(h.detach() for h in hx) if is_lstm(module) else hx.detach()
            kept += [y, *tensors(hx)]
        found.append([*kept, *(p.grad for p in module.parameters())])
    same_tensors(found[1], found[0])


@every_class
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_complex_modules_run_torchs_own_layer(kind: str, packed: bool) -> None:
    theirs, ours = pair(kind, dtype=torch.complex64, num_layers=2, bidirectional=True)
    x = random(*((9, I) if packed else (T, B, I)), dtype=torch.complex64) * (1 - 0.5j)
    hx = states(ours, B, torch.complex64)

    def pack(x: Tensor) -> Any:
        # torch packs complex numbers without a gradient only.
        return PackedSequence(x, torch.tensor([3, 2, 2, 1, 1])) if packed else x

    for states_given in (None, hx):
        expected = results(theirs, x, states_given, pack)
        assert_same(results(ours, x, states_given, pack), expected, 0)


@every_class
def test_checkpointing_draws_the_same_dropout_again(kind: str) -> None:
    _, ours = pair(kind, num_layers=3, dropout=0.5)
    expected = results(ours, random(T, B, I))
    plain = ours.forward
    ours.forward = lambda *args: checkpoint(plain, *args, use_reentrant=False)
    got = results(ours, random(T, B, I))
    # Recomputing leaves the generator elsewhere.
    del got["random state"], expected["random state"]
    assert_same(got, expected, 0)


@every_class
def test_shared_memory_is_shared(kind: str) -> None:
    _, ours = pair(kind)
    assert not any(p.is_shared() for p in ours._flat_weights)
    ours.share_memory()
    assert all(p.is_shared() for p in ours._flat_weights)


@every_class
def test_tracing(kind: str) -> None:
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says what it cannot see
        traced = torch.jit.trace(ours, (random(T, B, I),))
    x = random(T + 2, B + 1, I)
    same_tensors(traced(x), theirs(x))
