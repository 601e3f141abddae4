"""Wrong calls: torch.nn's exception with torch.nn's text, and then what was expected and came.

The modules check before they compute; so only the operators themselves are tried on other devices.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import adl_kernels
from adl_kernels import functional
from adl_kernels.recurrent.options import LayerOptions

T, B, I, H = 4, 2, 3, 5


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **{"device": DEVICE} | options)


def failure(call: Callable[[], Any]) -> tuple[type[Exception], str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    pytest.fail("no error")


class Deviation(NamedTuple):
    """Where ours is not torch's error: what it is instead, and why."""

    type: type[Exception]
    begins: str
    why: str


def check(
    theirs: Callable[[], Any], ours: Callable[[], Any], deviation: Deviation | None, complete: bool
) -> None:
    """`complete`: torch's text says all there is to say, so ours need not be longer."""
    torchs_type, torchs_text = failure(theirs)
    type_, text = failure(ours)
    if deviation is not None:
        assert type_ is deviation.type, text
        assert text.startswith(deviation.begins)
        # Else the entry in the table is out of date.
        assert (type_, text[: len(torchs_text)]) != (torchs_type, torchs_text)
        return
    assert type_ is torchs_type, text
    assert text.startswith(torchs_text)
    assert complete or len(text) > len(torchs_text)


# Layers

LAYERS = {
    "LSTM": (nn.LSTM, adl_kernels.LSTM),
    "GRU": (nn.GRU, adl_kernels.GRU),
    "RNN": (nn.RNN, adl_kernels.RNN),
}

x = zeros(T, B, I)
packed = pack_sequence([zeros(4, I), zeros(2, I)])


def hx(module: nn.Module, *shape: int, **options: Any) -> Any:
    """What the module calls hx: (h_0, c_0) or h_0."""
    h = zeros(*shape, **options)
    return (h, h) if has_c(module) else h


def has_c(module: nn.Module) -> bool:
    return isinstance(module, nn.LSTMCell) or getattr(module, "mode", None) == "LSTM"


def with_dropout(module: nn.RNNBase, dropout: float) -> nn.RNNBase:
    module.dropout = dropout
    return module


def repacked(data: Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes)


# Each is called with a module (I, H, num_layers=2).
Calls = dict[str, Callable[[Any], Any]]

LAYER_CALLS: Calls = {
    "input-numpy": lambda m: m(np.zeros((T, B, I), "f")),
    "input-none": lambda m: m(None),
    "input-list": lambda m: m([x]),
    "input-4d": lambda m: m(zeros(1, T, B, I)),
    "input-1d": lambda m: m(zeros(I)),
    "input-0d": lambda m: m(torch.tensor(1.0)),
    "features": lambda m: m(zeros(T, B, 7)),
    "features-unbatched": lambda m: m(zeros(T, 2)),
    "features-transposed": lambda m: m(zeros(I, B, 7)),
    "dtype": lambda m: m(x.double()),
    "dtype-int": lambda m: m(x.long()),
    "dtype-autocast-double": lambda m: torch.autocast("cpu")(m)(x.double()),
    "no-steps": lambda m: m(x[:0]),
    "no-steps-unbatched": lambda m: m(x[:0, 0]),
    "no-steps-no-batch": lambda m: m(x[:0, :0]),
    "input-device": lambda m: m(x.to("meta")),
    "hx-numpy": lambda m: m(x, np.zeros((2, B, H), "f")),
    "hx-str": lambda m: m(x, "ab"),
    "hx-2d": lambda m: m(x, hx(m, 2, H)),
    "hx-3d-for-unbatched": lambda m: m(x[:, 0], hx(m, 2, 1, H)),
    "hx-batch": lambda m: m(x, hx(m, 2, 3, H)),
    "hx-layers": lambda m: m(x, hx(m, 1, B, H)),
    "hx-width": lambda m: m(x, hx(m, 2, B, 6)),
    "hx-batch-first": lambda m: m(x, hx(m, B, 2, 1, H)),
    "hx-dtype": lambda m: m(x, hx(m, 2, B, H, dtype=torch.double)),
    "hx-dtype-half": lambda m: m(x, hx(m, 2, B, H, dtype=torch.half)),
    "hx-device": lambda m: m(x, hx(m, 2, B, H, device="meta")),
    "packed-hx-2d": lambda m: m(packed, hx(m, 2, H)),
    "packed-hx-batch": lambda m: m(packed, hx(m, 2, 3, H)),
    "packed-features": lambda m: m(repacked(zeros(6, 4))),
    "packed-dtype": lambda m: m(repacked(zeros(6, I).double())),
    "packed-3d": lambda m: m(repacked(zeros(6, 1, I))),
    "dropout-above-one": lambda m: with_dropout(m, 1.5)(x),
    "dropout-negative": lambda m: with_dropout(m, -0.5)(x),
}

