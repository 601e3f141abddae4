"""LSTMCell, GRUCell and RNNCell cannot be told from torch.nn's, which run beside them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import MARKS, random
from tolerance import assert_accurate
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations, prune

import adl_kernels

pytestmark = MARKS

KINDS = {
    "LSTMCell": (nn.LSTMCell, adl_kernels.LSTMCell, {}),
    "GRUCell": (nn.GRUCell, adl_kernels.GRUCell, {}),
    "RNNCell-tanh": (nn.RNNCell, adl_kernels.RNNCell, {}),
    "RNNCell-relu": (nn.RNNCell, adl_kernels.RNNCell, {"nonlinearity": "relu"}),
}

B, I, H = 3, 4, 7

every_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, *sizes: int, dtype: Any = torch.float64, **options: Any) -> list[nn.Module]:
    """torch's cell and ours, made from the same seed."""
    options = {"device": DEVICE} | options
    cells = []
    for cls in KINDS[kind][:2]:
        torch.manual_seed(0)
        cells.append(cls(*(sizes or (I, H)), dtype=dtype, **KINDS[kind][2], **options))
    return cells


def has_c(cell: nn.Module) -> bool:
    return isinstance(cell, nn.LSTMCell)


def states(cell: nn.Module, *lead: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        random(*lead, cell.hidden_size, seed=2 + k, dtype=dtype) for k in range(1 + has_c(cell))
    ]


def as_hx(cell: nn.Module, hx: list[Tensor]) -> Any:
    """The states as the cell takes them: none, one, or a tuple."""
    return None if not hx else tuple(hx) if has_c(cell) else hx[0]


def as_list(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)


def results(cell: nn.Module, x: Tensor, hx: list[Tensor]) -> dict[str, Tensor]:
    """New states and the gradients of x, hx and all weights; the loss reaches every state."""
    x, *hx = (t.detach().requires_grad_() for t in (x, *hx))
    cell.zero_grad()
    outputs = as_list(cell(x, as_hx(cell, hx)))
    # Whole numbers, so that they are the same in every dtype.
    upstream = [(2 * random(*o.shape, seed=10 + k)).round() for k, o in enumerate(outputs)]
    torch.autograd.backward(outputs, [u.to(o) for u, o in zip(upstream, outputs, strict=True)])
    found = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
    found |= {"dx": x.grad} | {f"dhx {k}": h.grad for k, h in enumerate(hx)}
    return found | {f"d{name}": p.grad for name, p in cell.named_parameters()}


def same(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Constructors

CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sizes": ((4, 7), {}),
    "positional-bias": ((4, 7, False), {}),
    "keywords": ((), {"input_size": 4, "hidden_size": 7, "bias": False}),
    "bfloat16": ((4, 7), {"dtype": torch.bfloat16, "device": "cpu"}),
    "no-inputs": ((0, 7), {}),
    "no-units": ((4, 0), {}),
    "meta": ((4, 7), {"device": "meta"}),
}

ATTRIBUTES = ("input_size", "hidden_size", "bias", "nonlinearity", "training", "__constants__")


@pytest.mark.cpu_only
@every_kind
@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructor_makes_the_same_cell(kind: str, name: str) -> None:
    theirs_cls, ours_cls, extra = KINDS[kind]
    args, options = CONSTRUCTIONS[name]
    torch.manual_seed(3)
    theirs = theirs_cls(*args, **options, **extra)
    torch.manual_seed(3)
    ours = ours_cls(*args, **options, **extra)
    assert repr(ours) == repr(theirs) and ours.extra_repr() == theirs.extra_repr()
    for attribute in ATTRIBUTES:
        assert getattr(ours, attribute, None) == getattr(theirs, attribute, None), attribute
    assert list(ours._parameters) == list(theirs._parameters)
    for key, p in ours._parameters.items():
        expected = theirs._parameters[key]
        if expected is None:
            assert p is None
            continue
        assert (p.dtype, p.device, p.shape) == (expected.dtype, expected.device, expected.shape)
        assert p.is_meta or torch.equal(p, expected), key


def test_positional_nonlinearity() -> None:
    args = (4, 7, True, "relu", DEVICE)
    theirs, ours = nn.RNNCell(*args), adl_kernels.RNNCell(*args)
    ours.load_state_dict(theirs.state_dict())
    x = random(B, I, dtype=torch.float32)
    assert repr(ours) == repr(theirs) and ours.nonlinearity == "relu"
    same(ours(x), theirs(x), 1e-6)
    # It is read at every call.
    ours.nonlinearity = theirs.nonlinearity = "tanh"
    same(ours(x), theirs(x), 1e-6)


