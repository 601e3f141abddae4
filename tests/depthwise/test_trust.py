"""Blocks inside what others do to modules: adapters, hooks, offloading, shared memory, NumPy."""

from __future__ import annotations

import copy

import pytest
import torch
from test_conv_modules import ops_in, trained
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.dlpack import from_dlpack, to_dlpack

import adl_kernels as adl

pytestmark = pytest.mark.cpu_only


def block():
    return adl.SeparableConv2d(4, 6, 3, padding=1, dw_norm=True, norm=True, dw_activation="relu")


def chain():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    return nn.Sequential(
        conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU6()
    )


def fused(model):
    report = adl.convert(model, fuse="inference")
    assert len(report.fused) == 1
    return model


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
# What runs, its parts by name, and the same with each module called.
MODELS = {
    "SeparableConv2d": (
        block,
        {"dw": "depthwise", "dn": "dw_norm", "pw": "pointwise", "n": "norm"},
    ),
    "convert": (chain, {"dw": "0", "dn": "1", "act": "2", "pw": "3", "n": "4", "last": "5"}),
}


@pytest.fixture(params=MODELS)
def model(request):
    """In eval, and having run as one op."""
    make, parts = MODELS[request.param]
    found = trained(make(), X)
    found = fused(found) if request.param == "convert" else found
    found.parts = parts
    with torch.no_grad():
        found(X)
        assert ops_in(lambda: found(X)) == ["separable_conv"]
    return found


def one_by_one(model, x=X):
    """By the modules' calls."""
    modules = list(model.children())
    if isinstance(model, adl.SeparableConv2d):
        modules.insert(2, nn.ReLU())
    for module in modules:
        x = module(x)
    return x


def same(model):
    with torch.no_grad():
        found, expected = model(X), one_by_one(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# What is put in the place of a module, or onto it.


class Adapter(nn.Module):
    """As LoRA's wrappers: says its weights are those below, and adds to what these compute."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.up = nn.Conv2d(base.in_channels, base.out_channels, 1, bias=False)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x):
        return self.base(x) + self.up(x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Quantized(nn.Conv2d):
    """Of a class that overrides what forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight * 8).round() / 8, bias)


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return torch.tanh(super().forward(x))


def becomes(cls):
    def change(model, part):
        model.get_submodule(model.parts[part]).__class__ = cls

    return change


def wrap(model, part):
    name = model.parts[part]
    setattr(model, name, Adapter(getattr(model, name)))


def patch(method):
    def change(model, part):
        module = model.get_submodule(model.parts[part])
        honest = getattr(module, method)
        setattr(module, method, lambda *args, **more: honest(*args, **more) + 1)

    return change


def hook(model, part):
    module = model.get_submodule(model.parts[part])
    module.register_forward_hook(lambda module, args, result: result * 2)


def pre_hook(model, part):
    module = model.get_submodule(model.parts[part])
    module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def in_training(model, part):
    model.get_submodule(model.parts[part]).train()


def dropout_stays_on(model, part):
    name = model.parts[part]
    setattr(model, name, nn.Sequential(getattr(model, name), nn.Dropout(0.5).train()))


def other_kernel(model, part):
    """A weight of another size, with which torch's forward does well."""
    conv = model.get_submodule(model.parts[part])
    conv.weight = nn.Parameter(torch.randn(*conv.weight.shape[:2], 3, 3))