LSTM_CALLS: Calls = {
    "hx-tensor": lambda m: m(x, zeros(2, 2, H)),
    "hx-tensor-4d": lambda m: m(x, zeros(2, 2, B, H)),
    "hx-empty": lambda m: m(x, ()),
    "hx-tuple-of-one": lambda m: m(x, (zeros(2, B, H),)),
    "hx-tuple-of-three": lambda m: m(x, (zeros(2, B, H),) * 3),
    "hx-none-in-tuple": lambda m: m(x, (zeros(2, B, H), None)),
    "hx-c-2d": lambda m: m(x, (zeros(2, B, H), zeros(2, H))),
    "c-width": lambda m: m(x, (zeros(2, B, H), zeros(2, B, 4))),
    "c-batch": lambda m: m(x, (zeros(2, B, H), zeros(2, 3, H))),
    "c-width-unbatched": lambda m: m(x[:, 0], (zeros(2, H), zeros(2, 4))),
}

ONE_STATE_CALLS: Calls = {
    "hx-tensor-4d": lambda m: m(x, zeros(2, 2, B, H)),
    "hx-empty": lambda m: m(x, ()),
    "hx-tuple-of-one": lambda m: m(x, (zeros(2, B, H),)),
    "hx-tuple-of-two": lambda m: m(x, (zeros(2, B, H),) * 2),
    "hx-list-of-two": lambda m: m(x, [zeros(2, B, H)] * 2),
}

# Input and hx, or found and wanted dtype, are in torch's text already.
COMPLETE = {"dtype", "dtype-int", "packed-dtype", "input-device", "hx-device"}
COMPLETE |= {"dropout-above-one", "dropout-negative"}

UNCHECKED = "torch's LSTM does not check packed input and fails inside; as the other layers do"
ONEDNN = "torch's LSTM passes it to oneDNN, which speaks of itself"
IN_THE_OP = "autocast converts inside the op, whose check is the one to find it"
MISMATCH = "mat1 and mat2 must have the same dtype, but got "