BAD_CONSTRUCTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "nothing": ((), {}),
    "unknown-keyword": ((4, 7), {"size": 3}),
    "too-many": ((4, 7, True, "tanh", None, None, 1), {}),
    "num-layers": ((4, 7), {"num_layers": 2}),
    "negative": ((4, -7), {}),
    "float": ((4.0, 7), {}),
    "dtype-int": ((4, 7), {"dtype": torch.int64}),
}


@pytest.mark.cpu_only
@every_kind
@pytest.mark.parametrize("name", BAD_CONSTRUCTIONS)
def test_constructor_refuses_what_torch_refuses(kind: str, name: str) -> None:
    args, kwargs = BAD_CONSTRUCTIONS[name]
    theirs, ours, extra = KINDS[kind]
    failures = []
    for cls in (theirs, ours):
        with pytest.raises((TypeError, RuntimeError, NotImplementedError)) as info:
            cls(*args, **kwargs, **extra)
        failures.append((info.type, str(info.value)))
    assert failures[1] == failures[0]


# Outputs and gradients

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    # options, the shape of x, whether hx is given
    "plain": ({}, (B, I), True),
    "no-hx": ({}, (B, I), False),
    "no-bias": ({"bias": False}, (B, I), True),
    "no-bias-no-hx": ({"bias": False}, (B, I), False),
    "unbatched": ({}, (I,), True),
    "unbatched-no-hx": ({"bias": False}, (I,), False),
    "batch-1": ({}, (1, I), True),
    "batch-0": ({}, (0, I), True),
    "batch-0-no-hx": ({}, (0, I), False),
    "one-unit": ({"hidden_size": 1}, (2, 1), True),
    "wider-than-a-vector": ({"hidden_size": 41}, (19, 33), True),
    "no-inputs": ({}, (B, 0), True),
}


@every_kind
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(kind: str, name: str) -> None:
    options, shape, given = CASES[name]
    options = {"input_size": shape[-1], "hidden_size": H} | options
    found = []
    for cls in KINDS[kind][:2]:
        torch.manual_seed(0)
        cell = cls(**options, **KINDS[kind][2], dtype=torch.float64, device=DEVICE)
        found.append(results(cell, random(*shape), states(cell, *shape[:-1]) if given else []))
    same(found[1], found[0])
    assert [o.stride() for o in found[1].values()] == [o.stride() for o in found[0].values()]


@every_kind
@pytest.mark.parametrize("shape", [(B, I), (I,)], ids=["batched", "unbatched"])
def test_no_units(kind: str, shape: tuple[int, ...]) -> None:
    theirs, ours = pair(kind, I, 0)
    same(
        results(ours, random(*shape), states(ours, *shape[:-1])),
        results(theirs, random(*shape), states(theirs, *shape[:-1])),
    )


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounds_no_worse_than_torch(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(kind, 20, 24, dtype=dtype)
    x, hx = random(9, 20, dtype=dtype), states(ours, 9, dtype=dtype)
    exact = results(copy.deepcopy(theirs).double(), x.double(), [h.double() for h in hx])
    torchs, got = results(theirs, x, hx), results(ours, x, hx)
    for key, true in exact.items():
        assert_accurate(got[key], torchs[key], true, key)


def test_hx_as_list_and_by_name() -> None:
    theirs, ours = pair("LSTMCell")
    x, hx = random(B, I), states(ours, B)
    got = ours(input=x, hx=hx)
    assert type(got) is tuple
    same(got, theirs(x, tuple(hx)))


def slices(t: Tensor) -> Tensor:
    """The same numbers, every second element of something larger."""
    wide = t.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return wide[1::2, 1::2]


@every_kind
@pytest.mark.parametrize("layout", [slices, lambda t: t.t().contiguous().t()], ids=["slices", "t"])
def test_any_strides(kind: str, layout: Callable[[Tensor], Tensor]) -> None:
    _, ours = pair(kind)
    x, hx = random(B, I), states(ours, B)
    expected = results(ours, x, hx)
    for name in ("weight_ih", "weight_hh"):
        setattr(ours, name, nn.Parameter(layout(getattr(ours, name).detach())))
    assert not layout(x).is_contiguous() and not ours.weight_hh.is_contiguous()
    same(results(ours, layout(x), [layout(h) for h in hx]), expected)
    out = as_list(ours(x))[0]
    upstream = random(B, H)
    strided = torch.autograd.grad(out, ours.weight_hh, layout(upstream), retain_graph=True)
    same(strided, torch.autograd.grad(out, ours.weight_hh, upstream))


@every_kind
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["bias", "no-bias"])
def test_first_and_second_derivatives(kind: str, options: dict[str, Any]) -> None:
    _, ours = pair(kind, 2, 3, **options)
    # No pre-activation near the kink of relu.
    inputs = [random(2, 2), *states(ours, 2), *(p.detach() for p in ours.parameters())]
    inputs = [t.clone().requires_grad_() for t in inputs]
    names = [name for name, _ in ours.named_parameters()]
    count = len(inputs) - len(names)

    def run(x: Tensor, *rest: Tensor) -> Any:
        hx, weights = rest[: count - 1], rest[count - 1 :]
        args = (x, as_hx(ours, list(hx)))
        return functional_call(ours, dict(zip(names, weights, strict=True)), args)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@every_kind
