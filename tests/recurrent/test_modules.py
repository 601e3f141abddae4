"""LSTM, GRU and RNN cannot be told from torch.nn's: construction, outputs and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import (
    BOTH,
    CASES,
    FIRST,
    KINDS,
    MARKS,
    PROJECTIONS,
    TWO,
    B,
    Case,
    I,
    T,
    assert_same,
    every_class,
    every_kind,
    pair,
    random,
    results,
    same_tensors,
    states,
    tensors,
)
from tolerance import assert_accurate
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_sequence,
    pad_packed_sequence,
)

import adl_kernels

pytestmark = MARKS


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


@pytest.mark.cpu_only
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


def assert_same_failure(cls: type, got: tuple[type, str], expected: tuple[type, str]) -> None:
    """Where Python refuses a call of RNNBase, it refuses one of the class itself."""
    if "RNNBase.__init__()" in expected[1] or "positional" in expected[1]:
        assert got[0] is expected[0] and got[1].startswith(f"{cls.__name__}.__init__()"), got
    else:
        assert (got[0], got[1].removesuffix(" adl_kernels has 'sigmoid' too.")) == expected


@pytest.mark.cpu_only
@every_kind
@pytest.mark.parametrize("name", BAD_CONSTRUCTIONS)
def test_constructor_refuses_what_torch_refuses(kind: str, name: str) -> None:
    theirs, ours, extra = KINDS[kind]
    args, kwargs = BAD_CONSTRUCTIONS[name]
    expected, got = (failure(cls, *args, **kwargs, **extra) for cls in (theirs, ours))
    assert_same_failure(ours, got, expected)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", BAD_PROJECTIONS)
def test_constructor_refuses_bad_projections(name: str) -> None:
    bad = BAD_PROJECTIONS[name]
    assert failure(adl_kernels.LSTM, 4, 7, **bad) == failure(nn.LSTM, 4, 7, **bad)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", ["GRU", "RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_only_lstm_has_projections(kind: str, proj_size: int) -> None:
    theirs, ours, extra = KINDS[kind]
    expected = failure(theirs, 4, 7, proj_size=proj_size, **extra)
    assert failure(ours, 4, 7, proj_size=proj_size, **extra) == expected
    assert expected[0] is ValueError and "only supported for LSTM" in expected[1]


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((4, 7), {"nonlinearity": "oops"}),
        ((4, 7, 1, "RELU"), {}),
        ((4, 7), {"nonlinearity": None}),
        ((4, 7, 1, True), {}),  # bias where torch.nn.RNN has nonlinearity
        ((4, 7, 1, "tanh"), {"nonlinearity": "tanh"}),
        ((4, 7, 1, "oops"), {"proj_size": 2}),
    ],
    ids=["keyword", "positional", "none", "bias-in-its-place", "twice", "and-projection"],
)
def test_rnn_refuses_other_nonlinearities(args: Any, kwargs: Any) -> None:
    got, expected = (failure(c, *args, **kwargs) for c in (adl_kernels.RNN, nn.RNN))
    assert_same_failure(adl_kernels.RNN, got, expected)


@pytest.mark.cpu_only
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
    hx, order = states(ours, B), torch.tensor([2, 0, 1], device=DEVICE)
    same_tensors(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    assert ours.permute_hidden(hx, None) is hx
    ours.check_forward_args(x, hx, None)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module.check_forward_args(x, states(ours, B + 1), None)
    if kind == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


# Outputs and gradients


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


@pytest.mark.cpu_only
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