DEVIATIONS = {
    ("LSTM", "hx-dtype"): Deviation(RuntimeError, MISMATCH + "Double and Float", ONEDNN),
    ("LSTM", "hx-dtype-half"): Deviation(RuntimeError, MISMATCH + "Half and Float", ONEDNN),
    ("LSTM", "hx-tensor-4d"): Deviation(
        TypeError,
        "lstm() received an invalid combination of arguments",
        "torch goes on to list its overloads",
    ),
    ("LSTM", "packed-hx-2d"): Deviation(RuntimeError, "Expected hidden[0] size (2, 2", UNCHECKED),
    ("LSTM", "packed-hx-batch"): Deviation(
        RuntimeError, "Expected hidden[0] size (2, 2, 5), got [2, 3, 5]", UNCHECKED
    ),
    ("LSTM", "packed-features"): Deviation(
        RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 4", UNCHECKED
    ),
    ("LSTM", "packed-dtype"): Deviation(ValueError, "RNN input dtype (torch.float64)", UNCHECKED),
    ("LSTM", "packed-3d"): Deviation(
        RuntimeError, "input must have 2 dimensions, got 3", UNCHECKED
    ),
    **{
        (kind, "dtype-autocast-double"): Deviation(
            RuntimeError, f"{op}: weight_ih must have the dtype of x, Double", IN_THE_OP
        )
        for kind, op in (("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "rnn_tanh"))
    },
}


def calls_of(kind: str) -> Calls:
    return LAYER_CALLS | (LSTM_CALLS if kind == "LSTM" else ONE_STATE_CALLS)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind, name", [(kind, name) for kind in LAYERS for name in calls_of(kind)])
def test_layers(kind: str, name: str) -> None:
    theirs, ours = (cls(I, H, 2) for cls in LAYERS[kind])
    call = calls_of(kind)[name]
    check(lambda: call(theirs), lambda: call(ours), DEVIATIONS.get((kind, name)), name in COMPLETE)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "name", ["input-4d", "features", "no-steps", "hx-2d", "hx-batch", "hx-3d-for-unbatched"]
)
def test_subclasses_of_layers(kind: str, name: str) -> None:
    """The text is the same whatever the class is called, as parametrized ones are called anew."""
    theirs, ours = (type("Mine", (cls,), {})(I, H, 2) for cls in LAYERS[kind])
    for module in (theirs, ours):
        parametrize.register_parametrization(module, "weight_hh_l0", nn.Identity())
    call = LAYER_CALLS[name]
    check(lambda: call(theirs), lambda: call(ours), None, False)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", LAYERS)
def test_batch_first_and_projection_in_expected_sizes(kind: str) -> None:
    options = {"batch_first": True, "bidirectional": True}
    options |= {"proj_size": 2} if kind == "LSTM" else {}
    theirs, ours = (cls(I, H, 2, **options) for cls in LAYERS[kind])
    for call in (
        lambda m: m(x.transpose(0, 1), hx(m, 4, B, 4)),
        lambda m: m(x.transpose(0, 1), hx(m, 4, T, H)),
        lambda m: m(zeros(B, T, 8)),
        lambda m: m(zeros(B, 0, I)),
    ):
        check(lambda c=call: c(theirs), lambda c=call: c(ours), None, False)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_that_was_deleted_is_missed(kind: str) -> None:
    """torch's layers go on with the weight that is no longer there."""
    theirs, ours = (cls(I, H) for cls in LAYERS[kind])
    for module in (theirs, ours):
        del module.weight_hh_l0
    theirs(x)
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l0'"):
        ours(x)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l1"])
def test_a_weight_set_to_none_is_named(kind: str, name: str) -> None:
    """torch has but a number for it: expected Tensor as element 6 in argument 2."""
    theirs, ours = (cls(I, H, 2) for cls in LAYERS[kind])
    for module in (theirs, ours):
        setattr(module, name, None)
    type_, text = failure(lambda: ours(x))
    assert type_ is failure(lambda: theirs(x))[0]
    assert name in text


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_is_left_behind_by_an_error(kind: str) -> None:
    theirs, ours = (cls(I, H, 2) for cls in LAYERS[kind])
    ours.load_state_dict(theirs.state_dict())
    for name, call in calls_of(kind).items():
        if not name.startswith("dropout"):
            failure(lambda c=call: c(ours))
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-6, atol=1e-6)


