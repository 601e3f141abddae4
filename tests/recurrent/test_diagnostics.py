"""gradient_flow against autograd through loops written by hand, and the bound against theory."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import adl_kernels
from adl_kernels.diagnostics import GradientFlow, gradient_flow

# On matrices this small threads would only wait for each other.

T, B, I, H = 6, 3, 4, 5
DOUBLE = {"device": DEVICE, "dtype": torch.float64}
CELLS = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}
STACK = {"num_layers": 2, "bidirectional": True}
KINDS = {
    "rnn": (nn.RNN, {}),
    "rnn-relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "lstm-stack": (nn.LSTM, STACK),
    "gru-stack": (nn.GRU, STACK),
    "rnn-batch-first": (nn.RNN, {"batch_first": True, **STACK}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def near(ours: Tensor | None, expected: Any) -> None:
    assert ours is not None and ours.dtype == torch.float64 and not ours.is_cuda
    expected = torch.as_tensor(expected, dtype=torch.float64).cpu()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-300, equal_nan=True)


def example(kind: str, scale: float = 2.0) -> tuple[nn.Module, Tensor]:
    """torch's module, weights enlarged so that gates move, and an input."""
    cls, options = KINDS[kind]
    module = cls(I, H, **options, **DOUBLE)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(scale)
    x = torch.randn(T, B, I, **DOUBLE)
    return module, x.transpose(0, 1) if options.get("batch_first") else x


