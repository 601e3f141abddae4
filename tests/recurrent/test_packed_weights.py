"""Weights that inference keeps packed: never those of before, however they were changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import adl_kernels

pytestmark = pytest.mark.cpu_only

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn": ("RNN", {}),
    "projection": ("LSTM", {"proj_size": 11}),
    "both": ("GRU", {"bidirectional": True, "batch_first": True}),
    "peepholes": ("LSTM", {"peephole": True}),
    "reset before": ("GRU", {"reset_after": False}),
    "norm": ("LSTM", {"layer_norm": True}),
    "two layers": ("LSTM", {"num_layers": 2}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    kind, options = LAYERS[name]
    return getattr(adl_kernels, kind)(19, 37, dtype=dtype, **options).eval()


def run(layer: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)[0]


def fresh(layer: Any, x: Tensor) -> Tensor:
    """Of a layer that has never been called."""
    return run(copy.deepcopy(layer), x)


def by_data(layer: Any) -> None:
    layer.weight_hh_l0.data[3, 5] += 1


def by_numpy(layer: Any) -> None:
    layer.weight_ih_l0.detach().numpy()[2, 1] = 0.5


def by_sign(layer: Any) -> None:
    layer.weight_hh_l0.data.neg_()


def by_swapped_rows(layer: Any) -> None:
    with torch.no_grad():
        layer.weight_hh_l0[:2] = layer.weight_hh_l0[:2].flip(0)


def by_another_tensor(layer: Any) -> None:
    layer.weight_ih_l0.data = torch.ones_like(layer.weight_ih_l0)


def by_step(layer: Any) -> None:
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(layer.parameters(), 0.1).step()


def by_load(layer: Any) -> None:
    layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})


CHANGES: list[Callable[[Any], None]] = [
    by_data,
    by_numpy,
    by_sign,
    by_swapped_rows,
    by_another_tensor,
    by_step,
    by_load,
]


@every_layer
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_every_change_takes_effect(name: str, change: Callable[[Any], None]):
    layer, x = make(name), torch.randn(9, 5, 19)
    for _ in range(3):
        assert torch.equal(run(layer, x), fresh(layer, x))
    before = run(layer, x)
    change(layer)
    after = run(layer, x)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh(layer, x))
    assert torch.equal(after, run(layer, x))


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(name: str, dtype: torch.dtype):
    layer, x = make(name, dtype), torch.randn(9, 5, 19, dtype=dtype)
    for _ in range(2):
        assert torch.equal(run(layer, x), fresh(layer, x))
    layer.weight_hh_l0.data.neg_()
    assert torch.equal(run(layer, x), fresh(layer, x))


def test_the_same_memory_for_another_layer():
    """A weight that is freed may leave its address to the next."""
    x = torch.randn(30, 1, 64)
    for seed in range(20):
        torch.manual_seed(seed)
        layer = adl_kernels.LSTM(64, 64).eval()
        assert torch.equal(run(layer, x), fresh(layer, x))


def test_a_view_of_shared_weights():
    layer, x = make("lstm"), torch.randn(40, 1, 19)
    layer.share_memory()
    twin = copy.copy(layer)
    run(layer, x)
    view = torch.utils.dlpack.from_dlpack(layer.weight_hh_l0.detach())
    view.mul_(2)
    assert torch.equal(run(layer, x), fresh(layer, x))
    assert torch.equal(run(twin, x), fresh(layer, x))


def test_threads_that_share_a_layer():
    layer, x = make("lstm"), torch.randn(40, 1, 19)
    expected, found = run(layer, x), []

    def work() -> None:
        found.extend(run(layer, x) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200 and all(torch.equal(y, expected) for y in found)


@every_layer
@pytest.mark.parametrize("T", [1, 40])
def test_frozen_layers_give_the_same(name: str, T: int):
    layer, x = make(name), torch.randn(T, T, 19)[:, :1]
    expected = run(layer, x)
    assert layer.freeze() is layer
    for _ in range(3):
        torch.testing.assert_close(run(layer, x), expected)
    assert len(run(layer, torch.randn(T, 2, 19))) == T


def test_a_promise_is_believed_until_it_ends():
    layer, x = make("lstm"), torch.randn(40, 1, 19)
    before = run(layer.freeze(), x)
    layer.weight_hh_l0.data.neg_()
    assert torch.equal(run(layer, x), before)  # as promised
    layer.unfreeze()
    after = run(layer, x)
    assert not torch.equal(before, after) and torch.equal(after, fresh(layer, x))
    layer.freeze()
    assert torch.equal(run(layer, x), after)
    by_load(layer)  # renews it
    assert torch.equal(run(layer, x), fresh(layer.unfreeze(), x))
    layer.freeze().train()
    layer.eval().weight_hh_l0.data.mul_(2)
    assert torch.equal(run(layer, x), fresh(layer, x))


def test_frozen_layers_train_and_copy():
    layer, x = make("lstm").freeze(), torch.randn(40, 1, 19)
    run(layer, x)
    y = layer(x)[0]
    y.sum().backward()
    assert layer.weight_hh_l0.grad is not None
    twin = copy.deepcopy(layer)
    twin.weight_hh_l0.data.neg_()  # of another memory
    assert torch.equal(run(twin, x), fresh(twin.unfreeze(), x))


def test_a_promise_ends_where_a_layer_is_reverted():
    model = torch.nn.Sequential(torch.nn.LSTM(19, 37)).eval()
    adl_kernels.convert(model)
    layer, x = model[0], torch.randn(40, 1, 19)
    run(layer.freeze(), x)
    adl_kernels.revert(model)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(3)
        expected = layer(x)[0]
    adl_kernels.convert(model)
    torch.testing.assert_close(run(layer, x), expected)
    assert "_frozen" not in vars(layer)


def test_frozen_weights_that_are_passed_for_a_call():
    """Their memory is that of the call before, with other numbers in it."""
    layer, x = make("lstm").freeze(), torch.randn(40, 1, 19)
    for k in range(20):
        weights = {"weight_ih_l0": torch.full((4 * 37, 19), 0.1 * k)}
        with torch.no_grad():
            y = torch.func.functional_call(layer, weights, (x,))[0]
            twin = copy.deepcopy(layer).unfreeze()
            expected = torch.func.functional_call(twin, weights, (x,))[0]
        torch.testing.assert_close(y, expected)
        del weights
