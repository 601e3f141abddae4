"""Another default device or dtype: whatever is given lies on the CPU, and so do all results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import adl_kernels as adl
from adl_kernels import diagnostics, functional, selftest

pytestmark = pytest.mark.cpu_only

T, B, I, H = 6, 3, 4, 5


def randn(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sizes, device="cpu", dtype=dtype)


def trained(module: nn.Module, *args: Any, **kwargs: Any) -> list[Any]:
    """Outputs in training, gradients, and outputs without them."""
    module.train().zero_grad()
    outputs = [y for y in tree_leaves(module(*args, **kwargs)) if isinstance(y, Tensor)]
    torch.stack([y.sum() for y in outputs if y.requires_grad]).sum().backward()
    module.eval()
    with torch.no_grad():
        return [outputs, [p.grad for p in module.parameters()], module(*args, **kwargs)]


AT: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
MASKS = {"dropout": 0.3, "zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.2}


def packed() -> Any:
    return nn.utils.rnn.PackedSequence(randn(6, I), torch.tensor([3, 2, 1], device="cpu"))


def lengths() -> Tensor:
    return torch.tensor([6, 2, 4], device="cpu")


def recurrent(cls: Any) -> list[Callable[[], Any]]:
    reset = torch.zeros(T, B, dtype=torch.bool, device="cpu").index_fill_(
        0, torch.tensor([2], device="cpu"), True
    )
    plain, masked = cls(I, H, **AT), cls(I, H, 2, bidirectional=True, **MASKS, **AT)
    seeded, one = cls(I, H, 2, **MASKS, **AT), cls(I, H, zoneout=0.2, recurrent_dropout=0.3, **AT)
    seeded.dropout_seed = torch.tensor([7], device="cpu")
    many = cls(I, H, 2, layer_norm=True, bptt_steps=2, **AT)
    x, some = randn(T, B, I), packed()
    return [
        lambda: trained(plain, x),
        lambda: trained(plain, some),
        lambda: trained(plain, x[:, 0]),
        lambda: trained(plain, x, lengths=lengths(), reset=reset),
        lambda: trained(masked, x),
        lambda: trained(masked, some),
        lambda: trained(seeded, x, lengths=lengths()),
        lambda: trained(one, x),
        lambda: trained(many, x),
        lambda: torch.func.jvp(lambda x: plain(x)[0], (x,), (x,)),
    ]


def cell(cls: Any) -> list[Callable[[], Any]]:
    module, x = cls(I, H, **AT), randn(B, I)
    one_bias = cls(I, H, **AT)
    one_bias.bias_hh = None
    return [lambda m=m, y=y: trained(m, y) for m in (module, one_bias) for y in (x, x[0])]


def convolution(cls: Any, n: int) -> list[Callable[[], Any]]:
    x = randn(B, I, *[7] * n)
    modules = [cls(I, 2 * I, 3, padding="same", padding_mode="reflect", activation="silu", **AT)]
    modules.append(cls(I, I, 3, stride=2, padding=1, **AT))
    return [lambda m=m: trained(m, x) for m in modules]


def separable(cls: Any, n: int) -> list[Callable[[], Any]]:
    x = randn(B, I, *[7] * n)
    module = cls(I, 6, 3, norm=True, dw_norm=True, activation="relu", **AT)
    return [lambda: trained(module, x)]


def causal() -> list[Callable[[], Any]]:
    module, x = adl.CausalConv1d(I, 3, **AT), randn(B, I, T)
    ids = torch.tensor([0, 0, 1, 1, 1, 2], device="cpu").expand(B, T)
    state = module.init_state(B)
    return [
        lambda: trained(module, x),
        lambda: trained(module, x, lengths=lengths()),
        lambda: trained(module, x, seq_idx=ids, state=state),
        lambda: trained(module, x, lengths=lengths(), state=module.init_state(B)),
        lambda: module.step(x[..., 0], state),
        lambda: torch.func.jvp(lambda x: module(x, seq_idx=ids), (x,), (x,)),
    ]


def flow() -> list[Callable[[], Any]]:
    found = []
    for layer in (adl.RNN(I, H, **AT), adl.LSTM(I, H, 2, bidirectional=True, **MASKS, **AT)):
        for x, more in ((randn(T, B, I), {}), (randn(T, B, I), {"lengths": lengths()})):
            found.append(lambda m=layer, x=x, k=more: flow_of(m, x, **k))
        some = packed()
        found.append(lambda m=layer, x=some: flow_of(m, x))
    return found


def flow_of(module: nn.Module, x: Any, **more: Any) -> list[Any]:
    def loss(y: Any) -> Tensor:
        return (y if isinstance(y, Tensor) else y.data).square().sum()

    found = diagnostics.gradient_flow(module, x, loss, **more)
    return [numbers(found), str(found)]


def numbers(value: Any) -> Any:
    if is_dataclass(value):
        bounds = [value.bound] if isinstance(value, diagnostics.LayerFlow) else []
        return [numbers(getattr(value, f.name)) for f in fields(value)] + bounds
    return [numbers(v) for v in value] if isinstance(value, tuple) else value


def convert_and_back() -> list[Callable[[], Any]]:
    x, y = randn(T, B, I), randn(B, I, 7, 7)

    def both() -> list[Any]:
        rnn, conv = nn.LSTM(I, H, **AT), nn.Conv2d(I, I, 3, groups=I, **AT)
        report = adl.convert(nn.ModuleList([rnn, conv]))
        found = [type(rnn).__module__, trained(rnn, x), trained(conv, y), len(report.replaced)]
        adl.revert(rnn)
        return [*found, trained(rnn, x)]

    return [both]


def functions() -> dict[str, list[Callable[[], Any]]]:
    x, h, line, image = randn(T, B, I), randn(1, B, H), randn(B, I, 9), randn(B, I, 6, 6)
    volume, seed = randn(B, I, 4, 4, 4), torch.tensor(3, device="cpu")
    rnn, gru, lstm = (list(m(I, H, **AT).parameters()) for m in (adl.RNN, adl.GRU, adl.LSTM))
    how: dict[str, Any] = {"training": True, "recurrent_dropout": 0.3, "zoneout": 0.1}
    whole = torch.outer(torch.tensor([1.0, 2, 1], device="cpu"), randn(3).round() + 3)
    kernel = torch.outer(randn(3), randn(3))
    state = randn(B, I, 2)
    return {
        "causal_conv1d": [
            lambda: functional.causal_conv1d(line, randn(I, 1, 3), lengths=lengths()),
            lambda: functional.causal_conv1d(
                line, randn(I, 1, 3), initial_state=state, return_final_state=True
            ),
            lambda: functional.causal_conv1d(
                line, randn(I, 1, 3), return_final_state=True, lengths=lengths()
            ),
        ],
        "causal_conv1d_step": [
            lambda: functional.causal_conv1d_step(line[..., 0], state, randn(I, 1, 3))
        ],
        "depthwise_conv1d": [lambda: functional.depthwise_conv1d(line, randn(I, 1, 3))],
        "depthwise_conv2d": [lambda: functional.depthwise_conv2d(image, randn(I, 1, 3, 3))],
        "depthwise_conv3d": [lambda: functional.depthwise_conv3d(volume, randn(I, 1, 3, 3, 3))],
        "separable_conv1d": [
            lambda: functional.separable_conv1d(line, randn(I, 1, 3), randn(6, I, 1))
        ],
        "separable_conv2d": [
            lambda: functional.separable_conv2d(image, randn(I, 1, 3, 3), randn(6, I, 1, 1))
        ],
        "lstm": [
            lambda: functional.lstm(x, None, lstm),
            lambda: functional.lstm(x, None, lstm, **how),
        ],
        "gru": [lambda: functional.gru(x, h, gru), lambda: functional.gru(x, None, gru, **how)],
        "rnn": [lambda: functional.rnn(x, h, rnn), lambda: functional.rnn(x, None, rnn, **how)],
        "flip_update_gate": [lambda: functional.flip_update_gate(gru[0])],
        "seeded_dropout": [
            lambda: functional.seeded_dropout(x, 0.4, seed),
            lambda: torch.func.vmap(lambda x: functional.seeded_dropout(x, 0.4, seed))(x),
        ],
        "separate_kernel": [
            lambda: functional.separate_kernel(whole),
            lambda: functional.separate_kernel(kernel),
        ],
    }


def modules() -> dict[str, list[Callable[[], Any]]]:
    pair = adl.SpatiallySeparableConv2d(I, 3, **AT)
    kernel, image = torch.outer(randn(3), randn(3)), randn(B, I, 7, 7)
    of_kernel = adl.SpatiallySeparableConv2d.from_kernel
    return {
        **{name: recurrent(getattr(adl, name)) for name in ("LSTM", "GRU", "RNN")},
        **{name: cell(getattr(adl, name)) for name in ("LSTMCell", "GRUCell", "RNNCell")},
        **{
            f"DepthwiseConv{n}d": convolution(getattr(adl, f"DepthwiseConv{n}d"), n)
            for n in (1, 2, 3)
        },
        **{f"SeparableConv{n}d": separable(getattr(adl, f"SeparableConv{n}d"), n) for n in (1, 2)},
        "CausalConv1d": causal(),
        "SpatiallySeparableConv2d": [
            lambda: trained(pair, image),
            lambda: of_kernel(kernel, I)(image),
        ],
        "diagnostics": flow(),
        "convert": convert_and_back(),
    }


CASES = {"modules": modules, "functions": functions}


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def run(make: Callable[[], dict[str, Any]], where: Any) -> dict[str, list[Any]]:
    """All results; made before, so that only what the calls make can go astray."""
    torch.manual_seed(0)
    cases = make()
    with where:
        found = {}
        for name, calls in cases.items():
            found[name] = []
            for call in calls:
                torch.manual_seed(1)  # what is drawn is drawn from the generator of the CPU
                found[name].append(tree_leaves(call()))
    return found


def test_everything_public_is_here() -> None:
    elsewhere = {"Report", "__version__", "flops", "functional", "revert"}
    assert set(modules()) == set(adl.__all__) - elsewhere
    assert set(functions()) == set(functional.__all__)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    "where", [lambda: torch.device("meta"), in_float64], ids=["meta", "float64"]
)
def test_results_are_the_same(make: Callable[[], dict[str, Any]], where: Any) -> None:
    plain, found = run(make, contextlib.nullcontext()), run(make, where())
    for name, calls in plain.items():
        for k, (wanted, got) in enumerate(zip(calls, found[name], strict=True)):
            for a, b in zip(wanted, got, strict=True):
                if isinstance(a, Tensor):
                    assert b.device.type == "cpu" and b.dtype == a.dtype, f"{name} {k}"
                    assert torch.equal(a.nan_to_num(), b.nan_to_num()), f"{name} {k}"
                else:
                    assert a == b or a != a, f"{name} {k}"


def test_a_seed_comes_from_the_generator_of_the_cpu() -> None:
    layer = adl.GRU(I, H, zoneout=0.3)
    torch.manual_seed(1)
    with torch.device("meta"):
        seed = layer._draw_seed()
    torch.manual_seed(1)
    assert seed is not None and torch.equal(seed, layer._draw_seed())


def test_selftest() -> None:
    with torch.device("meta"):
        assert selftest.check_conv(torch.float32, torch.device("cpu"), 0, *selftest.CONVS[0]) < 1e-4