def ours(module: nn.Module) -> nn.Module:
    return getattr(adl_kernels, type(module).__name__)(
        I,
        H,
        **{name: getattr(module, name) for name in ("num_layers", "bidirectional", "batch_first")},
        **({"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}),
        **DOUBLE,
    )


def loaded(module: nn.Module) -> nn.Module:
    copy = ours(module)
    copy.load_state_dict(module.state_dict())
    return copy


def loss_fn(y: Tensor) -> Tensor:
    weights = torch.arange(y.numel(), dtype=y.dtype, device=y.device).view(y.shape).sin()
    return (weights * y).sum()


def by_hand(module: nn.Module, x: Tensor) -> tuple[Tensor, list[list[list[Tensor]]]]:
    """Output, and for each layer and direction the states of every step, with retained grads."""
    scans = []
    x = x.transpose(0, 1) if module.batch_first else x
    for k in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            options = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
            cell = CELLS[type(module)](x.size(-1), H, **options, **DOUBLE)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict({n: getattr(module, f"{n}_l{k}{suffix}") for n in names})
            state: Any = None
            scan: list[list[Tensor]] = [[] for _ in x]
            for t in reversed(range(T)) if suffix else range(T):
                state = cell(x[t], state)
                scan[t] = list(state) if isinstance(state, tuple) else [state]
                for node in scan[t]:
                    node.retain_grad()
            scans.append(scan)
            outputs.append(torch.stack([states[0] for states in scan]))
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if module.batch_first else x, scans


@every_kind
def test_gradients_are_those_of_a_loop(kind: str) -> None:
    module, x = example(kind)
    y, scans = by_hand(module, x)
    loss = loss_fn(y)
    loss.backward()
    flow = gradient_flow(loaded(module), x, loss_fn)
    assert flow.loss == pytest.approx(loss.item(), rel=1e-12)
    assert (flow.steps, flow.batch, flow.sequences) == (T, B, B)
    assert len(flow.layers) == len(scans)
    directions = 1 + module.bidirectional
    for k, (found, scan) in enumerate(zip(flow.layers, scans, strict=True)):
        assert found.layer == k // directions
        assert found.direction == ("forward", "reverse")[k % directions]
        near(found.gradient, [states[0].grad.norm().item() for states in scan])
        if isinstance(module, nn.LSTM):
            c = [0.0 if states[1].grad is None else states[1].grad.norm() for states in scan]
            near(found.gradient_c, c)
        else:
            assert found.gradient_c is None


@every_kind
def test_jacobians_are_those_of_a_loop(kind: str) -> None:
    module, x = example(kind)
    _, scans = by_hand(module, x)
    flow = gradient_flow(loaded(module), x, loss_fn, sequences=2)
    assert flow.sequences == 2
    for found, scan in zip(flow.layers, scans, strict=True):
        hs = [states[0] for states in scan][:: 1 if found.direction == "reverse" else -1]
        norms = torch.zeros(T, 2, dtype=torch.float64)
        for b in range(2):
            rows = [torch.autograd.grad(h, hs, retain_graph=True) for h in hs[0][b]]
            for n in range(T):
                norms[n, b] = torch.linalg.matrix_norm(torch.stack([row[n][b] for row in rows]), 2)
        near(found.jacobian_mean, norms.mean(1))
        near(found.jacobian_max, norms.amax(1))


def test_torchs_own_layers_are_taken() -> None:
    module, x = example("lstm-stack")
    same(gradient_flow(module, x, loss_fn), gradient_flow(loaded(module), x, loss_fn))
    assert type(module) is nn.LSTM


def same(a: GradientFlow, b: GradientFlow) -> None:
    for p, q in zip(a.layers, b.layers, strict=True):
        near(p.gradient, q.gradient)
        near(p.jacobian_mean, q.jacobian_mean)
        near(p.jacobian_max, q.jacobian_max)
        assert p.saturation == q.saturation


LENGTHS = (6, 2, 5)


def test_lengths_are_sequences_run_alone() -> None:
    module, x = example("lstm-stack")
    mine = loaded(module)

    def loss(y: Tensor) -> Tensor:
        return y.square().sum()

    alone = [gradient_flow(mine, x[:length, b], loss).layers for b, length in enumerate(LENGTHS)]
    flow = gradient_flow(mine, x, loss, lengths=torch.tensor(LENGTHS))
    for k, found in enumerate(flow.layers):
        gradients, jacobians = torch.zeros(2, 3, T, dtype=torch.float64)
        jacobians += math.nan
        for b, length in enumerate(LENGTHS):
            gradients[b, :length] = alone[b][k].gradient
            jacobians[b, :length] = alone[b][k].jacobian_max
        near(found.gradient, gradients.norm(dim=0))
        near(found.jacobian_mean, jacobians.nanmean(0))
        near(found.jacobian_max, jacobians.nan_to_num(-1.0).amax(0))
    short = gradient_flow(mine, x[:, 1:2], loss, lengths=torch.tensor([2]))
    assert short.layers[0].jacobian_max.isnan().tolist() == [False] * 2 + [True] * 4


def test_packed_sequences_are_padded_ones() -> None:
    module, x = example("gru-stack")
    lengths = torch.tensor(LENGTHS)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    same(
        gradient_flow(module, packed, lambda y: loss_fn(pad_packed_sequence(y)[0])),
        gradient_flow(module, x, loss_fn, lengths=lengths),
    )


def test_state_and_reset_are_passed_on() -> None:
    module, x = example("lstm")
    mine, hx = loaded(module), tuple(torch.randn(1, B, H, **DOUBLE) for _ in range(2))
    y, _ = module(x, hx)
    assert gradient_flow(mine, x, loss_fn, hx).loss == pytest.approx(loss_fn(y).item(), rel=1e-12)
    reset = torch.zeros(T, B, dtype=torch.bool, device=DEVICE)
    reset[3] = True
    flow = gradient_flow(mine, x, lambda y: y[-1].sum(), reset=reset)
    (layer,) = flow.layers
    assert (layer.gradient > 0).tolist() == [False] * 3 + [True] * 3
    assert (layer.jacobian_max > 0).tolist() == [True] * 3 + [False] * 3


def test_truncated_bptt_cuts_the_flow() -> None:
    mine = adl_kernels.GRU(I, H, bptt_steps=4, **DOUBLE)
    x = torch.randn(T, B, I, **DOUBLE)
    (layer,) = gradient_flow(mine, x, lambda y: y[-1].sum()).layers
    assert (layer.gradient > 0).tolist() == [False] * 4 + [True] * 2
    assert (layer.jacobian_max > 0).tolist() == [True] * 2 + [False] * 4


RANDOM = {"layer_norm": True, "recurrent_dropout": 0.3, "weight_dropout": 0.2}
ONE_WIDE = [
    adl_kernels.LSTM(
        I, H, proj_size=1, bidirectional=True, peephole=True, zoneout=(0.2, 0.3), **RANDOM, **DOUBLE
    ),
    adl_kernels.LSTM(I, H, proj_size=1, forget_gate="coupled", zoneout=0.3, **DOUBLE).eval(),
    adl_kernels.GRU(I, 1, reset_after=False, bidirectional=True, zoneout=0.2, **DOUBLE),
    adl_kernels.GRU(I, 1, **RANDOM, **DOUBLE),
    adl_kernels.RNN(I, 1, nonlinearity="sigmoid", recurrent_dropout=0.5, **DOUBLE),
]


@pytest.mark.parametrize("module", ONE_WIDE, ids=repr)
def test_jacobians_of_one_unit_are_gradients(module: nn.Module) -> None:
    """With h one number wide and L = h_t of the first sequence both are the same number."""
    x, lengths = torch.randn(T, B, I, **DOUBLE), torch.tensor([5, 6, 2])
    for d in range(1 + module.bidirectional):
        last = 0 if d else 4
        flow = gradient_flow(
            module, x, lambda y, t=last, d=d: y[t, 0, d], lengths=lengths, sequences=1
        )
        layer = flow.layers[d]
        near(layer.jacobian_max[:5], layer.gradient[:5] if d else layer.gradient[:5].flip(0))
        assert layer.jacobian_max[5].isnan() and (layer.gradient[:5] > 0).any()


# The bound


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize(("phi", "slope"), [("tanh", 1.0), ("relu", 1.0), ("sigmoid", 0.25)])
def test_bound_bounds(phi: str, slope: float, scale: float) -> None:
    module = adl_kernels.RNN(I, H, nonlinearity=phi, **STACK, **DOUBLE)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(scale)
    x = torch.randn(20, B, I, **DOUBLE)
    for k, layer in enumerate(gradient_flow(module, x, loss_fn).layers):
        suffix = ("", "_reverse")[k % 2]
        weight = getattr(module, f"weight_hh_l{k // 2}{suffix}")
        rate = slope * torch.linalg.matrix_norm(weight, 2).item()
        assert layer.gamma_lambda == pytest.approx(rate, rel=1e-12)
        near(layer.bound, [rate**n for n in range(20)])
        assert (layer.jacobian_max <= layer.bound * (1 + 1e-10)).all()
        assert (layer.jacobian_mean <= layer.jacobian_max * (1 + 1e-10)).all()


def test_bound_is_reached() -> None:
    """By a rotation of units that are all on: then phi' = 1 and every norm is that of U."""
    module = adl_kernels.RNN(I, H, nonlinearity="relu", **DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.copy_(0.9 * torch.linalg.qr(torch.randn(H, H, **DOUBLE))[0])
        module.bias_hh_l0.fill_(50.0)
    (layer,) = gradient_flow(module, torch.randn(T, B, I, **DOUBLE), loss_fn).layers
    near(layer.jacobian_max, layer.bound)
    assert layer.saturation["h"].low == 0


NO_THEOREM = [
    adl_kernels.LSTM(I, H, **DOUBLE),
    adl_kernels.GRU(I, H, **DOUBLE),
    adl_kernels.RNN(I, H, layer_norm=True, **DOUBLE),
    adl_kernels.RNN(I, H, zoneout=0.3, **DOUBLE).eval(),
    adl_kernels.RNN(I, H, recurrent_dropout=0.3, **DOUBLE),
]


@pytest.mark.parametrize("module", NO_THEOREM, ids=repr)
def test_no_bound_without_a_theorem(module: nn.Module) -> None:
    (layer,) = gradient_flow(module, torch.randn(T, B, I, **DOUBLE), loss_fn).layers
    assert layer.gamma_lambda is None and layer.bound is None
    assert (layer.gradient > 0).all()


def test_what_overflows_is_infinite() -> None:
    module = adl_kernels.RNN(1, 2, nonlinearity="relu", **DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.copy_(1e200 * torch.eye(2, **DOUBLE))
        module.weight_ih_l0.fill_(1e-300)
        for bias in (module.bias_ih_l0, module.bias_hh_l0):
            bias.zero_()
    x = torch.ones(3, 1, 1, **DOUBLE)
    (layer,) = gradient_flow(module, x, lambda y: y[-1].sum()).layers
    assert layer.jacobian_max.tolist() == [1.0, pytest.approx(1e200), math.inf]
    assert "inf" in str(gradient_flow(module, x, lambda y: y[-1].sum()))


# Saturation


def test_saturation_of_an_lstm() -> None:
    module, x = example("lstm", scale=4.0)
    _, scans = by_hand(module, x)
    h = torch.stack([torch.zeros(B, H, **DOUBLE)] + [states[0] for states in scans[0]])
    c = torch.stack([states[1] for states in scans[0]])
    w = {name: getattr(module, f"{name}_l0") for name in ("weight_ih", "weight_hh")}
    b = module.bias_ih_l0 + module.bias_hh_l0
    i, f, g, o = (x @ w["weight_ih"].T + h[:-1] @ w["weight_hh"].T + b).chunk(4, -1)
    gates = {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
    gates["phi(c)"] = c.tanh()
    (layer,) = gradient_flow(loaded(module), x, loss_fn).layers
    assert list(layer.saturation) == list(gates)
    for name, values in gates.items():
        is_tanh = name in ("g", "phi(c)")
        found = layer.saturation[name]
        assert found.activation == ("tanh" if is_tanh else "sigmoid")
        low, high = (-0.9, 0.9) if is_tanh else (0.1, 0.9)
        assert found.low == pytest.approx((values < low).double().mean().item())
        assert found.high == pytest.approx((values > high).double().mean().item())
        assert found.share == found.low + found.high
        assert 0 < found.share < 1


GATES = [
    (adl_kernels.GRU(I, H, **DOUBLE), "r sigmoid, z sigmoid, n tanh"),
    (adl_kernels.GRU(I, H, reset_after=False, **DOUBLE), "r sigmoid, z sigmoid, n tanh"),
    (adl_kernels.RNN(I, H, **DOUBLE), "h tanh"),
    (adl_kernels.RNN(I, H, nonlinearity="sigmoid", **DOUBLE), "h sigmoid"),
    (
        adl_kernels.LSTM(I, H, forget_gate="coupled", cell_activation="relu", **DOUBLE),
        "i sigmoid, g relu, o sigmoid, phi(c) tanh",
    ),
    (
        adl_kernels.LSTM(I, H, peephole=True, cell_activation="identity", **DOUBLE),
        "i sigmoid, f sigmoid, o sigmoid, phi(c) tanh",
    ),
    (
        adl_kernels.LSTM(
            I, H, forget_gate="none", hidden_activation="identity", layer_norm=True, **DOUBLE
        ),
        "i sigmoid, g tanh, o sigmoid",
    ),
]


@pytest.mark.parametrize(("module", "expected"), GATES, ids=lambda p: str(p)[:60])
def test_gates_have_their_names(module: nn.Module, expected: str) -> None:
    (layer,) = gradient_flow(module, torch.randn(T, B, I, **DOUBLE), loss_fn).layers
    found = ", ".join(f"{name} {s.activation}" for name, s in layer.saturation.items())
    assert found == expected


def test_saturation_of_relu_is_the_share_of_zeros() -> None:
    module = adl_kernels.RNN(I, H, nonlinearity="relu", **DOUBLE)
    x = torch.randn(T, B, I, **DOUBLE)
    y, _ = module(x)
    flow = gradient_flow(module, x, loss_fn)
    found = flow.layers[0].saturation["h"]
    assert (found.low, found.high) == (pytest.approx((y == 0).double().mean().item()), 0.0)
    assert f"{found.low:.1%} zero" in str(flow)
    steps = gradient_flow(module, x, loss_fn, lengths=torch.tensor(LENGTHS)).layers[0]
    runs = torch.arange(T)[:, None] < torch.tensor(LENGTHS)
    assert steps.saturation["h"].low == pytest.approx((y == 0)[runs].double().mean().item())


# What stays as it was


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool) -> None:
    module = adl_kernels.LSTM(I, H, num_layers=2, dropout=0.5, device=DEVICE).train(training)
    head = nn.Linear(H, 1, device=DEVICE)
    module.weight_hh_l0.grad = torch.ones_like(module.weight_hh_l0)
    module.recompute = True
    weights = {name: p.clone() for name, p in module.state_dict().items()}
    x = torch.randn(T, B, I, device=DEVICE, requires_grad=True)
    seen = []

    def loss(y: Tensor) -> Tensor:
        seen.append((y.dtype, y.shape))
        return head(y).mean()

    before = torch.get_rng_state()
    with torch.no_grad():
        first = gradient_flow(module, x, loss)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == [(torch.float32, (T, B, H))]
    same(first, gradient_flow(module, x, loss))
    assert module.training is training and module.recompute is True
    assert x.grad is None and head.weight.grad is None
    assert (module.weight_hh_l0.grad == 1).all() and module.weight_ih_l0.grad is None
    for name, p in module.named_parameters():
        assert torch.equal(p, weights[name]) and p.requires_grad
    torch.manual_seed(1)
    other = gradient_flow(module, x, loss)
    assert (other.loss != first.loss) is training


MASKS = {
    "dropout": {"dropout": 0.5},
    "zoneout": {"zoneout": 0.3},
    "all": {"zoneout": 0.2, **RANDOM},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_masks_are_those_of_the_next_call(masks: str, training: bool) -> None:
    options = {"num_layers": 2, **MASKS[masks], **DOUBLE}
    module = adl_kernels.GRU(I, H, **options).train(training)
    x = torch.randn(T, B, I, **DOUBLE)
    flow = gradient_flow(module, x, loss_fn)
    assert flow.loss == pytest.approx(loss_fn(module(x)[0]).item(), rel=1e-12)


def test_float32_is_computed_in_double() -> None:
    """A gradient too small for float32 has a size; the others are as exact as their weights."""
    module, x = example("rnn", scale=0.1)
    x = torch.cat([x] * 20)
    exact = gradient_flow(module, x, lambda y: y[-1].sum()).layers[0]
    found = gradient_flow(module.float(), x.float(), lambda y: y[-1].sum()).layers[0]
    assert 0 < found.gradient[0] < 1e-60
    torch.testing.assert_close(found.gradient, exact.gradient, rtol=1e-3, atol=0)
    assert module.weight_hh_l0.dtype == torch.float32


def test_parametrized_and_frozen_weights() -> None:
    module = loaded(example("lstm")[0]).requires_grad_(False)
    x = torch.randn(T, B, I, **DOUBLE)
    expected = gradient_flow(module, x, loss_fn)
    parametrizations.weight_norm(module, "weight_hh_l0")
    same(gradient_flow(module, x, loss_fn), expected)


# Table and picture


def test_table() -> None:
    module, x = example("rnn-batch-first")
    printed = str(gradient_flow(module, x, loss_fn))
    lines = printed.splitlines()
    assert f"{T} steps, {B} sequences, Jacobians of {B}" in lines[0]
    assert lines[1].split()[-5:] == ["1", "2", "3", "5", "6"]
    assert lines[2] == "layer 0 forward, rnn_tanh"
    assert len([line for line in lines if line.startswith("layer")]) == 4
    (forward, *_), (reverse, *_) = (
        [line for line in lines if f"|dh_{end}/dh_t| mean" in line] for end in "T1"
    )
    assert forward.split()[-1] == reverse.split()[-5] == "1.0e+00"
    assert "bound " in printed and "^(T-t)" in printed and "below -0.9" in printed
    flow = gradient_flow(loaded(example("lstm")[0]), torch.randn(1, 1, I, **DOUBLE), loss_fn)
    assert "bound" not in str(flow) and "|dL/dc_t|" in str(flow)


@pytest.mark.cpu_only
def test_plot(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    module, x = example("rnn")
    flow = gradient_flow(module, x, loss_fn)
    flow.plot(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    axes = Figure().subplots()
    assert flow.plot(axes) is axes
    gradient, jacobian, bound = axes.get_lines()
    assert gradient.get_ydata() == pytest.approx(flow.layers[0].gradient.numpy())
    assert jacobian.get_ydata() == pytest.approx(flow.layers[0].jacobian_max.flip(0).numpy())
    assert bound.get_ydata() == pytest.approx(flow.layers[0].bound.flip(0).numpy())
    assert axes.get_yscale() == "log"


@pytest.mark.cpu_only
def test_plot_without_matplotlib(monkeypatch) -> None:
    module, x = example("rnn")
    flow = gradient_flow(module, x, loss_fn)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match="needs matplotlib, pip install matplotlib"):
        flow.plot()


# Wrong arguments


class Other(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


X = torch.zeros(T, B, I)
WRONG = {
    "module": ((nn.Linear(I, H), X, loss_fn), TypeError, "LSTM, GRU or RNN .*, got Linear"),
    "cell": ((nn.LSTMCell(I, H), X, loss_fn), TypeError, "got LSTMCell; what comes after"),
    "subclass": ((Other(I, H), X, loss_fn), TypeError, "Other is a subclass"),
    "meta": ((nn.GRU(I, H, device="meta"), X, loss_fn), ValueError, "got meta tensors"),
    "x": ((nn.RNN(I, H), [X], loss_fn), TypeError, "x must be a Tensor or .*, got list"),
    "dtype": ((nn.RNN(I, H), X.double(), loss_fn), ValueError, "float32, got torch.float64"),
    "features": ((nn.RNN(I, H), X[..., :2], loss_fn), RuntimeError, "Expected 4, got 2"),
    "loss_fn": ((nn.RNN(I, H), X, X), TypeError, "loss_fn must be a function .*, got Tensor"),
    "number": ((nn.RNN(I, H), X, lambda y: 1.0), TypeError, "return a Tensor, .*, got float"),
    "many": ((nn.RNN(I, H), X, lambda y: y), ValueError, r"got shape \[6, 3, 5\]"),
    "detached": ((nn.RNN(I, H), X, lambda y: y.detach().sum()), ValueError, "depends on its"),
    "unrelated": (
        (nn.RNN(I, H), X, lambda y: torch.ones(1, requires_grad=True).sum()),
        ValueError,
        "depends on its",
    ),
}


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_sentences(name: str) -> None:
    args, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        gradient_flow(*args)


@pytest.mark.cpu_only
@pytest.mark.parametrize("sequences", [0, 2.0, True])
def test_sequences_is_a_count(sequences: Any) -> None:
    with pytest.raises(ValueError, match="sequences must be an integer of at least 1, got"):
        gradient_flow(nn.RNN(I, H), X, loss_fn, sequences=sequences)
