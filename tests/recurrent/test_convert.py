"""convert and revert: same objects, same parameters, same results; honest reports."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import adl_kernels as adl

pytestmark = pytest.mark.cpu_only


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(5, 8, 2, bidirectional=True, dropout=0.5)
        self.stack = nn.ModuleList([nn.GRU(16, 6), nn.RNN(6, 6, nonlinearity="relu")])
        self.cell = nn.LSTMCell(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.encoder(x)[0]
        for layer in self.stack:
            y = layer(y)[0]
        return self.head(self.cell(y[-1])[0])


def classes(model):
    return [type(m) for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]


def test_replaces_every_recurrent_layer_and_gives_the_same_results():
    model, x = Model().eval(), torch.randn(7, 3, 5)
    expected = model(x)
    report = adl.convert(model)
    assert classes(model) == [adl.LSTM, adl.GRU, adl.RNN, adl.LSTMCell]
    assert [path for path, *_ in report.replaced] == ["encoder", "stack.0", "stack.1", "cell"]
    torch.testing.assert_close(model(x), expected)
    assert "encoder" in str(report) and "4 replaced, 0 left" in str(report)


def test_keeps_objects_parameters_keys_flags_and_hooks():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    encoder, calls = model.encoder, []
    encoder.register_forward_hook(lambda *_: calls.append("hook"))
    model.stack[0].eval()
    adl.convert(model)
    assert model.encoder is encoder and list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert encoder.training and not model.stack[0].training
    before = encoder.weight_hh_l0.detach().clone()
    model(torch.randn(7, 3, 5)).sum().backward()
    optimizer.step()
    assert calls == ["hook"] and not torch.equal(encoder.weight_hh_l0, before)


def test_training_goes_on_as_it_would_have():
    model = Model().double()
    model.encoder.dropout = 0.0
    other = copy.deepcopy(model)
    adl.convert(other)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    for m in (model, other):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            m(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_model_that_is_a_layer_itself():
    layer = nn.GRU(3, 4)
    report = adl.convert(layer)
    assert type(layer) is adl.GRU and report.replaced[0][0] == "(model)"
    adl.revert(layer)
    assert type(layer) is nn.GRU


def test_revert_gives_torchs_layers_back():
    model, x = Model().eval(), torch.randn(7, 3, 5)
    before = classes(model)
    expected = model(x)
    adl.convert(model)
    report = adl.revert(model)
    assert classes(model) == before and len(report.replaced) == 4
    assert torch.equal(model(x), expected)
    adl.revert(adl_model := nn.Sequential(adl.LSTM(3, 4)))
    assert type(adl_model[0]) is nn.LSTM
    assert adl_model[0](torch.randn(2, 1, 3))[0].shape == (2, 1, 4)


def test_a_reverted_model_can_be_quantized_and_scripted():
    model = nn.Sequential(nn.LSTM(3, 4))
    adl.convert(model)
    adl.revert(model)
    assert torch.jit.script(model)(torch.randn(2, 1, 3))[0].shape == (2, 1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert isinstance(quantized[0], torch.ao.nn.quantized.dynamic.LSTM)


def test_subclasses_are_left_and_reported():
    class Mine(nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(input * 2, hx)

    model = nn.Sequential(Mine(3, 4))
    report = adl.convert(model)
    assert type(model[0]) is Mine and not report.replaced
    assert "Mine" in str(report) and "subclass" in str(report)


def test_parametrized_layers_stay_parametrized():
    layer = nn.LSTM(3, 4)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    model, x = nn.Sequential(layer), torch.randn(5, 2, 3)
    expected = layer(x)[0]
    adl.convert(model)
    assert isinstance(layer, adl.LSTM)
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original0.grad is not None
    adl.revert(model)
    assert isinstance(layer, nn.LSTM)
    assert torch.equal(layer(x)[0], expected)


def test_converting_twice_changes_nothing():
    model = Model()
    adl.convert(model)
    report = adl.convert(model)
    assert not report.replaced and not report.left
    assert str(report) == "nothing to convert found"


def test_shared_layers_are_converted_once():
    layer = nn.GRU(3, 3)
    model = nn.Sequential()
    model.add_module("a", layer)
    model.add_module("b", layer)
    assert len(adl.convert(model).replaced) == 1
    assert type(model.a) is adl.GRU and model.a is model.b


def test_verify_accepts_a_good_conversion_and_leaves_no_trace():
    model = Model()
    model.head.eval()
    state = torch.get_rng_state()
    adl.convert(model, verify=torch.randn(7, 3, 5))
    assert classes(model)[0] is adl.LSTM
    assert model.training and not model.head.training
    torch.randn(7 * 3 * 5)
    assert model.head.weight.grad is None and state is not None


def test_verify_undoes_everything_on_a_mismatch(monkeypatch):
    model, x = Model(), torch.randn(7, 3, 5)
    before = classes(model)
    honest = adl.GRU.forward
    monkeypatch.setattr(adl.GRU, "forward", lambda *a: tuple(t * 1.01 for t in honest(*a)))
    with pytest.raises(RuntimeError, match=r"output 0 differs by .* the model is as before"):
        adl.convert(model, verify=(x,))
    assert classes(model) == before


def test_functional_is_what_the_modules_call():
    x, hx = torch.randn(5, 3, 4), torch.randn(2, 3, 6)
    lstm, gru, rnn = nn.LSTM(4, 6, 2), nn.GRU(4, 6, 2), nn.RNN(4, 6, 2)
    results = [
        (adl.functional.lstm(x, (hx, hx), lstm._flat_weights, num_layers=2), lstm(x, (hx, hx))),
        (adl.functional.gru(x, hx, gru._flat_weights, num_layers=2), gru(x, hx)),
        (adl.functional.rnn(x, None, rnn._flat_weights, num_layers=2), rnn(x)),
    ]
    for ours, torchs in results:
        torch.testing.assert_close(ours, torchs)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'relu6'"):
        adl.functional.rnn(x, None, rnn._flat_weights, nonlinearity="relu6")
    with pytest.raises(RuntimeError, match="weights must hold equally many tensors"):
        adl.functional.gru(x, hx, gru._flat_weights[:3], num_layers=2)
    with pytest.raises(RuntimeError, match=r"h_0 must be \[2, ...\]"):
        adl.functional.gru(x, hx[:1], gru._flat_weights, num_layers=2)