CHANGES = {
    "other-kernel": (other_kernel, "pw"),
    "patched-conv-forward-dw": (patch("_conv_forward"), "dw"),
    "adapter-dw": (wrap, "dw"),
    "adapter-pw": (wrap, "pw"),
    "standardised-dw": (becomes(Standardised), "dw"),
    "standardised-pw": (becomes(Standardised), "pw"),
    "quantized-pw": (becomes(Quantized), "pw"),
    "norm-and-activation": (becomes(NormAct), "dn"),
    "norm-and-activation-last": (becomes(NormAct), "n"),
    "patched-forward": (patch("forward"), "dw"),
    "patched-forward-norm": (patch("forward"), "n"),
    "patched-conv-forward": (patch("_conv_forward"), "pw"),
    "hook": (hook, "dn"),
    "pre-hook": (pre_hook, "pw"),
    "parametrized": (
        lambda m, part: nn.utils.parametrizations.weight_norm(m.get_submodule(m.parts[part])),
        "pw",
    ),
    "weight-norm": (
        lambda m, part: nn.utils.parametrizations.spectral_norm(m.get_submodule(m.parts[part])),
        "dw",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_put_into_a_block_runs(model, change):
    how, part = CHANGES[change]
    with torch.no_grad():
        before = model(X)
        torch.manual_seed(1)
        how(model, part)
        after = model(X)
    same(model)
    if change not in ("parametrized", "weight-norm"):
        assert before.shape != after.shape or not torch.allclose(before, after, 1e-3, 1e-3)


PATCHES = [
    (nn.Module, "_call_impl"),
    (nn.Conv2d, "__call__"),
    (nn.BatchNorm2d, "forward"),
    (F, "conv2d"),
    (F, "batch_norm"),
]


@pytest.mark.parametrize("owner, name", PATCHES, ids=lambda v: getattr(v, "__name__", v))
def test_what_others_put_into_torch_runs(model, monkeypatch, owner, name):
    honest, seen = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *a, **k: seen.append(1) or honest(*a, **k), False)
    with torch.no_grad():
        model(X)
    assert len(seen) > (owner is nn.Module)  # beside the call of the model


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2


class Calls(nn.Sequential):
    def _call_impl(self, x):
        return super()._call_impl(x) * 2


@pytest.mark.parametrize("cls", [Called, Calls])
def test_sequentials_that_are_called_in_their_own_way_are(cls):
    model = trained(nn.Sequential(cls(*chain()), nn.Identity()), X)
    with torch.no_grad():
        expected = model(X)
        adl.convert(model, fuse="inference")
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


ATTRIBUTES = {
    "eps": ("dn", "eps", 3.0),
    "stride": ("dw", "stride", (2, 2)),
    "padding": ("dw", "padding", (0, 0)),
    "dilation": ("dw", "dilation", (2, 2)),
    "stride-of-all": ("dw", "stride", 2),
    "padding-of-all": ("dw", "padding", 0),
    "dilation-of-all": ("dw", "dilation", [2, 2]),
    "stride-of-1x1": ("pw", "stride", 2),
    "padding-of-1x1": ("pw", "padding", 1),
    "no-statistics": ("n", "running_mean", None),
    "no-weight": ("n", "weight", None),
    "no-bias": ("pw", "bias", None),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_count_at_every_call(model, name):
    part, attribute, value = ATTRIBUTES[name]
    module = model.get_submodule(model.parts[part])
    setattr(module, attribute, value)
    if name == "no-statistics":
        module.running_var = None
    same(model)


def test_bounds_of_an_activation_count():
    model = fused(trained(chain(), X))
    model[5].max_val = 0.5
    same(model)
    with torch.no_grad():
        assert model(X).max() == 0.5


def test_hooks_on_all_modules_run(model):
    seen = []
    with torch.no_grad():
        with nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m))):
            model(X)
        assert nn.BatchNorm2d in seen
        assert ops_in(lambda: model(X)) == ["separable_conv"]


def test_dropout_left_in_training_draws(model):
    with torch.no_grad():
        in_training(model, "n")
        before = model(X)
        model.get_submodule(model.parts["n"]).eval()
        assert not torch.allclose(before, model(X))
    mask = nn.Sequential(*chain()[:3], nn.Dropout(0.5), *chain()[3:]).eval()
    adl.convert(mask, fuse="inference")
    mask[3].train()
    with torch.no_grad():
        assert not torch.equal(mask(X), mask(X))


def test_function_modes_see_torchs_functions(model):
    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    with torch.no_grad(), Count():
        model(X)
    assert torch.nn.functional.batch_norm in seen


def test_offloaded_weights():
    """As accelerate does it: meta until a module is called, and after it."""

    def offload(module):
        kept = {name: t.data for name, t in module.named_parameters(recurse=False)}
        kept |= dict(module.named_buffers(recurse=False))
        owners = [
            (module._parameters if n in module._parameters else module._buffers, n) for n in kept
        ]

        def move(back):
            for owner, name in owners:
                t = kept[name] if back else kept[name].to("meta")
                owner[name] = nn.Parameter(t) if owner is module._parameters else t

        forward = module.forward

        def patched(*args):
            move(True)
            y = forward(*args)
            move(False)
            return y

        module.forward = patched
        move(False)

    for name, (make, _) in MODELS.items():
        model = trained(make(), X)
        with torch.no_grad():
            expected = model(X)
            model = fused(model) if name == "convert" else model
            for module in model.children():
                offload(module)
            torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)


# Weights that change without torch's knowledge.


def by_data(t):
    t.data.copy_(t.data + 1)


def by_numpy(t):
    t.detach().numpy()[...] += 1


def by_dlpack(t):
    from_dlpack(to_dlpack(t.detach())).add_(1)