HINTS: dict[str, tuple[Callable[[], Any], str]] = {
    "layout": (lambda: adl_kernels.LSTM(I, H)(zeros(I)), "Expected [T, B, 3] or, unbatched"),
    "layout-batch-first": (
        lambda: adl_kernels.GRU(I, H, batch_first=True)(zeros(I)),
        "Expected [B, T, 3] (batch_first) or, unbatched, [T, 3], got [3]",
    ),
    "transposed": (
        lambda: adl_kernels.RNN(I, H)(zeros(B, I, 7)),
        "got [2, 3, 7]; dimension 1 has that size: transpose?",
    ),
    "batch-first-state": (
        lambda: adl_kernels.GRU(I, H, batch_first=True)(zeros(B, T, I), zeros(B, 1, H)),
        "h_0 must be [num_layers * num_directions, batch, hidden]; batch_first does not change",
    ),
    "c-named": (
        lambda: adl_kernels.LSTM(I, H)(x, (zeros(1, B, H), zeros(1, B, 9))),
        "c_0 must be [num_layers * num_directions, batch, hidden]",
    ),
    "lstm-wants-two": (
        lambda: adl_kernels.LSTM(I, H)(x, zeros(2, 2, 5)),
        "hx must be a tuple (h_0, c_0) of two Tensors, got [2, 2, 5]",
    ),
    "gru-wants-one": (
        lambda: adl_kernels.GRU(I, H)(x, (zeros(1, B, H), zeros(1, B, H))),
        "hx must be one Tensor h_0, got tuple of Tensor, Tensor",
    ),
    "dtypes": (
        lambda: adl_kernels.LSTM(I, H)(x, (zeros(1, B, H), zeros(1, B, H).double())),
        "c is torch.float64, the weights are torch.float32",
    ),
    "not-a-tensor": (
        lambda: adl_kernels.LSTM(I, H)([[0.0]]),
        "LSTM: input must be a Tensor or PackedSequence",
    ),
    "cell-sizes": (
        lambda: adl_kernels.GRUCell(I, H)(x[0], zeros(B, 6)),
        "GRUCell: expected h to be [2, 5], got [2, 6]",
    ),
    "cell-wants-two": (
        lambda: adl_kernels.LSTMCell(I, H)(x[0], zeros(B, H)),
        "LSTMCell: hx must be a tuple (h, c), got [2, 5]",
    ),
}


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", HINTS)
def test_hints(name: str) -> None:
    call, hint = HINTS[name]
    assert hint in failure(call)[1]


# Cells

CELLS = {
    "LSTMCell": (nn.LSTMCell, adl_kernels.LSTMCell),
    "GRUCell": (nn.GRUCell, adl_kernels.GRUCell),
    "RNNCell": (nn.RNNCell, adl_kernels.RNNCell),
}

x2 = zeros(B, I)

CELL_CALLS: Calls = {
    "input-numpy": lambda m: m(np.zeros((B, I), "f")),
    "input-none": lambda m: m(None),
    "input-3d": lambda m: m(x),
    "input-0d": lambda m: m(torch.tensor(1.0)),
    "features": lambda m: m(zeros(B, 4)),
    "features-unbatched": lambda m: m(zeros(2)),
    "dtype": lambda m: m(x2.double()),
    "dtype-int": lambda m: m(x2.long()),
    "dtype-autocast-double": lambda m: torch.autocast("cpu")(m)(x2.double()),
    "input-device": lambda m: m(x2.to("meta")),
    "hx-3d": lambda m: m(x2, hx(m, 1, B, H)),
    "hx-0d": lambda m: m(x2, hx(m)),
    "hx-batch": lambda m: m(x2, hx(m, 3, H)),
    "hx-batch-of-one": lambda m: m(x2, hx(m, 1, H)),
    "hx-width": lambda m: m(x2, hx(m, B, 6)),
    "hx-1d": lambda m: m(x2, hx(m, H)),
    "hx-2d-for-unbatched": lambda m: m(x2[0], hx(m, B, H)),
    "hx-width-unbatched": lambda m: m(x2[0], hx(m, 6)),
    "hx-dtype": lambda m: m(x2, hx(m, B, H, dtype=torch.double)),
    "hx-device": lambda m: m(x2, hx(m, B, H, device="meta")),
}

LSTM_CELL_CALLS: Calls = {
    "hx-tensor": lambda m: m(x2, zeros(B, H)),
    "hx-tensor-3d": lambda m: m(x2, zeros(2, B, H)),
    "hx-tuple-of-one": lambda m: m(x2, (zeros(B, H),)),
    "hx-tuple-of-three": lambda m: m(x2, (zeros(B, H),) * 3),
    "hx-none-in-tuple": lambda m: m(x2, (zeros(B, H), None)),
    "hx-str": lambda m: m(x2, "ab"),
    "hx-int": lambda m: m(x2, 3),
    "c-width": lambda m: m(x2, (zeros(B, H), zeros(B, 4))),
    "c-batch": lambda m: m(x2, (zeros(B, H), zeros(3, H))),
    "c-1d": lambda m: m(x2, (zeros(B, H), zeros(H))),
    "c-3d": lambda m: m(x2, (zeros(B, H), zeros(1, B, H))),
}

