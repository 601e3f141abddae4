"""convert and revert: same objects, same parameters, same results; honest reports."""

from __future__ import annotations

import abc
import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

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


class Traces(Model):
    """Counts its calls, keeps what it has seen, and has a norm with statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.calls, self.seen = nn.BatchNorm1d(5), 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.add_(0))
        return super().forward(self.norm(x.flatten(0, 1)).view_as(x))


EXAMPLES = [torch.randn(7, 3, 5), (torch.randn(2, 4, 5),)]


@pytest.mark.parametrize("training", [False, True])
def test_verify_leaves_no_trace(training):
    model = Traces()
    model.head.eval()
    other, x = copy.deepcopy(model), EXAMPLES[0].clone()
    attributes = [list(vars(m)) for m in model.modules()]
    state = torch.get_rng_state()
    report = adl.convert(model, verify=EXAMPLES, verify_training=training)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(EXAMPLES[0], x)
    assert len(report.replaced) == 4 and not report.uncalled
    assert model.training and not model.head.training
    assert (model.calls, model.seen) == (0, []) and all(p.grad is None for p in model.parameters())
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    adl.revert(model)
    assert [list(vars(m)) for m in model.modules()] == attributes


def broken(which):
    """A GRU that fails in one way only."""
    honest = adl.GRU.forward

    def forward(self, x, hx=None):
        y, h = honest(self, x, hx)
        if which == "raises":
            raise KeyError("a bug")
        if which == "always" or (which == "other size" and x.size(1) == 4):
            y = y * 1.01
        if which == "in training" and self.training:
            y = y * 1.01
        if which == "gradients":
            y = y.detach() + (y - y.detach()) * 1.01
        return (y[:-1] if which == "shape" else y), h

    return forward


PROBLEMS = {
    "always": r"example 0, output 0 differs by",
    "raises": r"the converted model raises KeyError: 'a bug'",
    "other size": r"example 1, output 0 differs by",
    "in training": r"example 0, in training, output 0 differs by",
    "gradients": r"in training, the gradient of .* differs by",
    "shape": r"output 0 (differs|was)",
}


@pytest.mark.parametrize("which", PROBLEMS)
def test_verify_leaves_the_model_alone_where_anything_differs(monkeypatch, which):
    model = Model()
    model.encoder.dropout = 0.0
    before = classes(model)
    monkeypatch.setattr(adl.GRU, "forward", broken(which))
    with pytest.raises(RuntimeError, match=PROBLEMS[which] + ".*; the model is as before"):
        adl.convert(model, verify=EXAMPLES, verify_training=True)
    assert classes(model) == before
    if which in ("in training", "gradients"):
        adl.convert(model, verify=EXAMPLES)  # not asked about


class Gives(nn.Module):
    """A layer, and something made of what it gives."""

    def __init__(self, make):
        super().__init__()
        self.rnn, self.make = nn.GRU(5, 8), make

    def forward(self, x):
        return self.make(self.rnn(x.data if isinstance(x, PackedSequence) else x)[0])


def masked(y):
    return torch.where(y > y.mean(), y, -torch.inf) + torch.tensor([torch.nan] + [0.0] * 7)


MADE = {
    "bfloat16": lambda y: y.bfloat16(),
    "half": lambda y: y.half(),
    "small": lambda y: y * 1e-6,
    "complex": torch.fft.fft,
    "masked": masked,
    "bool": lambda y: y > 0.1,
    "int": lambda y: y.argmax(-1),
    "random": lambda y: y * random.random() * np.random.rand() * torch.rand(()),
}


@pytest.mark.parametrize("made", MADE)
def test_verify_compares_every_kind_of_number(monkeypatch, made):
    model, x = Gives(MADE[made]), EXAMPLES[0]
    states = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert len(adl.convert(model, verify=x).replaced) == 1
    adl.revert(model)
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert states[2] == np.random.get_state()[2]
    honest = adl.GRU.forward
    monkeypatch.setattr(adl.GRU, "forward", lambda *a: tuple(-t for t in honest(*a)))
    with pytest.raises(RuntimeError, match="output 0 differs by"):
        adl.convert(model, verify=x)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_verify_knows_gradients_that_are_rounding(scale):
    """Those of a bias before a batch norm, at any size of the other gradients."""
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
    layers = [copy.deepcopy(m) for m in [conv, norm, nn.ReLU()] * 4]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=1.0)
        model[-1].weight.mul_(scale)
    adl.convert(model, verify=torch.randn(4, 8, 12, 12), verify_training=True)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_verify_sees_small_gradients(monkeypatch, scale):
    model = nn.Sequential(nn.Linear(5, 5), Gives(lambda y: y * 10))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    honest = adl.GRU.forward

    def forward(self, x, hx=None):
        y, h = honest(self, x.detach() + (x - x.detach()) * 1.02, hx)
        return y, h

    monkeypatch.setattr(adl.GRU, "forward", forward)
    with pytest.raises(RuntimeError, match=r"the gradient of .* differs"):
        adl.convert(model, verify=EXAMPLES[0], verify_training=True)


def test_verify_says_that_there_is_nothing_to_compare():
    model = Gives(lambda y: {"sum": y.sum().item()})
    with pytest.raises(RuntimeError, match="no tensor among the outputs that could be compared"):
        adl.convert(model, verify=EXAMPLES[0])
    assert type(model.rnn) is nn.GRU


def test_verify_compares_gradients_in_inference_mode_and_takes_a_packed_sequence(monkeypatch):
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 5), torch.randn(2, 5)])
    adl.convert(Gives(torch.sin), verify=packed)
    monkeypatch.setattr(adl.GRU, "forward", broken("gradients"))
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"the gradient of .* differs"):
        adl.convert(Gives(torch.sin), verify=EXAMPLES[0], verify_training=True)


def test_verify_lets_errors_of_the_model_through_and_needs_copies():
    model = Model()
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        adl.convert(model, verify=torch.randn(7, 3, 6))
    model.cache = torch.ones(2, requires_grad=True) * 2  # torch refuses to copy it
    with pytest.raises(RuntimeError, match=r"copy.deepcopy raises .*; the model is as before"):
        adl.convert(model, verify=EXAMPLES)
    assert not any(type(m).__module__.startswith("adl") for m in model.modules())


def test_layers_that_are_read_and_not_called_are_named():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rnn = nn.Conv1d(4, 4, 3, groups=4), nn.GRU(4, 4)

        def forward(self, x):
            y = nn.functional.conv1d(x, self.conv.weight, self.conv.bias, groups=4)
            return self.rnn(y.movedim(2, 0))[0]

    model, x = Reads(), torch.randn(2, 4, 9)
    report = adl.convert(model, verify=x)
    assert report.uncalled == ["conv"] and "not called on the example" in str(report)
    assert "2 replaced, 0 left, 1 not called" in str(report)
    assert not adl.convert(Reads()).uncalled  # nothing is known


def test_keep_leaves_paths_and_classes_alone():
    for keep, kept in {
        "encoder": ["encoder"],
        "stack": ["stack.0", "stack.1"],
        ("stack.0", nn.LSTM): ["encoder", "stack.0"],
        (nn.RNNCellBase, "head"): ["cell"],
        nn.RNNBase: ["encoder", "stack.0", "stack.1"],
        "": ["encoder", "stack.0", "stack.1", "cell"],
    }.items():
        model = Model()
        replaced = {path for path, *_ in adl.convert(model, keep=keep).replaced}
        assert replaced == {"encoder", "stack.0", "stack.1", "cell"} - set(kept)
    shared = nn.Sequential(nn.GRU(3, 3))
    shared.add_module("again", shared[0])
    assert not adl.convert(shared, keep=["again"]).replaced
    with pytest.raises(ValueError, match="keep names 'decoder', but the model has no such module"):
        adl.convert(Model(), keep=["decoder"])
    with pytest.raises(ValueError, match="keep takes paths and classes, got 3"):
        adl.convert(Model(), keep=[3])


class Sized(nn.LSTM):
    """Changes how it is made, and can do more."""

    def __init__(self, size):
        super().__init__(size, size, batch_first=True)
        self.size = size

    def reset_parameters(self):
        for p in self.parameters():
            nn.init.constant_(p, 0.1)

    def zeros(self, B):
        return (torch.zeros(1, B, self.size),) * 2


class SameConv(nn.Conv2d):
    def __init__(self, c, k):
        super().__init__(c, c, k, padding=k // 2, groups=c)


class Cell(nn.GRUCell):
    pass


SUBCLASSES = {
    "lstm": (lambda: Sized(5), (2, 3, 5), adl.LSTM),
    "conv": (lambda: SameConv(4, 3), (2, 4, 6, 6), adl.DepthwiseConv2d),
    "cell": (lambda: Cell(4, 6), (3, 4), adl.GRUCell),
}


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_subclasses_that_change_nothing_of_a_call_are_converted(kind):
    make, size, ours = SUBCLASSES[kind]
    model, x = nn.Sequential(make()), torch.randn(size)
    theirs, expected = type(model[0]), model(x)
    report = adl.convert(model, verify=x, verify_training=True)
    assert len(report.replaced) == 1 and ours.__name__ in str(report)
    assert isinstance(model[0], ours) and isinstance(model[0], theirs)
    assert type(model[0]).forward is ours.forward and repr(model).count(theirs.__name__) == 1
    torch.testing.assert_close(model(x), expected)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again[0]) is type(model[0])
        torch.testing.assert_close(again(x), expected)
    if kind == "lstm":
        torch.testing.assert_close(model[0](x, model[0].zeros(2)), expected)
    assert not adl.convert(model).replaced
    assert len(adl.revert(model).replaced) == 1 and type(model[0]) is theirs
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def with_attribute(name, value):
    layer = nn.Conv1d(4, 4, 3, groups=4) if name == "activation" else nn.LSTM(4, 4)
    setattr(layer, name, value)
    return layer


class Weight(nn.Conv1d):
    @property
    def weight(self):
        if "weight" in self._parameters:
            return self._parameters["weight"].tanh()
        raise AttributeError


class Freezes(nn.LSTM):
    """A method that ours has too, and does not call."""

    def freeze(self):
        return self.requires_grad_(False)


class Steps:
    def unfreeze(self):
        return self.requires_grad_()


class Mixed(nn.LSTM, Steps):
    pass


class Registers(type):
    known: dict = {}  # noqa: RUF012

    def __init__(cls, name, bases, body):
        super().__init__(name, bases, body)
        assert Registers.known.setdefault(name, cls) is cls


class Registered(nn.Conv1d, metaclass=Registers):
    pass


class Called(nn.GRU):
    def __call__(self, *args):
        return super().__call__(*args)[0]


DIFFERENT = {
    "a property": (lambda: Weight(4, 4, 3, groups=4), "weight"),
    "__call__": (lambda: Called(4, 4), "__call__"),
    "patched": (lambda: with_attribute("forward", lambda x: x), "forward"),
    "an option of ours": (lambda: with_attribute("activation", nn.ReLU()), "activation"),
    "a method of ours": (lambda: Freezes(4, 4), "freeze"),
    "a method of ours, mixed in": (lambda: Mixed(4, 4), "unfreeze"),
    "an attribute of ours": (lambda: with_attribute("_frozen", True), "_frozen"),
    "another option": (lambda: with_attribute("zoneout", 0.5), "zoneout"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_may_compute_something_else_is_left(kind):
    make, name = DIFFERENT[kind]
    model = nn.Sequential(make())
    before = type(model[0])
    report = adl.convert(model)
    assert not report.replaced and type(model[0]) is before
    assert f"has its own {name};" in report.left[0][2]


def test_metaclasses_make_no_more_classes():
    model = nn.Sequential(Registered(4, 4, 3, groups=4))
    assert "its class is made by a metaclass" in str(adl.convert(model))
    assert type(model[0]) is Registered


class Own(nn.LSTM, abc.ABC):
    __slots__ = ("more",)

    def __init__(self, size):
        super().__init__(size, size)

    def extra_repr(self):
        return "mine"

    def reset_parameters(self):
        for p in self.parameters():
            nn.init.constant_(p, 0.1)

    def like(self):
        return type(self)(self.input_size)


def test_a_converted_subclass_is_made_and_reset_in_its_own_way():
    model, x = nn.Sequential(Own(4)), torch.randn(3, 2, 4)
    expected = model(x)
    adl.convert(model)
    assert isinstance(model[0], adl.LSTM) and "mine" in repr(model)
    again = model[0].like()
    assert isinstance(again, adl.LSTM)
    torch.testing.assert_close(again(x), expected)
    nn.init.zeros_(again.weight_hh_l0)
    again.reset_parameters()
    torch.testing.assert_close(again(x), expected)


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
