"""The public names, signatures and option values: each says what it is, or what is wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adl_kernels
from adl_kernels import functional
from adl_kernels.recurrent import options

pytestmark = pytest.mark.cpu_only

PUBLIC = [name for name in adl_kernels.__all__ if inspect.isclass(getattr(adl_kernels, name))]
FUNCTIONS = [
    *(getattr(functional, name) for name in functional.__all__),
    adl_kernels.convert,
    adl_kernels.revert,
]
WORKS = [*FUNCTIONS, *(getattr(adl_kernels, name).__init__ for name in PUBLIC if name != "Report")]
WEIGHTS = [torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), torch.zeros(8)]
X = torch.zeros(4, 1, 3)


def test_dir_shows_the_public_names():
    assert dir(adl_kernels) == sorted(adl_kernels.__all__)
    assert dir(functional) == sorted(functional.__all__)
    assert inspect.isfunction(adl_kernels.convert)


@pytest.mark.parametrize("function", WORKS, ids=lambda f: f.__qualname__)
def test_signatures_are_explicit_and_typed(function: Any):
    if function.__qualname__.split(".")[0] in ("RNNCellBase", "LSTMCell", "GRUCell", "RNNCell"):
        return  # torch's own
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.name == "self" or function.__qualname__.endswith("from_kernel"):
            continue
        assert parameter.kind is not parameter.VAR_POSITIONAL, parameter
        assert parameter.kind is not parameter.VAR_KEYWORD, parameter
        assert parameter.annotation is not parameter.empty, parameter
        if parameter.name != "verify":  # an example input, whatever it is
            assert parameter.annotation != "Any", parameter


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "Report"])
def test_docstrings_give_shapes_and_torchs_equivalent(name: str):
    text = inspect.getdoc(getattr(adl_kernels, name)) or ""
    assert len(text.split()) > 20
    assert "Equivalent to" in text or name == "CausalConv1d"
    assert re.search(r"\[B?, ?|\[T|\[C", text), "no shape"


def failure(call: Any) -> tuple[type, str]:
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)) as caught:
        call()
    return caught.type, str(caught.value)


BAD_CALLS: dict[str, tuple[Any, type, str]] = {
    "zoneout is too large": (
        lambda: functional.lstm(X, None, WEIGHTS, zoneout=1.5),
        ValueError,
        "LSTM: zoneout must be a number in [0, 1] or a pair (of h, of c), got 1.5",
    ),
    "zoneout of three": (
        lambda: functional.lstm(X, None, WEIGHTS, zoneout=(0.1, 0.2, 0.3)),
        ValueError,
        "LSTM: zoneout must be a number in [0, 1] or a pair",
    ),
    "no such keyword": (
        lambda: functional.lstm(X, None, WEIGHTS, num_layer=2),
        TypeError,
        "lstm() got an unexpected keyword argument 'num_layer'",
    ),
    "no such keyword of a GRU": (
        lambda: functional.gru(X, None, WEIGHTS, peephole=True),
        TypeError,
        "gru() got an unexpected keyword argument 'peephole'",
    ),
    "no such keyword of a layer": (
        lambda: adl_kernels.LSTM(3, 2, foo=1),
        TypeError,
        "LSTM.__init__() got an unexpected keyword argument 'foo'",
    ),
    "dropout of what": (
        lambda: functional.lstm(X, None, WEIGHTS, recurrent_dropout=2.0, training=True),
        ValueError,
        "LSTM: recurrent_dropout must be a number in [0, 1), got 2.0",
    ),
    "an activation": (
        lambda: functional.lstm(X, None, WEIGHTS, cell_activation="gelu"),
        ValueError,
        "LSTM: cell_activation must be one of tanh, sigmoid, relu, identity, got 'gelu'",
    ),
    "a flag": (
        lambda: functional.gru(X, None, WEIGHTS, layer_norm=1),
        TypeError,
        "GRU: layer_norm must be True or False, got 1",
    ),
    "no layers": (
        lambda: functional.lstm(X, None, WEIGHTS, num_layers=0),
        ValueError,
        "LSTM: num_layers must be a positive integer, got 0",
    ),
    "lengths in a list": (
        lambda: functional.gru(X, None, WEIGHTS, lengths=[1]),
        TypeError,
        "GRU: lengths must be a Tensor, got list",
    ),
    "too many steps": (
        lambda: adl_kernels.GRU(3, 2, bptt_steps=2**70),
        ValueError,
        "GRU: bptt_steps must be an integer of at least 0, got 1180591620717411303424",
    ),
    "steps": (
        lambda: functional.rnn(X, None, WEIGHTS, bptt_steps=-1),
        ValueError,
        "RNN: bptt_steps must be an integer of at least 0, got -1",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_what_is_wrong(name: str):
    call, kind, text = BAD_CALLS[name]
    found, message = failure(call)
    assert found is kind and message.startswith(text), message


def test_zoneout_is_one_number_or_a_pair():
    expected = functional.lstm(X, None, WEIGHTS, zoneout=(0.3, 0.3))[0]
    assert torch.equal(functional.lstm(X, None, WEIGHTS, zoneout=0.3)[0], expected)


SET: dict[str, tuple[str, Any, type, str]] = {
    "fixed": (
        "peephole",
        True,
        AttributeError,
        "LSTM: peephole decides which parameters there",
    ),
    "norm": ("layer_norm", True, AttributeError, "LSTM: layer_norm decides which parameters"),
    "gate": ("forget_gate", "none", AttributeError, "LSTM: forget_gate decides which parameters"),
    "rate": ("recurrent_dropout", 2.0, ValueError, "LSTM: recurrent_dropout must be a number in"),
    "zone": ("zoneout", -1, ValueError, "LSTM: zoneout must be a number in [0, 1] or a pair"),
    "steps": ("bptt_steps", 1.5, ValueError, "LSTM: bptt_steps must be an integer"),
}


@pytest.mark.parametrize("case", SET)
def test_an_option_set_later_is_checked_at_once(case: str):
    name, value, kind, text = SET[case]
    layer = adl_kernels.LSTM(3, 2)
    before = getattr(layer, name)
    found, message = failure(lambda: setattr(layer, name, value))
    assert found is kind and message.startswith(text), message
    assert getattr(layer, name) == before
    layer(X)


def test_an_option_set_later_takes_effect_and_survives_a_copy():
    import copy
    import io

    layer = adl_kernels.LSTM(3, 2).eval()
    plain = layer(X)[0]
    layer.zoneout = 0.5
    zoned = layer(X)[0]
    assert not torch.equal(plain, zoned)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(twin(X)[0], zoned)
    layer.zoneout = 0.0
    assert torch.equal(layer(X)[0], plain)
    assert vars(layer).keys() == vars(nn.LSTM(3, 2)).keys() | {"zoneout"}


def test_the_list_of_options_is_that_of_the_ops():
    schema = torch.ops.adl_kernels.lstm.default._schema
    given = schema.arguments[3:]
    assert [a.name for a in given] == list(options.LayerOptions._fields)
    defaults = [tuple(a.default_value) if a.name == "zoneout" else a.default_value for a in given]
    assert defaults == list(options.PLAIN)


def test_the_table_of_options_is_that_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs/ops.md").read_text()
    assert options.table() in text


def test_every_option_takes_the_short_way(monkeypatch: pytest.MonkeyPatch):
    def long_way(*args: Any) -> Any:
        raise AssertionError("the long way")

    monkeypatch.setattr(adl_kernels.recurrent.engine, "run", long_way)
    lengths, reset = torch.tensor([4]), torch.zeros(4, 1, dtype=torch.bool)
    for training in (True, False):
        for given in (
            {"peephole": True},
            {"zoneout": 0.3},
            {"zoneout": (0.1, 0.2), "recurrent_dropout": 0.2, "weight_dropout": 0.3},
            {"cell_activation": "relu"},
            {"layer_norm": True},
            {"bptt_steps": 2},
            {"return_all_states": True},
            {"forget_gate": "coupled"},
        ):
            layer = adl_kernels.LSTM(3, 2, **given).train(training)
            y: Tensor = layer(X, lengths=lengths, reset=reset)[0]
            y.sum().backward()


def test_layers_refuse_options_of_others():
    for layer, name, value in (
        (adl_kernels.RNN(3, 2), "reset_after", False),
        (adl_kernels.GRU(3, 2), "return_all_states", True),
        (adl_kernels.GRU(3, 2), "cell_activation", "relu"),
        (adl_kernels.RNN(3, 2), "peephole", True),
        (adl_kernels.LSTM(3, 2), "reset_after", False),
    ):
        with pytest.raises(AttributeError, match=f"there is no option {name}"):
            setattr(layer, name, value)
        setattr(layer, name, options.BEYOND_TORCH[name])  # which it has
        layer(X)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_bias_that_was_taken_away_is_missed(kind: str):
    for layers in (1, 2):
        ours, theirs = (getattr(m, kind)(3, 2, layers) for m in (adl_kernels, nn))
        for module in (ours, theirs):
            for k in range(layers):
                setattr(module, f"bias_ih_l{k}", None)
                setattr(module, f"bias_hh_l{k}", None)
            with pytest.raises(TypeError):
                module(X)