ONE_STATE_CELL_CALLS: Calls = {
    "hx-tensor-3d": lambda m: m(x2, zeros(2, B, H)),
    "hx-tuple-of-one": lambda m: m(x2, (zeros(B, H),)),
    "hx-tuple-of-two": lambda m: m(x2, (zeros(B, H),) * 2),
    "hx-str": lambda m: m(x2, "ab"),
}

DEVICE_ORDER = "torch names the devices in the order in which its kernel meets them"

CELL_DEVIATIONS = {
    **{
        (kind, "dtype-autocast-double"): Deviation(
            RuntimeError, f"{op}: weight_ih must have the dtype of x, Double", IN_THE_OP
        )
        for kind, op in (("LSTMCell", "lstm"), ("GRUCell", "gru"), ("RNNCell", "rnn_tanh"))
    },
    **{
        (kind, "hx-device"): Deviation(
            RuntimeError, "Tensor on device meta is not on the expected device cpu!", DEVICE_ORDER
        )
        for kind in CELLS
    },
}


def calls_of_cell(kind: str) -> Calls:
    return CELL_CALLS | (LSTM_CELL_CALLS if kind == "LSTMCell" else ONE_STATE_CELL_CALLS)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind in CELLS for name in calls_of_cell(kind)]
)
def test_cells(kind: str, name: str) -> None:
    theirs, ours = (cls(I, H) for cls in CELLS[kind])
    call = calls_of_cell(kind)[name]
    # Of something that cannot be iterated over Python says all.
    complete = name == "hx-int"
    check(lambda: call(theirs), lambda: call(ours), CELL_DEVIATIONS.get((kind, name)), complete)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("name", ["input-3d", "features", "hx-3d", "hx-width"])
def test_subclasses_of_cells(kind: str, name: str) -> None:
    theirs, ours = (type("Mine", (cls,), {})(I, H) for cls in CELLS[kind])
    call = CELL_CALLS[name]
    check(lambda: call(theirs), lambda: call(ours), None, False)


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", CELLS)
def test_a_weight_of_a_cell_set_to_none_is_named(kind: str) -> None:
    theirs, ours = (cls(I, H) for cls in CELLS[kind])
    for module in (theirs, ours):
        module.weight_hh = None
    type_, text = failure(lambda: ours(x2))
    # torch calls it w_hh.
    assert type_ is failure(lambda: theirs(x2))[0]
    assert "weight_hh" in text


@pytest.mark.cpu_only
def test_unknown_nonlinearity_of_a_cell() -> None:
    theirs, ours = (cls(I, H, nonlinearity="sigmoid") for cls in CELLS["RNNCell"])
    assert failure(lambda: ours(x2)) == failure(lambda: theirs(x2))


# functional and the ops themselves: there is no torch.nn to compare with


def lstm_arguments(**changes: Any) -> dict[str, Any]:
    weights = [zeros(4 * H, I), zeros(4 * H, H), zeros(4 * H), zeros(4 * H)]
    arguments = {"x": x, "hx": [zeros(1, B, H)] * 2, "weights": weights, "batch_sizes": None}
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return arguments


