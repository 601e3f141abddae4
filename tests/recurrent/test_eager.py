"""The short way of eager calls: the same numbers as the ops, and None for all that is not plain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import adl_kernels
from adl_kernels import _C
from adl_kernels.recurrent import cells as cell_modules
from adl_kernels.recurrent import engine
from adl_kernels.recurrent.cell_facts import CELLS
from adl_kernels.recurrent.options import StackOptions

pytestmark = pytest.mark.cpu_only

CELL_OF = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}
every_class = pytest.mark.parametrize("kind", CELL_OF)


class Through(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def states(kind: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    h = torch.randn(shape, dtype=dtype)
    return (h, torch.randn(shape, dtype=dtype)) if kind == "LSTM" else h


def short(layer: Any, x: Any, hx: Any) -> Any:
    cell = CELLS[CELL_OF[layer.mode.removesuffix("_TANH")]]
    directions = 2 if layer.bidirectional else 1
    names = layer._flat_weights_names
    options = (directions, layer.batch_first, False, None)
    return _C.eager(cell.index, layer._parameters, names, x, hx, *options)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}], ids=str)
def test_a_layer_has_the_bits_of_its_op(
    kind: str, dtype: torch.dtype, given: bool, options: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    layer = getattr(adl_kernels, kind)(5, 20, dtype=dtype, **options)
    x = torch.randn(3, 4, 5, dtype=dtype).requires_grad_()
    batch, directions = (3, 2) if options else (4, 1)
    hx = states(kind, directions, batch, 20, dtype=dtype) if given else None
    tuple_hx = hx if hx is None or kind == "LSTM" else (hx,)
    long = engine.run(
        CELLS[CELL_OF[kind]],
        x,
        tuple_hx,
        [getattr(layer, name) for name in layer._flat_weights_names],
        StackOptions(1, bool(options), bool(options), 0.0, True),
    )
    found = flat(short(layer, x, hx))
    assert [t.grad_fn is not None for t in found] == [True] * len(long)
    for a, b in zip(found, long, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    wanted = [x, *layer.parameters()]
    gradients = [torch.autograd.grad(sum(t.sum() for t in ts), wanted) for ts in (found, long)]
    assert all(map(torch.equal, *gradients))


@every_class
def test_a_cell_has_the_bits_of_its_op(kind: str) -> None:
    torch.manual_seed(0)
    cell = getattr(adl_kernels, kind + "Cell")(5, 20)
    x, hx = torch.randn(4, 5, requires_grad=True), states(kind, 4, 20)
    args = (CELLS[CELL_OF[kind]].index, cell._parameters, cell_modules.WEIGHTS)
    found = flat(_C.eager(*args, x, hx, 1, False, True, None))
    with Through():  # the long way
        long = flat(cell(x, hx))
    assert all(map(torch.equal, found, long))
    wanted = [x, *cell.parameters()]
    gradients = [torch.autograd.grad(sum(t.sum() for t in ts), wanted) for ts in (found, long)]
    assert all(map(torch.equal, *gradients))


class Subclass(Tensor):
    pass


X, H0 = torch.randn(3, 4, 5), torch.randn(1, 4, 20)
NOT_PLAIN: dict[str, tuple[Any, Any]] = {
    "not a tensor": ([[1.0]], H0),
    "subclass": (X.as_subclass(Subclass), H0),
    "unbatched": (X[0], H0),
    "empty": (X[:, :0], H0[:, :0]),
    "other dtype": (X.double(), H0),
    "integers": (X.long(), H0),
    "other width": (X[..., :4], H0),
    "other batch": (X, H0[:, :3]),
    "state of two layers": (X, torch.cat([H0, H0])),
    "tuple for one state": (X, (H0, H0)),
    "meta": (X.to("meta"), H0.to("meta")),
}


@pytest.mark.parametrize("x, hx", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_wrong_or_unusual_arguments_get_none(x: Any, hx: Any) -> None:
    layer = adl_kernels.GRU(5, 20)
    assert short(layer, X, H0) is not None
    assert short(layer, x, hx) is None


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch function": Through,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "profiler": torch.profiler.profile,
    "forward AD": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_get_none(mode: str) -> None:
    layer, x = adl_kernels.GRU(5, 20), X
    with MODES[mode]():
        if mode == "forward AD":
            x = torch.autograd.forward_ad.make_dual(x, x)
        assert short(layer, x, H0) is None


def test_weights_that_are_no_plain_parameters_get_none() -> None:
    layer = adl_kernels.GRU(5, 20)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    assert short(layer, X, H0) is None


def test_in_place_changes_of_an_output_are_noticed() -> None:
    layer = adl_kernels.LSTM(5, 20)
    y = layer(X)[0]
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_is_freed_by_its_backward() -> None:
    cell = adl_kernels.LSTMCell(5, 20)
    h, _ = cell(X[0])
    h.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        h.sum().backward()
