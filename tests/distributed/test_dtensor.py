"""Layers on DTensors, in two processes: bit for bit one process where no sum is split."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from processes import run_two
from tolerance import assert_accurate
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_leaves, tree_map_only

import adl_kernels as adl
from adl_kernels import functional
from adl_kernels.distributed import RULES
from adl_kernels.recurrent.cell_facts import CELLS

pytestmark = pytest.mark.cpu_only

T, B = 9, 8  # rows of a part are more than 16: with fewer, weights are read in another order


@dataclass
class Case:
    """A module, and its inputs with the dimension along which each is shared out."""

    name: str
    make: Callable[[], nn.Module]
    inputs: dict[str, tuple[Any, int | None]]
    weights: int | None = None  # the dimension along which parameters are shared out
    messages: int = 0  # that may be sent in forward
    exact_weights: bool = False  # whether no sum over the gradients of weights is split


def states(count: int, *sizes: int) -> Any:
    found = tuple(torch.randn(sizes) for _ in range(count))
    return found if count > 1 else found[0]


class Call(nn.Module):
    """A function of functional.py, or a method, as a module with the parameters of another."""

    def __init__(self, inner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.inner, *args, **kwargs)


def with_seed(layer: nn.Module) -> nn.Module:
    layer.dropout_seed = torch.tensor(5)
    return layer


def batch_cases() -> list[Case]:
    """Every kind of layer with its batch shared out."""
    x, small = torch.randn(T, B, 6), torch.randn(T, 5, 6)
    lengths = torch.tensor([9, 3, 5, 1, 9, 2, 4, 7])
    reset = torch.rand(T, B) < 0.2
    image, line = torch.randn(4, 6, 9, 8), torch.randn(4, 6, 20)
    ids = torch.arange(20).div(7, rounding_mode="floor").expand(4, 20)
    same = {"padding": "same", "bias": False}
    return [
        Case("lstm", lambda: adl.LSTM(6, 8), {"input": (x, 1)}),
        Case(
            "gru given h", lambda: adl.GRU(6, 8), {"input": (x, 1), "hx": (states(1, 1, B, 8), 1)}
        ),
        Case(
            "lstm given states, two directions, projection",
            lambda: adl.LSTM(6, 8, 2, bidirectional=True, proj_size=3),
            {"input": (x, 1), "hx": (tuple(torch.randn(4, B, w) for w in (3, 8)), 1)},
        ),
        Case("rnn", lambda: adl.RNN(6, 8), {"input": (x, 1)}),
        Case(
            "rnn relu, batch first",
            lambda: adl.RNN(6, 8, nonlinearity="relu", batch_first=True),
            {"input": (x.transpose(0, 1), 0)},
        ),
        Case("rnn sigmoid", lambda: adl.RNN(6, 8, nonlinearity="sigmoid"), {"input": (x, 1)}),
        Case("reset before", lambda: adl.GRU(6, 8, reset_after=False), {"input": (x, 1)}),
        Case(
            "coupled, all states",
            lambda: adl.LSTM(6, 8, forget_gate="coupled", peephole=True, return_all_states=True),
            {"input": (x, 1)},
        ),
        Case(
            "layer norm", lambda: adl.LSTM(6, 8, layer_norm=True, bptt_steps=4), {"input": (x, 1)}
        ),
        Case("no forget gate", lambda: adl.LSTM(6, 8, forget_gate="none"), {"input": (x, 1)}),
        Case("activations", lambda: adl.LSTM(6, 8, hidden_activation="relu"), {"input": (x, 1)}),
        Case(
            "lengths, reset",
            lambda: adl.LSTM(6, 8),
            {"input": (x, 1), "lengths": (lengths, 0), "reset": (reset, 1)},
        ),
        Case("uneven", lambda: adl.GRU(6, 8), {"input": (small, 1)}),
        Case(
            "masks of a seed",
            lambda: with_seed(
                adl.LSTM(6, 8, zoneout=0.2, recurrent_dropout=0.3, weight_dropout=0.1)
            ),
            {"input": (x, 1)},
        ),
        Case(
            "dropout with a seed",
            lambda: with_seed(adl.GRU(6, 8, 2, dropout=0.5)),
            {"input": (x, 1)},
            messages=1,
        ),
        Case("recomputed", lambda: recomputed(adl.LSTM(6, 8)), {"input": (x, 1)}),
        Case("lstm cell", lambda: adl.LSTMCell(6, 8), {"input": (torch.randn(40, 6), 0)}),
        Case(
            "gru cell given h",
            lambda: adl.GRUCell(6, 8),
            {"input": (torch.randn(40, 6), 0), "hx": (torch.randn(40, 8), 0)},
        ),
        Case("rnn cell", lambda: adl.RNNCell(6, 8), {"input": (torch.randn(40, 6), 0)}),
        Case(
            "conv1d", lambda: adl.DepthwiseConv1d(6, 12, 3, activation="relu"), {"input": (line, 0)}
        ),
        Case(
            "conv2d",
            lambda: adl.DepthwiseConv2d(6, 6, 3, stride=2, padding=1),
            {"input": (image, 0)},
        ),
        Case(
            "conv2d channels last",
            lambda: adl.DepthwiseConv2d(6, 6, 5, **same),
            {"input": (image.to(memory_format=torch.channels_last), 0)},
        ),
        Case(
            "conv2d, other stride",
            lambda: adl.DepthwiseConv2d(6, 6, 3, padding=1),
            {"input": (image, 0)},
        ),
        Case(
            "conv3d",
            lambda: adl.DepthwiseConv3d(2, 2, 3, dilation=2),
            {"input": (torch.randn(4, 2, 6, 7, 8), 0)},
        ),
        Case("causal", lambda: adl.CausalConv1d(6, 4), {"input": (line, 0), "seq_idx": (ids, 0)}),
        Case(
            "causal steps",
            lambda: Call(adl.CausalConv1d(6, 4), lambda m, x: m.step(x, m.init_state(len(x)))),
            {"x": (torch.randn(4, 6), 0)},
        ),
        Case(
            "residual",
            lambda: Call(
                adl.DepthwiseConv1d(6, 6, 3),
                lambda m, x, residual: functional.depthwise_conv1d(
                    x, m.weight, m.bias, padding=1, residual=residual
                ),
            ),
            {"x": (line, 0), "residual": (torch.randn(4, 6, 20), 0)},
        ),
        Case(
            "separable",
            lambda: adl.SeparableConv2d(6, 10, 3, activation="relu"),
            {"input": (image, 0)},
        ),
    ]


def channel_cases() -> list[Case]:
    """Convolutions with channels shared out: of the input, the weights and the result."""
    image, line = torch.randn(4, 6, 9, 8), torch.randn(4, 6, 20)

    def add(m, x, residual):
        return functional.depthwise_conv1d(x, m.weight, m.bias, padding=1, residual=residual)

    return [
        Case("conv1d", lambda: adl.DepthwiseConv1d(6, 6, 3, stride=2), {"input": (line, 1)}, 0),
        Case(
            "conv2d",
            lambda: adl.DepthwiseConv2d(6, 6, 3, activation="relu"),
            {"input": (image, 1)},
            0,
        ),
        Case(
            "multiplier",
            lambda: adl.DepthwiseConv2d(6, 18, 3, bias=False),
            {"input": (image, 1)},
            0,
        ),
        Case(
            "conv3d",
            lambda: adl.DepthwiseConv3d(2, 2, 3),
            {"input": (torch.randn(4, 2, 6, 7, 8), 1)},
            0,
        ),
        Case(
            "uneven", lambda: adl.DepthwiseConv1d(5, 5, 3), {"input": (torch.randn(4, 5, 20), 1)}, 0
        ),
        Case(
            "uneven with a multiplier",
            lambda: adl.DepthwiseConv1d(5, 10, 3),
            {"input": (torch.randn(4, 5, 20), 1)},
            0,
            messages=9,
        ),
        Case(
            "residual",
            lambda: Call(adl.DepthwiseConv1d(6, 6, 3), add),
            {"x": (line, 1), "residual": (torch.randn(4, 6, 20), 1)},
            0,
        ),
        Case("input alone", lambda: adl.DepthwiseConv1d(6, 6, 3), {"input": (line, 1)}),
    ]


def recomputed(layer: nn.Module) -> nn.Module:
    layer.recompute = True
    return layer


def test_batch_shared_out() -> None:
    run_two(check, "batch_cases")


def test_channels_shared_out() -> None:
    run_two(check, "channel_cases")


KINDS = ("output", "output without gradients", "gradient of input", "gradient of weight")


def check(cases: str) -> None:
    mesh = init_device_mesh("cpu", (2,))

    def place(t: Tensor, dim: int | None) -> Tensor:
        return distribute_tensor(t, mesh, [Replicate() if dim is None else Shard(dim)])

    for case in globals()[cases]():
        torch.manual_seed(1)
        state = case.make().state_dict()
        one = run(case, state, torch.float32, lambda t, dim: t)
        exact = run(case, state, torch.float64, lambda t, dim: t)
        two = run(case, state, torch.float32, place)
        for kind, *lists in zip(KINDS, two, one, exact, strict=True):
            for k, (many, single, right) in enumerate(zip(*lists, strict=True)):
                what, many = f"{case.name}: {kind} {k}", many.full_tensor()
                if kind != KINDS[-1] or case.exact_weights:
                    assert torch.equal(many, single), f"{what} {(many - single).abs().max()}"
                assert_accurate(many, single, right, what)


def run(
    case: Case, state: dict[str, Tensor], dtype: torch.dtype, place: Callable[..., Tensor]
) -> tuple[list[Tensor], ...]:
    """What KINDS lists."""
    module = case.make().to(dtype)
    module.load_state_dict(state)
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(place(p.detach(), case.weights)))
    leaves = []

    def move(t: Tensor, dim: int | None) -> Tensor:
        t = place(t.detach().to(dtype) if t.is_floating_point() else t, dim)
        if t.is_floating_point():
            leaves.append(t.requires_grad_())
        return t

    given = {
        name: tree_map_only(Tensor, lambda t, dim=dim: move(t, dim), value)
        for name, (value, dim) in case.inputs.items()
    }
    with CommDebugMode() as messages:
        outputs = tree_leaves(module(**given))
    assert messages.get_total_counts() <= case.messages, (case.name, messages.get_comm_counts())
    torch.manual_seed(2)
    weights = [place(torch.randn(y.shape).to(dtype), None) for y in outputs]
    torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum().backward()
    with torch.no_grad():
        alone = tree_leaves(module(**given))
    return outputs, alone, [t.grad for t in leaves], [p.grad for p in module.parameters()]


def test_ops_called_directly() -> None:
    run_two(check_ops)


def check_ops() -> None:
    check_refusals()
    check_training()
    ops = torch.ops.adl_kernels
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "adl_kernels::" in name}
    has_tensors = {
        name.removeprefix("adl_kernels::")
        for name in registered
        if "Tensor" in str(getattr(ops, name.split("::")[1]).default._schema)
    }
    assert set(RULES) == has_tensors

    # Two dimensions of a mesh, of which the second has one device.
    mesh = init_device_mesh("cpu", (2, 1))

    def place(t: Tensor, *dims: int | None) -> Tensor:
        shards = [Replicate() if dim is None else Shard(dim) for dim in (*dims, None, None)[:2]]
        return distribute_tensor(t, mesh, shards)

    def same(found: Any, wanted: Any) -> None:
        for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
            assert torch.equal(a.full_tensor(), b)

    x, h = torch.randn(T, B, 6), torch.randn(1, B, 8)
    weights = [torch.randn(24, n) for n in (6, 8)]
    outputs = ops.gru_forward(x, [h], weights)
    given = place(x, 1), [place(h, 1)], [place(w) for w in weights]
    shared = ops.gru_forward(*given)
    same(shared[:2], outputs[:2])
    # Gradients that each device has all of are cut to what forward kept, not the other way round.
    grads = [torch.randn(y.shape) for y in outputs[:2]]
    rest = [None] * 6 + [[], "tanh", "tanh", False, False, False, 0, 0]
    needs = [True, False, True]
    wanted = ops.gru_backward(grads, x, [h], weights, *rest, outputs[0], outputs[2:], needs)
    found = ops.gru_backward([place(g) for g in grads], *given, *rest, shared[0], shared[2:], needs)
    assert [t.placements[0] for t in found[:2]] == [Shard(1), Shard(1)]
    same(found[:3], wanted[:3])
    assert_accurate(found[3].full_tensor(), wanted[3], wanted[3].double(), "weight_hh")
    whole = place(x), [place(h)], given[2]
    kept = ops.gru_forward(*whole)
    sharded = [place(g, 1) for g in grads]
    found = ops.gru_backward(sharded, *whole, *rest, kept[0], kept[2:], needs)
    assert all(t.placements[0] == Replicate() for t in found)
    same([*found[:2], found[3]], [*wanted[:2], wanted[3]])
    found = ops.gru_backward([None, place(grads[1])], *given, *rest, shared[0], shared[2:], needs)
    wanted = ops.gru_backward(
        [None, grads[1]], x, [h], weights, *rest, *outputs[:1], outputs[2:], needs
    )
    same(found[:2], wanted[:2])

    image, dw = torch.randn(4, 6, 9, 8), torch.randn(6, 1, 3, 3)
    pw, bias, window = torch.randn(10, 6, 1, 1), torch.randn(10), ([1, 1], [1] * 4, [1, 1])
    wanted = ops.separable_conv(image, dw, None, pw, bias, None, *window)
    packed = ops.pack_pointwise(place(pw))
    same(
        ops.separable_conv(
            place(image, 0), place(dw), None, place(pw), place(bias), packed, *window
        ),
        ops.separable_conv(image, dw, None, pw, bias, ops.pack_pointwise(pw), *window),
    )
    found = ops.separable_conv(
        place(image), place(dw), None, place(pw, 0), place(bias, 0), None, *window
    )
    assert found.placements[0] == Shard(1)
    same(found, wanted)
    seed = torch.tensor(3)
    same(ops.dropout(place(x, 1), 0.5, seed), ops.dropout(x, 0.5, seed))
    same(ops.mask(place(x, 1), [3, 5], 0.5, seed), ops.mask(x, [3, 5], 0.5, seed))
    # Steps cannot be shared out; they are brought together.
    same(ops.gru(place(x, 0), [place(h)], given[2]), outputs[:2])
    sizes = torch.tensor([B] * T)
    same(
        ops.gru(place(x.flatten(0, 1), 0), [place(h, 1)], given[2], place(sizes)),
        ops.gru(x.flatten(0, 1), [h], weights, sizes),
    )

    # Fewer sequences than devices: each computes all of them.
    same(
        ops.gru(place(x[:, :1], 1), [place(h[:, :1])], given[2]),
        ops.gru(x[:, :1], [h[:, :1]], weights),
    )

    # cuDNN's ops have no kernel here: their sizes and places, without numbers.
    gru, cut = CELLS["gru"].index, [Shard(1), Replicate()]
    with FakeTensorMode():
        x = DTensor.from_local(torch.empty(T, 4, 6), mesh, cut)
        h = DTensor.from_local(torch.empty(2, 4, 8), mesh, cut)
        weights = [
            DTensor.from_local(p, mesh, [Replicate()] * 2) for p in nn.GRU(6, 8, 2).parameters()
        ]
        y, h_n, reserve = ops.cudnn_forward(gru, 1, x, [h], weights, None)
        assert y.shape == (T, B, 8) and y.to_local().shape == (T, 4, 8)
        assert h_n.placements[0] == Shard(1) and reserve.placements[0] == Partial()
        needs = [True] * 9
        found = ops.cudnn_backward(gru, 1, [y, None], x, [h], weights, None, y, reserve, needs)
        assert [t.placements[0] for t in found] == [Shard(1)] * 2 + [Partial()] * 8
        assert [t.shape for t in found] == [t.shape for t in (x, h, *weights)]


def check_training() -> None:
    """Sums in parts are what clipping and an optimizer read: the same weights after some steps."""
    mesh, x, trained = init_device_mesh("cpu", (2,)), torch.randn(T, B, 6), []
    for shared in (False, True):
        torch.manual_seed(1)
        layer, given = adl.LSTM(6, 8), x
        if shared:
            layer, given = distribute_module(layer, mesh), distribute_tensor(x, mesh, [Shard(1)])
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            layer(given)[0].square().sum().backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
        trained.append(list(layer.parameters()))
    for alone, two in zip(*trained, strict=True):
        torch.testing.assert_close(two.full_tensor(), alone)


def check_refusals() -> None:
    """What docs/distributed.md says does not work is an error."""
    mesh = init_device_mesh("cpu", (2,))
    layer = distribute_module(adl.GRU(6, 8), mesh)
    x = distribute_tensor(torch.randn(T, B, 6), mesh, [Shard(1)])
    rows = distribute_tensor(torch.randn(T * B, 6), mesh, [Shard(0)])
    sizes = torch.tensor([B] * T)
    conv = distribute_module(adl.DepthwiseConv1d(6, 6, 3, padding=1, padding_mode="reflect"), mesh)
    causal = distribute_module(adl.CausalConv1d(6, 3), mesh)
    line = distribute_tensor(torch.randn(4, 6, 20), mesh, [Shard(0)])
    lengths = distribute_tensor(torch.tensor([3, 20, 5, 7]), mesh, [Shard(0)])
    for message, call in (
        ("mixed torch.Tensor and DTensor", lambda: layer(x, lengths=torch.full((B,), T))),
        ("mixed torch.Tensor and DTensor", lambda: layer(nn.utils.rnn.PackedSequence(rows, sizes))),
        ("mixed torch.Tensor and DTensor", lambda: causal(line, lengths=lengths)),
        ("does not have a sharding strategy", lambda: conv(line)),
    ):
        with pytest.raises((RuntimeError, NotImplementedError), match=message):
            call()


ORDERS = {
    "ours first": [
        "import adl_kernels, importlib.util",
        "assert DTENSOR not in sys.modules",
        "importlib.util.find_spec(DTENSOR)",  # as those do who only want to know
        "import_dtensor()",
    ],
    "torch's first": ["import_dtensor()", "import adl_kernels"],
    "torch has changed": [
        "sys.modules['adl_kernels.distributed'] = None",
        "import adl_kernels",
        "with warnings.catch_warnings(record=True) as caught: import_dtensor()",
        "assert 'no layer runs on DTensors here' in str(caught[-1].message)",
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_rules_come_with_dtensor(order: str) -> None:
    """Alone, adl_kernels does not import what takes longer than itself."""
    lines = ["import importlib, sys, warnings, torch", "DTENSOR = 'torch.distributed.tensor'"]
    lines += ["def import_dtensor(): return importlib.import_module(DTENSOR)", *ORDERS[order]]
    lines += ["rules = import_dtensor().DTensor._op_dispatcher.sharding_propagator"]
    known = order != "torch has changed"
    lines += [f"assert (torch.ops.adl_kernels.lstm.default in rules.op_strategy_funcs) == {known}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "\n".join(lines)]
    subprocess.run(command, env=environment, check=True, timeout=120)


@pytest.mark.slow
def test_compiled() -> None:
    run_two(check_compiled)


class Output(nn.Module):
    """Of a compiled layer torch wants all results to have gradients: the first alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return tree_leaves(self.layer(x))[0]


def check_compiled() -> None:
    mesh = init_device_mesh("cpu", (2,))
    for layer, sizes, dim in (
        (adl.LSTM(6, 8, 2), (T, B, 6), 1),
        (adl.GRU(6, 8, bidirectional=True), (T, B, 6), 1),
        (adl.DepthwiseConv1d(6, 6, 3), (4, 6, 20), 0),
    ):
        model = distribute_module(Output(layer), mesh)
        x = distribute_tensor(torch.randn(sizes), mesh, [Shard(dim)]).requires_grad_()
        results = []
        for run in (model, torch.compile(model, fullgraph=True, dynamic=False)):
            y = run(x)
            grads = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
            results.append([y, *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a.full_tensor(), b.full_tensor())