def put(k: int, tensor: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
    """A change of a list: another tensor at place k."""
    return lambda tensors: [*tensors[:k], tensor, *tensors[k + 1 :]]


BOTH = {"hx": [zeros(2, B, H)] * 2}
ROWS = {"x": zeros(5, I)}

OP_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "x-2d": ({"x": x2}, "lstm: x must be [T, B, I], got [2, 3]"),
    "x-3d-packed": (
        {"batch_sizes": torch.tensor([2, 2, 1])},
        "lstm: x must be [N, I] with batch_sizes, got [4, 2, 3]",
    ),
    "x-int": (
        {
            "x": x.long(),
            "hx": lambda hx: [h.long() for h in hx],
            "weights": lambda weights: [w.long() for w in weights],
        },
        "lstm: x must be float64, float32, bfloat16 or float16, got Long",
    ),
    "one-state": ({"hx": lambda hx: hx[:1]}, "lstm: hx must hold h_0 and c_0, got 1 tensors"),
    "three-states": ({"hx": lambda hx: hx * 2}, "lstm: hx must hold h_0 and c_0, got 4 tensors"),
    "h-2d": (
        {"hx": put(0, zeros(B, H))},
        "lstm: h_0 must be [D, B, P] (directions, batch, width of h), got [2, 5]",
    ),
    "h-three-directions": (
        {"hx": [zeros(3, B, H)] * 2},
        "lstm: h_0 must be of one or two directions, got [3, 2, 5]",
    ),
    "h-batch": (
        {"hx": [zeros(1, 3, H)] * 2},
        "lstm: h_0 must have the batch size of x, 2, got 3",
    ),
    "h-width": (
        {"hx": put(0, zeros(1, B, 6))},
        "lstm: h_0 must be as wide as the hidden size, 5, got [1, 2, 6]",
    ),
    "c-width": (
        {"hx": put(1, zeros(1, B, 6))},
        "lstm: c_0 must be [1, 2, 5] (directions, batch, hidden size), got [1, 2, 6]",
    ),
    "c-dtype": (
        {"hx": put(1, zeros(1, B, H).double())},
        "lstm: c_0 must have the dtype of x, Float, got Double",
    ),
    "no-weights": ({"weights": []}, "lstm: weights must hold weight_ih, weight_hh"),
    "one-weight": ({"weights": lambda w: w[:1]}, "for each of 1 directions, got 1 tensors"),
    "weights-of-one-direction": (BOTH | {"weights": lambda w: w[:3]}, "got 3 tensors"),
    "weight_ih-rows": (
        {"weights": put(0, zeros(4 * H + 1, I))},
        "lstm: weight_ih must be [4 * H, I], got [21, 3]",
    ),
    "weight_ih-columns": (
        {"weights": put(0, zeros(4 * H, I + 1))},
        "lstm: weight_ih must be [20, 3] (gates * hidden size, input size), got [20, 4]",
    ),
    "weight_hh-transposed": (
        {"weights": put(1, zeros(H, 4 * H))},
        "lstm: weight_hh must be [20, 5] (gates * hidden size, width of h), got [5, 20]",
    ),
    "weight_hh-dtype": (
        {"weights": put(1, zeros(4 * H, H).half())},
        "lstm: weight_hh must have the dtype of x, Float, got Half",
    ),
    "bias_ih": ({"weights": put(2, zeros(H))}, "lstm: bias_ih must be [20]"),
    "bias_hh": ({"weights": put(3, zeros(4 * H, 1))}, "lstm: bias_hh must be [20]"),
    "weight_hr": (
        {"weights": lambda w: [*w, zeros(H, 2)]},
        "lstm: weight_hr must be [5, 5] (width of h, hidden size), got [5, 2]",
    ),
    "reverse": (
        BOTH | {"weights": lambda w: [*w, *put(1, zeros(4, H))(w)]},
        "lstm: weight_hh of the reverse direction must be [20, 5]",
    ),
    "batch_sizes-int32": (
        ROWS | {"batch_sizes": torch.tensor([2, 2, 1], dtype=torch.int32)},
        "lstm: batch_sizes must be a 1-D int64 tensor on the CPU, got 1-D Int",
    ),
    "batch_sizes-2d": (
        ROWS | {"batch_sizes": torch.tensor([[2, 2, 1]])},
        "lstm: batch_sizes must be a 1-D int64 tensor on the CPU, got 2-D Long",
    ),
    "batch_sizes-increasing": (
        ROWS | {"batch_sizes": torch.tensor([2, 1, 2])},
        "lstm: batch_sizes must be positive and must not increase, got 2 after 1",
    ),
    "batch_sizes-zero": (
        ROWS | {"batch_sizes": torch.tensor([2, 2, 0])},
        "lstm: batch_sizes must be positive and must not increase, got 0 after 2",
    ),
    "batch_sizes-first": (
        ROWS | {"batch_sizes": torch.tensor([3, 2])},
        "lstm: batch_sizes must start with the batch size of h_0, 2, got 3",
    ),
    "batch_sizes-sum": (
        ROWS | {"batch_sizes": torch.tensor([2, 1, 1])},
        "lstm: batch_sizes must sum up to the rows of x, 5, got 4",
    ),
    "batch_sizes-overflow": (
        ROWS | {"batch_sizes": torch.tensor([2, 2, -(2**62)])},
        "lstm: batch_sizes must be positive",
    ),
}