def by_set(t):
    t.data = t.data + 1


def by_storage(t):
    t.untyped_storage().copy_((t.detach() + 1).contiguous().untyped_storage())


def by_swap(t):
    t.data[[0, 1]] = t.data[[1, 0]]


def by_vector(t):
    nn.utils.vector_to_parameters(t.detach().reshape(-1) + 1, [t])


WAYS = [by_data, by_numpy, by_dlpack, by_set, by_storage, by_swap, by_vector]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("inference", [False, True])
def test_weights_are_those_of_now(model, way, inference):
    names = [f"{model.parts[p]}.{t}" for p in ("dw", "pw") for t in ("weight", "bias")]
    names += [
        f"{model.parts[p]}.{t}"
        for p in ("dn", "n")
        for t in ("weight", "bias", "running_mean", "running_var")
    ]
    with torch.inference_mode() if inference else torch.no_grad():
        for name in names:
            before = model(X)
            owner, _, tensor = name.rpartition(".")
            way(getattr(model.get_submodule(owner), tensor))
            after = model(X)
            torch.testing.assert_close(after, one_by_one(model), rtol=1e-4, atol=1e-4)
            assert not torch.equal(before, after), name


def test_weights_are_folded_once(model, monkeypatch):
    calls = []
    honest = adl.depthwise.fold._fold
    monkeypatch.setattr(adl.depthwise.fold, "_fold", lambda c: calls.append(1) or honest(c))
    with torch.no_grad():
        model(X)
        assert not calls
        by_data(model.get_submodule(model.parts["n"]).running_mean)
        model(X)
        model(X)
    assert len(calls) == 1


def test_weights_are_not_kept_from_within_a_mode(model):
    """Not those that torch makes there: fake ones, or other numbers."""

    class Halves(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            return y / 2 if func is torch.ops.aten.mul.Tensor else y

    for mode in (FakeTensorMode(allow_non_fake_inputs=True), Halves()):
        with torch.no_grad():
            by_data(model.get_submodule(model.parts["n"]).running_mean)
            with mode:
                model(X)
            assert type(model(X)) is torch.Tensor
        same(model)


@pytest.mark.parametrize("back", [False, True])
def test_weights_that_are_written_while_they_are_folded(model, monkeypatch, back):
    """By another thread, which may even put back what there was."""
    weight = model.get_submodule(model.parts["pw"]).weight.data
    honest, first = adl.depthwise.fold._folded, weight.clone()

    def written(*args):
        weight.copy_(first * 3)
        found = honest(*args)
        if back:
            weight.copy_(first)
        return found

    by_data(model.get_submodule(model.parts["n"]).running_mean)
    monkeypatch.setattr(adl.depthwise.fold, "_folded", written)
    with torch.no_grad():
        model(X)
    monkeypatch.undo()
    same(model)


def test_gradients_hold_no_folded_weights(model):
    """What is kept in inference mode serves other modes too."""
    with torch.inference_mode():
        model(X)
    with torch.no_grad():
        expected = one_by_one(model)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and all(p.grad is not None for p in model.parameters())


def test_a_network_in_shared_memory_sees_another_process(model):
    context = torch.multiprocessing.get_context("fork")
    model.share_memory()
    with torch.no_grad():
        model(X)

        def learn():
            torch.set_num_threads(1)
            for p in model.parameters():
                p.data.fill_(0.25)

        process = context.Process(target=learn)
        process.start()
        process.join()
    same(model)


# Models that a trace would have frozen.


class Switches(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.scale, self.calls = chain(), 1.0, 0
        self.cache = None

    def forward(self, x, mask=None, early=False):
        self.calls += 1
        y = self.body(x) * self.scale
        if early:
            return y
        noise = torch.randn(y.shape)
        if mask is None:
            y = y + noise
        else:
            y = y * mask
        self.cache = y if self.cache is None else self.cache + y
        return self.cache


def test_forwards_run_as_python_says():
    model = trained(Switches(), X)
    model.calls, model.cache = 0, None
    other = copy.deepcopy(model)
    adl.convert(model, fuse="inference")
    with torch.no_grad():
        for k in range(3):
            for m in (model, other):
                m.scale = float(k + 1)
            for call in ({}, {"mask": torch.tensor(0.5)}, {"early": True}):
                results = []
                for m in (model, other):
                    torch.manual_seed(k)
                    results.append(m(X, **call))
                torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert model.calls == other.calls == 9
    assert all(not isinstance(v, torch.fx.Proxy) for v in vars(model).values())
