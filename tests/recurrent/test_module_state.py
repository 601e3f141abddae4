"""The state of a layer: the same is done to torch's module and ours between two calls."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import DEVICE
from pairs import (
    CASES,
    MARKS,
    B,
    H,
    I,
    T,
    assert_same,
    cotangents,
    every_class,
    every_kind,
    pair,
    random,
    results,
    same_tensors,
    states,
    tensors,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

pytestmark = MARKS


def old_pickle(module: nn.RNNBase) -> nn.RNNBase:
    """What a module saved before PyTorch 1.8 holds: parameters in all_weights, no proj_size."""
    state = module.__getstate__()
    state["all_weights"] = module.all_weights
    for name in ("proj_size", "_all_weights", "_flat_weights_names", "_flat_weights"):
        del state[name]
    new = type(module).__new__(type(module))
    new.__setstate__(copy.deepcopy(state))
    return new


def loaded_by_assignment(module: nn.RNNBase) -> nn.RNNBase:
    with torch.device("meta"):
        new = type(module)(I, H, 2, bidirectional=True, dtype=torch.float64)
    # Of an RNN the nonlinearity is not in the state.
    new.mode = module.mode
    new.load_state_dict(module.state_dict(), assign=True)
    return new


def loaded_into_empty(module: nn.RNNBase) -> nn.RNNBase:
    new = copy.deepcopy(module).to("meta").to_empty(device=DEVICE)
    new.load_state_dict(module.state_dict(), strict=True)
    return new


def deleted_and_moved(module: nn.RNNBase) -> None:
    p = module.weight_hh_l0
    del module.weight_hh_l0
    module.to(torch.float64)
    module.weight_hh_l0 = p


def parametrized_and_back(module: nn.RNNBase) -> None:
    parametrize.register_parametrization(module, "weight_hh_l0", nn.Identity())
    parametrize.remove_parametrizations(module, "weight_hh_l0")


def saved_and_loaded(module: nn.RNNBase, **options: Any) -> nn.RNNBase:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([type(module)]):
        return torch.load(buffer, **options)


KEEPING: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch-save": lambda m: saved_and_loaded(m, weights_only=False),
    "torch-save-safe-global": saved_and_loaded,
    "old-pickle": old_pickle,
    "old-pickle-with-all-weights": lambda m: m.__setstate__(
        m.__getstate__() | {"all_weights": m.all_weights}
    ),
    "to-where-it-is": lambda m: m.to(DEVICE, torch.float64),
    "load-state-dict-assign": loaded_by_assignment,
    "meta-to-empty-load": loaded_into_empty,
    "share-memory": lambda m: m.share_memory(),
    "flatten-parameters": lambda m: m.flatten_parameters(),
    "deleted-moved-set-again": deleted_and_moved,
    "train-eval": lambda m: m.eval(),
    "zero-grad": lambda m: m.zero_grad(set_to_none=False),
    "transposed-parameter": lambda m: setattr(
        m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach().t().contiguous().t())
    ),
    "strided-data": lambda m: setattr(
        m.bias_ih_l0, "data", m.bias_ih_l0.detach().repeat_interleave(2)[::2]
    ),
    "parametrized-by-nothing": lambda m: parametrize.register_parametrization(
        m, "weight_hh_l0", nn.Identity()
    ),
    "parametrized-and-back": parametrized_and_back,
    "pruned-nowhere": lambda m: prune.identity(m, "weight_ih_l0"),
}


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def stepped(optimizer: type[torch.optim.Optimizer]) -> Callable[[nn.RNNBase], None]:
    # The gradients are there from the first call.
    return lambda module: optimizer(module.parameters(), lr=0.1).step()


def with_new_parameter(module: nn.RNNBase) -> None:
    del module.weight_hh_l0
    module.weight_hh_l0 = nn.Parameter(random(*module.weight_hh_l1.shape))


def with_tensor(module: nn.RNNBase) -> None:
    del module.weight_hh_l0
    module.weight_hh_l0 = random(*module.weight_hh_l1.shape)


def reset(module: nn.RNNBase) -> None:
    torch.manual_seed(7)
    module.reset_parameters()


def with_deprecated_weight_norm(module: nn.RNNBase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)


def with_weight_norm(module: nn.RNNBase) -> None:
    parametrizations.weight_norm(module, "weight_ih_l1")
    with torch.no_grad():
        module.parametrizations.weight_ih_l1.original0.mul_(2)


def with_spectral_norm(module: nn.RNNBase) -> None:
    # In training every look at the weight is a power iteration, and torch's modules look often.
    torch.manual_seed(8)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    module.eval()


def bfloat16_by_swapping(module: nn.RNNBase) -> nn.RNNBase:
    # By hand torch.utils.swap_tensors refuses the weights of every RNNBase, which are weakly
    # referenced.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.bfloat16().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


ALTERING: dict[str, Callable[[Any], Any]] = {
    "half-and-back": lambda m: m.half().double(),
    "bfloat16-and-back": lambda m: m.bfloat16().double(),
    "bfloat16-and-back-by-swapping": bfloat16_by_swapping,
    "reset-parameters": reset,
    "data-assigned": lambda m: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data * 0.5),
    "data-multiplied": lambda m: m.weight_hh_l0.data.mul_(0.5),
    "parameter-in-place": lambda m: torch.no_grad()(m.bias_hh_l1_reverse.add_)(1),
    # Parameters that are parts of one vector, at odd addresses.
    "vector": lambda m: nn.utils.vector_to_parameters(
        torch.linspace(-1, 1, sum(p.numel() for p in m.parameters()) + 1).to(DEVICE).double()[1:],
        m.parameters(),
    ),
    "initialised": lambda m: nn.init.orthogonal_(m.weight_hh_l0_reverse),
    "parameter-set": lambda m: setattr(m, "bias_ih_l0", nn.Parameter(m.bias_ih_l0.detach() + 1)),
    "deleted-then-parameter": with_new_parameter,
    "deleted-then-tensor": with_tensor,
    "tied": lambda m: setattr(m, "weight_hh_l1", m.weight_hh_l0),
    "load-state-dict": lambda m: m.load_state_dict({k: -p for k, p in m.state_dict().items()}),
    "sgd-step": stepped(torch.optim.SGD),
    "adam-step": stepped(torch.optim.Adam),
    "parametrized": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Half()),
    "weight-norm": with_weight_norm,
    "deprecated-weight-norm": with_deprecated_weight_norm,
    "spectral-norm": with_spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.4),
    "pruned-for-good": lambda m: prune.remove(
        prune.l1_unstructured(m, "weight_ih_l1_reverse", amount=0.4), "weight_ih_l1_reverse"
    ),
}


@pytest.mark.parametrize(
    "kind, change",
    [(kind, change) for kind in ("LSTM", "GRU", "RNN_RELU") for change in KEEPING | ALTERING],
)
def test_changes_take_effect_on_the_next_call(kind: str, change: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        hx = states(module, B)
        before = results(module, x, hx)
        changed = (KEEPING | ALTERING)[change](module)
        module = changed if isinstance(changed, nn.RNNBase) else module
        after = results(module, x, hx)
        # Weight norm alone rounds.
        same = torch.allclose(before["output 0"], after["output 0"], rtol=0, atol=1e-14)
        assert same == (change in KEEPING)
        found.append(after)
    assert_same(found[1], found[0])


@every_class
def test_state_dict_goes_both_ways(kind: str) -> None:
    x = random(T, B, I)
    for source, target in (pair(kind, num_layers=2), reversed(pair(kind, num_layers=2))):
        reset(target)
        assert not torch.equal(target(x)[0], source(x)[0])
        assert list(target.state_dict()) == list(source.state_dict())
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same(results(target, x), results(source, x))


@every_class
def test_state_dict_that_does_not_fit_is_refused_as_by_torch(kind: str) -> None:
    texts = []
    for module in pair(kind):
        state = module.state_dict()
        state["weight_hh_l7"] = state.pop("weight_hh_l0")
        state["bias_ih_l0"] = state["bias_ih_l0"][1:]
        with pytest.raises(RuntimeError, match="Missing key") as info:
            module.load_state_dict(state)
        texts.append(str(info.value))
    assert texts[0] == texts[1]


@every_class
@pytest.mark.parametrize("convert", ["half", "bfloat16", "float", "double"])
def test_dtype_methods(kind: str, convert: str) -> None:
    theirs, ours = (getattr(module, convert)() for module in pair(kind, dtype=None))
    dtype = theirs.weight_hh_l0.dtype
    assert {p.dtype for p in ours.parameters()} == {dtype} and ours(random(T, B, I, dtype=dtype))[
        0
    ].dtype == dtype
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


@every_kind
@pytest.mark.parametrize("name", ["no-hx", "batch-first-bidirectional-two-layers", "unbatched"])
def test_meta_modules_give_shapes(kind: str, name: str) -> None:
    case = CASES[name]
    theirs, ours = pair(kind, device="meta", **case.options)
    x = random(*case.shape).to("meta")
    for expected, got in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
        assert got.is_meta and got.shape == expected.shape and got.dtype == expected.dtype
    outputs = tensors(ours(x.requires_grad_()))
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    assert x.grad.shape == x.shape
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in ours.parameters())


@every_class
def test_flatten_parameters_does_nothing(kind: str) -> None:
    _, ours = pair(kind, num_layers=2)
    before = [(p, p.data_ptr(), p._version) for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert before == [(p, p.data_ptr(), p._version) for p in ours._flat_weights]
    del ours.weight_hh_l1
    ours._flat_weights[1] = None
    assert ours.flatten_parameters() is None


@every_class
def test_only_parameters_that_ask_get_a_gradient(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        module.requires_grad_(False)
        for name in ("weight_hh_l0", "bias_ih_l1_reverse", "weight_ih_l1"):
            getattr(module, name).requires_grad_()
        outputs = tensors(module(x))
        torch.autograd.backward(outputs, cotangents(outputs))
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert sum(g is not None for g in found[1].values()) == 3
    assert_same(found[1], found[0])


@every_class
def test_pruning_reaches_the_flat_weights(kind: str) -> None:
    _, ours = pair(kind)
    ours(random(T, B, I))
    prune.l1_unstructured(ours, "weight_hh_l0", amount=0.5)
    ours(random(T, B, I))
    index = ours._flat_weights_names.index("weight_hh_l0")
    assert ours._flat_weights[index] is ours.weight_hh_l0
    assert (ours._flat_weights[index] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    prune.random_unstructured(ours, "weight_hh_l0", amount=0.5)
    masked = ours.weight_hh_l0_mask == 0
    (ours(random(T, B, I))[0]).sum().backward()
    assert ours.weight_hh_l0_orig.grad[masked].abs().max() == 0


@every_class
def test_tied_weights_sum_their_gradients(kind: str) -> None:
    _, ours = pair(kind, num_layers=2)
    untied = copy.deepcopy(ours)
    untied.weight_hh_l1 = nn.Parameter(untied.weight_hh_l0.detach().clone())
    ours.weight_hh_l1 = ours.weight_hh_l0
    assert len(list(ours.parameters())) == len(list(untied.parameters())) - 1
    x = random(T, B, I)
    tied, apart = results(ours, x), results(untied, x)
    same_tensors(tied["output 0"], apart["output 0"])
    same_tensors(tied["dweight_hh_l0"], apart["dweight_hh_l0"] + apart["dweight_hh_l1"])


@every_class
def test_gradients_reach_a_tensor_set_as_weight(kind: str) -> None:
    """As weight drop does it: the weight is computed from a parameter at every call."""
    found = []
    for module in pair(kind):
        raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        module.register_parameter("raw", raw)
        module.weight_hh_l0 = raw * 0.5
        once = results(module, random(T, B, I))
        module.weight_hh_l0 = raw.t().contiguous().t() * 2
        found.append([*once.values(), *results(module, random(T, B, I)).values()])
    same_tensors(found[1], found[0])


@every_class
def test_data_parallel_replicas_use_the_weights_they_are_given(kind: str) -> None:
    """What torch.nn.parallel.replicate does to a module, which it does on GPUs only."""
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2):
        module(x)
        gradients = []
        for factor in (1.0, 0.5):
            replica = module._replicate_for_data_parallel()
            assert not list(replica.parameters())
            for name, p in module.named_parameters():
                setattr(replica, name, p * factor)
            outputs = tensors(replica(x))
            found_here = torch.autograd.grad(
                outputs, list(module.parameters()), cotangents(outputs)
            )
            gradients += [*outputs, *found_here]
        found.append(gradients)
        assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
    same_tensors(found[1], found[0])
    assert not torch.allclose(found[1][0], found[1][len(found[1]) // 2])


@every_class
def test_hooks_see_what_torchs_see(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2, bidirectional=True):
        seen: list[Any] = []

        def before(_: Any, args: Any, kwargs: Any, seen: list[Any] = seen) -> Any:
            seen.extend(args)
            return (args[0] * 2, *args[1:]), kwargs

        def after(_: Any, args: Any, output: Any, seen: list[Any] = seen) -> Any:
            seen.extend([args[0], output])
            return output[0] * 3, output[1]

        def backward(_: Any, grad_input: Any, grad_output: Any, seen: list[Any] = seen) -> Any:
            seen.extend([*grad_input, *grad_output])
            return tuple(None if g is None else g * 5 for g in grad_input)

        def backward_before(_: Any, grad_output: Any, seen: list[Any] = seen) -> None:
            seen.extend(grad_output)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
        module.register_full_backward_hook(backward)
        module.register_full_backward_pre_hook(backward_before)
        found.append([results(module, x), tensors(seen)])
    assert_same(found[1][0], found[0][0])
    same_tensors(found[1][1], found[0][1])
    assert len(found[1][1]) > 5


@every_kind
def test_functional_call_uses_other_weights(kind: str) -> None:
    x, found = random(T, B, I), []
    for module in pair(kind, num_layers=2):
        own = module(x)
        others = {
            name: random(*p.shape, seed=k).requires_grad_()
            for k, (name, p) in enumerate(module.named_parameters())
        }
        outputs = tensors(functional_call(module, others, (x, states(module, B))))
        gradients = torch.autograd.grad(outputs, list(others.values()), cotangents(outputs))
        assert all(p.grad is None for p in module.parameters())
        same_tensors(module(x), own)
        found.append([*outputs, *gradients])
    same_tensors(found[1], found[0])