def test_second_derivatives_are_torchs(kind: str) -> None:
    found = []
    for cell in pair(kind):
        x = random(B, I).requires_grad_()
        hx = [h.requires_grad_() for h in states(cell, B)]
        outputs = as_list(cell(x, as_hx(cell, hx)))
        (dx,) = torch.autograd.grad(outputs[-1].square().sum(), x, create_graph=True)
        inputs = [x, *hx, cell.weight_ih, cell.weight_hh, cell.bias_hh]
        found.append(torch.autograd.grad(dx.square().sum(), inputs, materialize_grads=True))
    same(found[1], found[0])


def test_loss_on_one_of_the_states() -> None:
    for k in (0, 1):
        found = []
        for cell in pair("LSTMCell"):
            x = random(B, I).requires_grad_()
            out = cell(x, tuple(states(cell, B)))[k]
            found.append(torch.autograd.grad(out.sum(), [x, cell.weight_ih, cell.weight_hh]))
        same(found[1], found[0])


@every_kind
def test_loop_over_time(kind: str) -> None:
    """As cells are used: the gradients go back through every step."""
    found = []
    for cell in pair(kind):
        xs, hx = random(6, B, I).requires_grad_(), None
        for x in xs:
            hx = cell(x, hx)
        sum(h.square().sum() for h in as_list(hx)).backward()
        found.append([*as_list(hx), xs.grad, *(p.grad for p in cell.parameters())])
    same(found[1], found[0])


# State


@every_kind
def test_state_dict_goes_both_ways(kind: str) -> None:
    for source, target in (pair(kind), reversed(pair(kind))):
        torch.manual_seed(7)
        target.reset_parameters()
        x, hx = random(B, I), states(source, B)
        assert not torch.equal(target.weight_ih, source.weight_ih)
        target.load_state_dict(source.state_dict(), strict=True)
        same(results(target, x, hx), results(source, x, hx))


def reset(cell: nn.Module) -> None:
    torch.manual_seed(8)
    cell.reset_parameters()


def loaded_into_empty(cell: nn.Module) -> nn.Module:
    new = copy.deepcopy(cell).to("meta").to_empty(device=DEVICE)
    new.load_state_dict(cell.state_dict(), assign=True)
    return new


def with_new_weight(cell: nn.Module) -> None:
    del cell.weight_hh
    cell.weight_hh = nn.Parameter(random(*cell.weight_ih[:, :1].shape).expand(-1, H).clone())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
    "meta-to-empty-load": loaded_into_empty,
    "half-and-back": lambda c: c.half().double(),
    "reset": reset,
    "data-assigned": lambda c: setattr(c.weight_hh, "data", c.weight_hh.data * 2),
    "new-weight": with_new_weight,
    "frozen-weight": lambda c: c.weight_hh.requires_grad_(False),
    "no-bias-after-all": lambda c: (setattr(c, "bias_ih", None), setattr(c, "bias_hh", None)),
    "no-bias_ih": lambda c: setattr(c, "bias_ih", None),
    "no-bias_hh": lambda c: setattr(c, "bias_hh", None),
    "pruned": lambda c: prune.l1_unstructured(c, "weight_hh", amount=0.5),
    "weight-norm": lambda c: parametrizations.weight_norm(c, "weight_hh"),
    "sgd-step": lambda c: torch.optim.SGD(c.parameters(), lr=0.5).step(),
}