@pytest.mark.parametrize("name", OP_CALLS)
@pytest.mark.parametrize("wants_graph", [False, True], ids=["inference", "training"])
def test_ops_name_themselves_and_the_argument(name: str, wants_graph: bool) -> None:
    changes, text = OP_CALLS[name]
    arguments = lstm_arguments(**changes)
    if wants_graph and arguments["x"].is_floating_point():
        arguments["x"] = arguments["x"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match=re.escape(text)):
        torch.ops.adl_kernels.lstm(**arguments)


def test_the_arguments_of_the_test_above_are_right_without_the_change() -> None:
    y, h_n, c_n = torch.ops.adl_kernels.lstm(**lstm_arguments())
    assert y.shape == (T, B, H) and h_n.shape == c_n.shape == (1, B, H)


def test_a_projection_needs_a_state_c() -> None:
    weights = [zeros(3 * H, I), zeros(3 * H, 2), zeros(2, H)]
    with pytest.raises(RuntimeError, match="gru: weight_hr is only for cells with a state c"):
        torch.ops.adl_kernels.gru(x, [zeros(1, B, 2)], weights)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"y": zeros(T, B, H + 1)}, "lstm_backward: y must be as the forward op left it"),
        ({"saved": lambda saved: saved[:1]}, "lstm_backward: saved must hold 2 tensors, got 1"),
        ({"saved": put(0, zeros(1))}, "lstm_backward: saved must be as the forward op left it"),
        ({"needs": [True]}, "lstm_backward: needs must have an entry for x and each of the 4"),
        ({"grads": [None] * 2}, "lstm_backward: grads must have an entry for y and each final"),
        (
            {"grads": [zeros(T, B, H + 1), None, None]},
            "lstm_backward: a gradient must be as the forward op left it",
        ),
    ],
    ids=["y", "saved-count", "saved-shape", "needs", "grads-count", "grad-shape"],
)
def test_backward_op(change: dict[str, Any], text: str) -> None:
    arguments = lstm_arguments()
    y, _, _, *saved = torch.ops.adl_kernels.lstm_forward(**arguments)
    grads = [torch.ones_like(y), None, None]
    arguments |= {"grads": grads, "y": y, "saved": saved, "needs": [True] * 5}
    arguments = LayerOptions()._asdict() | arguments
    torch.ops.adl_kernels.lstm_backward(**arguments)
    for name, value in change.items():
        arguments[name] = value(arguments[name]) if callable(value) else value
    with pytest.raises(RuntimeError, match=re.escape(text)):
        torch.ops.adl_kernels.lstm_backward(**arguments)


WEIGHTS = lstm_arguments()["weights"]

FUNCTIONAL_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no-weights": (
        lambda: functional.lstm(x, None, []),
        RuntimeError,
        "lstm: weights must hold equally many tensors for each of 1 layers x 1 directions, got 0",
    ),
    "weights-of-one-layer": (
        lambda: functional.lstm(x, None, WEIGHTS[:3], num_layers=2),
        RuntimeError,
        "for each of 2 layers x 1 directions, got 3",
    ),
    "states-of-one-layer": (
        lambda: functional.lstm(x, [zeros(1, B, H)] * 2, WEIGHTS * 2, num_layers=2),
        RuntimeError,
        "lstm: h_0 must be [2, ...] (layers x directions, batch, hidden), got [1, 2, 5]",
    ),
    "nonlinearity": (
        lambda: functional.rnn(x, None, WEIGHTS, nonlinearity="elu"),
        ValueError,
        "Unknown nonlinearity 'elu'. Select from 'tanh' or 'relu'.",
    ),
    "gates-of-another-cell": (
        lambda: functional.gru(x, zeros(1, B, H), WEIGHTS),
        RuntimeError,
        "gru: weight_ih must be [3 * H, I], got [20, 3]",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONAL_CALLS)
def test_functional(name: str) -> None:
    call, type_, text = FUNCTIONAL_CALLS[name]
    with pytest.raises(type_, match=re.escape(text)):
        call()