@every_kind
@pytest.mark.parametrize("change", CHANGES)
def test_changes_take_effect_on_the_next_call(kind: str, change: str) -> None:
    found = []
    for cell in pair(kind):
        x, hx = random(B, I), states(cell, B)
        results(cell, x, hx)
        changed = CHANGES[change](cell)
        cell = changed if isinstance(changed, nn.RNNCellBase) else cell
        found.append(results(cell, x, hx))
    if change == "frozen-weight":
        assert found[0].pop("dweight_hh") is None and found[1].pop("dweight_hh") is None
    same(found[1], found[0])


@every_kind
def test_meta_cells_give_shapes(kind: str) -> None:
    theirs, ours = pair(kind, device="meta")
    for x in (random(B, I).to("meta"), random(I).to("meta")):
        got, expected = as_list(ours(x)), as_list(theirs(x))
        assert [(o.shape, o.device) for o in got] == [(o.shape, o.device) for o in expected]


# Autocast, torch.func, other dtypes


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["hx", "no-hx"])
def test_autocast(kind: str, dtype: torch.dtype, given: bool) -> None:
    """Against float32: what torch's cells return under autocast depends on the cell."""
    theirs, ours = pair(kind, dtype=torch.float32)
    x = random(B, I, dtype=torch.float32)
    hx = states(ours, B, dtype=torch.float32) if given else []
    expected = results(theirs, x, hx)
    with torch.autocast(DEVICE, dtype):
        got = results(ours, x, hx)
        mixed = as_list(ours(x.to(dtype), as_hx(ours, hx)))
        low = as_list(ours(x, as_hx(ours, [h.to(dtype) for h in hx])))
    for key, true in expected.items():
        is_output = key.startswith("output")
        assert got[key].dtype == (dtype if is_output else torch.float32), key
        bound = 8 * torch.finfo(dtype).eps * max(1.0, true.abs().max().item())
        assert (got[key].float() - true).abs().max().item() <= bound, key
    outputs = [o for key, o in got.items() if key.startswith("output")]
    same([o.detach() for o in mixed], outputs, 0)
    same([o.detach() for o in low], outputs, 0)


@every_kind
def test_vmap_and_grad(kind: str) -> None:
    theirs, ours = pair(kind)
    x, hx = random(5, B, I), states(ours, 5, B)
    expected = [as_list(theirs(x[k], as_hx(theirs, [h[k] for h in hx]))) for k in range(5)]
    got = vmap(lambda x, *hx: tuple(as_list(ours(x, as_hx(ours, list(hx))))))(x, *hx)
    same(list(got), [torch.stack(o) for o in zip(*expected, strict=True)])

    weights = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return as_list(functional_call(ours, weights, (x,)))[0].square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, x[0])
    for b in range(B):
        alone = torch.autograd.grad(as_list(theirs(x[0, b]))[0].square().sum(), theirs.parameters())
        same([g[b] for g in per_sample.values()], list(alone))


@pytest.mark.cpu_only
@every_kind
def test_jvp(kind: str) -> None:
    theirs, ours = pair(kind)
    x, direction = random(B, I), random(B, I, seed=20)
    runs = [lambda x, c=c: as_list(c(x))[0] for c in (theirs, ours)]
    same(jvp(runs[1], (x,), (direction,)), jvp(runs[0], (x,), (direction,)))


@pytest.mark.cpu_only
@every_kind
def test_batched_gradients(kind: str) -> None:
    found = []
    for cell in pair(kind):
        inputs = [random(B, I).requires_grad_(), *cell.parameters()]
        out = as_list(cell(inputs[0]))[0]
        upstream = random(4, *out.shape)
        found.append(torch.autograd.grad(out, inputs, upstream, is_grads_batched=True))
    same(found[1], found[0])


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell-tanh"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_complex_cells(kind: str, bias: bool) -> None:
    theirs, ours = pair(kind, dtype=torch.complex64, bias=bias)
    x = random(B, I, dtype=torch.complex64) * (1 - 0.5j)
    hx = states(ours, B, dtype=torch.complex64)
    same(results(ours, x, hx), results(theirs, x, hx), 1e-5)
