"""convert(model) puts this package's layers where torch.nn's stood, revert(model) undoes it."""

from __future__ import annotations

import abc
import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._devices import DEVICES, DTYPES
from .depthwise.fuse import fuse as fuse_chains
from .depthwise.fuse import unfuse
from .depthwise.layers import Depthwise, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from .recurrent.base import Recurrent
from .recurrent.cells import GRUCell, LSTMCell, RNNCell
from .recurrent.layers import GRU, LSTM, RNN

Class = type[nn.Module]

OURS: dict[Class, Class] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
    nn.Conv1d: DepthwiseConv1d,
    nn.Conv2d: DepthwiseConv2d,
    nn.Conv3d: DepthwiseConv3d,
}
KNOWN = (nn.RNNBase, nn.RNNCellBase, nn.modules.conv._ConvNd)
TORCHS = {ours: torchs for torchs, ours in OURS.items()}

# What a subclass may define without a call computing something else.
METHODS = {"__init__", "__repr__", "extra_repr", "reset_parameters"}
HARMLESS = METHODS | {"__doc__", "__module__"}
HARMLESS |= {"__qualname__", "__annotations__", "__annotate_func__", "__annotations_cache__"}
HARMLESS |= {"__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__"}
HARMLESS |= {"__abstractmethods__", "_abc_impl", "__dict__", "__weakref__", "__slots__"}


@dataclass
class Report:
    """What convert or revert did, module by module. Prints as a table."""

    replaced: list[tuple[str, str, str]] = field(default_factory=list)  # path, before, after
    left: list[tuple[str, str, str]] = field(default_factory=list)  # path, class, why
    # Path of the depthwise convolution, what is one operator with it, when.
    fused: list[tuple[str, str, str]] = field(default_factory=list)
    # Of depthwise convolutions that `fuse` left alone: path and why.
    not_fused: list[tuple[str, str]] = field(default_factory=list)
    # What runs for a replaced module, by its path.
    kernels: dict[str, str] = field(default_factory=dict)
    # Paths of replaced modules that the model did not call on the examples of `verify`.
    uncalled: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(path, old, f"-> {new}{self._kernel(path)}") for path, old, new in self.replaced]
        rows += [(path, cls, f"left: {why}") for path, cls, why in self.left]
        rows += [(path, what, f"fused: {when}") for path, what, when in self.fused]
        rows += [(path, "depthwise", f"not fused: {why}") for path, why in self.not_fused]
        if not rows:
            return "nothing to convert found"
        header = ("module", "class", "result")
        widths = [max(len(row[k]) for row in [header, *rows]) for k in range(2)]
        lines = [
            f"{path:<{widths[0]}}  {cls:<{widths[1]}}  {result}"
            for path, cls, result in [header, *rows]
        ]
        counts = f"{len(self.replaced)} replaced, {len(self.left)} left"
        counts += f", {len(self.fused)} fused" if self.fused else ""
        counts += f", {len(self.uncalled)} not called" if self.uncalled else ""
        return "\n".join([*lines, counts])

    def _kernel(self, path: str) -> str:
        kernel = f": {self.kernels[path]}" if path in self.kernels else ""
        unused = "; not called on the example: the model may read its weights or call its forward"
        return kernel + (unused if path in self.uncalled else "")


def convert(
    model: nn.Module,
    *,
    fuse: str = "none",
    keep: Iterable[str | Class] = (),
    verify: Any = None,
    verify_training: bool = False,
) -> Report:
    """Replaces supported torch.nn layers in `model`, in place.

    These are recurrent layers and cells, and convolutions of each channel by itself (``groups`` as
    many as ``in_channels``); of torch.nn's classes, or of subclasses that change nothing but how
    they are made.

    Each module stays the same object with another class: its parameters, hooks, training flag,
    device, and whatever else refers to it go on working, such as an optimizer made before.

    Args:
        model: any module; may itself be such a layer.
        fuse: "inference" also makes one operator of each depthwise convolution and the 1x1
            convolution after it in an ``nn.Sequential``, with the batch norms and activations
            after each, for eval without gradients. The model must be in eval. Its submodules and
            state_dict stay as they are, and in training it runs as before.
        keep: what to leave alone: paths (with all that lies below them) and classes. For code
            that asks for a class of torch's by name, such as ``isinstance(m, nn.LSTM)``.
        verify: an example input: a tensor, or a tuple of arguments; or a list of such examples,
            of other sizes for instance. Copies of the model run on each before and after, in eval
            without gradients. Where they differ by more than rounding (whole numbers: at all), or
            one raises, the model is left as it was. Nothing but the copies runs, with their hooks;
            what these write outside of the model, or its forward does, stays.
        verify_training: whether to compare outputs and gradients in training mode too.

    Returns:
        A report that prints as a table: what was replaced, what was left and why; with `verify`,
        also what the model never called.

    Raises:
        RuntimeError: the outputs or gradients differ on `verify`, or hold nothing to compare, or
            the model cannot be copied; the model is as before.
        ValueError: `fuse` is neither "none" nor "inference", the model is in training, or `keep`
            names no module.

    Equivalent to:
        replacing ``nn.LSTM(...)`` by ``adl_kernels.LSTM(...)`` and loading the same state_dict.
    """
    if fuse not in ("none", "inference"):
        raise ValueError(f"convert: fuse must be 'none' or 'inference', got {fuse!r}")
    if fuse == "inference" and model.training:
        raise ValueError("convert: fuse='inference' needs a model in eval; call model.eval() first")
    kept = _kept(model, keep)
    called: set[str] = set()
    if verify is not None:
        examples = verify if isinstance(verify, list) else [verify]
        for training in (False, True) if verify_training else (False,):
            with torch.inference_mode(False):
                called |= _verify(model, lambda m: _convert(m, fuse, kept), examples, training)
    report = _convert(model, fuse, kept)
    if verify is not None:
        report.uncalled = [path for path, *_ in report.replaced if path not in called]
    return report


def revert(model: nn.Module) -> Report:
    """Gives every layer that `convert` or a constructor made ours its class of torch.nn back.

    For what knows torch.nn's own classes only: quantization, ONNX export, TorchScript.
    """
    blocks = unfuse(model)
    report = _swap(model, _torchs)
    report.fused = [(path or "(model)", "block", "no longer") for path in blocks]
    return report


def _convert(model: nn.Module, fuse: str, kept: set[str]) -> Report:
    report = _swap(model, _ours, kept)
    if fuse == "inference":
        fused, report.not_fused = fuse_chains(model, kept)
        when = "one separable_conv op in eval without gradients"
        report.fused = [(*row, when) for row in fused]
    return report


def _kept(model: nn.Module, keep: Iterable[str | Class]) -> set[str]:
    """Paths of the modules that `keep` names."""
    given = [keep] if isinstance(keep, (str, type)) else list(keep)
    modules = dict(model.named_modules(remove_duplicate=False))
    for what in given:
        if not isinstance(what, (str, type)):
            raise ValueError(f"convert: keep takes paths and classes, got {what!r}")
        if isinstance(what, str) and what not in modules:
            raise ValueError(f"convert: keep names {what!r}, but the model has no such module")
    classes = tuple(what for what in given if isinstance(what, type))
    tops = [m for path, m in modules.items() if path in given or isinstance(m, classes)]
    ids = {id(m) for top in tops for m in top.modules()}
    return {path for path, module in modules.items() if id(module) in ids}


New = tuple[Class | None, str]  # a class to take, or why there is none; neither: not asked about


def _swap(
    model: nn.Module, new_class: Callable[[nn.Module, Class], New], kept: Iterable[str] = ()
) -> Report:
    report = Report()
    for path, module in model.named_modules():
        if path in kept:
            continue
        # Parametrized modules are of a class of their own, made from the one below.
        parametrized = nn.utils.parametrize.is_parametrized(module)
        cls = type(module).__mro__[1] if parametrized else type(module)
        new, why = new_class(module, cls)
        row = path or "(model)", _name(cls)
        if why:
            report.left.append((*row, why))
        if new is None:
            continue
        if isinstance(module, Recurrent):
            module.unfreeze()  # a layer of torch's would not end the promise
        name = type(module).__name__
        module.__class__ = type(name, (new,), _namespace(type(module))) if parametrized else new
        report.replaced.append((*row, _name(new)))
        if isinstance(module, Depthwise):
            report.kernels[row[0]] = _kernel(module)
    return report


def _torchs(module: nn.Module, cls: Class) -> New:
    """The class of torch.nn for one of ours."""
    if not isinstance(module, tuple(TORCHS)):
        return None, ""
    extras = module._beyond_torch() if isinstance(module, (Recurrent, Depthwise)) else ()
    if extras:
        return None, f"torch.nn has no {', '.join(extras)}"
    if issubclass(cls, Combined):
        return cls._adl_parts[1], ""
    return TORCHS.get(cls), "" if cls in TORCHS else "a subclass may compute something else"


def _ours(module: nn.Module, cls: Class) -> New:
    """Our class for one of torch.nn."""
    if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "hidden_size"):
        return None, "TorchScript is compiled already"
    if not isinstance(module, KNOWN) or isinstance(module, tuple(TORCHS)):
        return None, ""
    if isinstance(module, nn.modules.conv._ConvNd) and not _is_depthwise(module):
        return None, ""
    base = next((c for c in cls.__mro__ if c in OURS), None)
    if base is None:
        return None, "its class is not made from one of torch.nn's layers"
    ours = OURS[base]
    if type(cls) not in (type, abc.ABCMeta):
        return None, "its class is made by a metaclass"
    changes = _changes(module, cls, base, ours)
    if changes:
        return None, f"has its own {changes}; convert it by hand if it computes the same"
    return ours if cls is base else _combined(ours, cls), ""


def _changes(module: nn.Module, cls: Class, base: Class, ours: Class) -> str:
    """What a call may run or read that is not as in `base`, by name."""
    own: set[str] = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    defined = {n for c in cls.__mro__[: cls.__mro__.index(base)] for n in vars(c)} - HARMLESS
    found = defined & (own | set(dir(base)))
    found |= {name for name in own if callable(getattr(base, name, None))}
    # What only ours has: options that may be set to what they are there, methods of other meanings.
    new = set(dir(ours)) - set(dir(base))
    mixed = {n for c in cls.__mro__ if c not in base.__mro__ for n in vars(c)}
    for name in (own | mixed) & new:
        theirs, usual = getattr(module, name), getattr(ours, name)
        if type(theirs) is not type(usual) or theirs != usual:
            found.add(name)
    return ", ".join(sorted(found))


class Combined:
    """What a class made of ours and a subclass of torch.nn's has beside both."""

    _adl_parts: tuple[Class, Class]

    def __reduce_ex__(self, protocol: Any) -> Any:
        getstate = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        return _restore, self._adl_parts, getstate() if getstate else dict(vars(self))


_made: dict[tuple[Class, Class], Class] = {}


def _combined(ours: Class, theirs: Class) -> Class:
    parts = ours, theirs
    if parts not in _made:
        names: dict[str, Any] = {"_adl_parts": parts, "__module__": theirs.__module__}
        names["__qualname__"] = theirs.__qualname__
        # What theirs may change comes before what ours has.
        names |= {name: getattr(theirs, name) for name in METHODS}
        _made[parts] = type(theirs.__name__, (Combined, *parts), names)
    return _made[parts]


def _restore(ours: Class, theirs: Class) -> nn.Module:
    cls = _combined(ours, theirs)
    return cls.__new__(cls)


def _is_depthwise(conv: Any) -> bool:
    return conv.groups == conv.in_channels > 1 and not conv.transposed


def _kernel(conv: Depthwise) -> str:
    """What runs in a convolution, and why that."""
    if conv.weight.dtype not in DTYPES or conv.weight.device.type not in DEVICES:
        return f"torch's, as there is none for {conv.weight.dtype} on {conv.weight.device.type}"
    how = "x".join(map(str, conv.kernel_size)) + " depthwise kernel"
    how += f" on {conv.weight.device.type}"
    if conv.padding_mode != "zeros":
        how += f", after torch pads ({conv.padding_mode})"
    if conv.weight.device.type == "cpu" and conv.weight[0, 0].numel() <= 49:
        how += "; torch's kernel where it is faster"
    return how


def _namespace(cls: type) -> dict[str, Any]:
    return {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}


def _name(cls: type) -> str:
    cls = cls._adl_parts[0] if issubclass(cls, Combined) else cls
    module = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{module}.{cls.__qualname__}"


def _verify(
    model: nn.Module, change: Callable[[nn.Module], Any], examples: list[Any], training: bool
) -> set[str]:
    """Compares copies of the model before and after `change`; paths of the modules that ran.

    The model itself is never called: its buffers, gradients, caches and the random numbers that
    come next are as they were.
    """
    called: set[str] = set()
    before = _copy(model)
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path or "(model)"))
        for path, module in before.named_modules()
    ]
    expected = [_run(before, example, training) for example in examples]
    for handle in handles:
        handle.remove()
    after = _copy(model)
    change(after)
    for k, example in enumerate(examples):
        try:
            got = _run(after, example, training)
        except Exception as error:
            raise RuntimeError(
                f"convert: the converted model raises {type(error).__name__}: {error}; the model "
                "is as before"
            ) from error
        problem = _difference(expected[k], got)
        if problem:
            where = f"example {k}, " * (len(examples) > 1) + "in training, " * training
            raise RuntimeError(f"convert: {where}{problem}; the model is as before")
    return called


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RuntimeError(
            f"convert: verify runs copies of the model, but copy.deepcopy raises "
            f"{type(error).__name__}: {error}; the model is as before"
        ) from error


def _run(model: nn.Module, example: Any, training: bool) -> dict[str, Tensor]:
    """Outputs, and in training mode the gradients of all that has one, by name."""
    args = example if type(example) is tuple else (example,)  # a PackedSequence is one argument
    leaves, spec = pytree.tree_flatten(args)
    leaves = [t.detach().clone() if isinstance(t, Tensor) else t for t in leaves]
    floats = [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
    devices = {t.device for t in (*model.parameters(), *floats) if t.device.type == "cuda"}
    model.train(training)
    forked = torch.random.fork_rng(devices=devices)
    with forked, _others_random_numbers(), torch.set_grad_enabled(training):
        torch.manual_seed(0)
        for t in floats if training else ():
            t.requires_grad_()
        given = [t.clone() if isinstance(t, Tensor) else t for t in leaves]  # may be written to
        result = model(*pytree.tree_unflatten(given, spec))
        outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        found = {f"output {k}": t.detach() for k, t in enumerate(outputs)}
        of = {f"input {k}": t for k, t in enumerate(floats)} | dict(model.named_parameters())
        of = {name: t for name, t in of.items() if t.requires_grad}
        sums = [t.double().square().sum() for t in outputs if t.requires_grad]
        if training and of and sums:
            loss = torch.stack([s.to(sums[0].device) for s in sums]).sum()
            grads = torch.autograd.grad(loss, list(of.values()), allow_unused=True)
            pairs = zip(of, grads, strict=True)
            found |= {f"the gradient of {name}": g for name, g in pairs if g is not None}
    return found


@contextlib.contextmanager
def _others_random_numbers() -> Iterator[None]:
    """Those of Python and NumPy from one seed, and afterwards as they were."""
    numpy = sys.modules.get("numpy")
    state, numpys = random.getstate(), numpy and numpy.random.get_state()
    random.seed(0)
    if numpy:
        numpy.random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpys)


def _difference(before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    """Says where two results differ by more than rounding, or None."""
    if before.keys() != after.keys():
        return f"there are {', '.join(before)}, and then {', '.join(after)}"
    if not before:
        return "there is no tensor among the outputs that could be compared"
    # A gradient may be nothing but the rounding of others, as that of a bias before a batch norm.
    gradients = [_largest(t) for name, t in before.items() if "gradient" in name]
    floor = max(gradients, default=0.0)
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{name} was {list(old.shape)} {old.dtype} and is {list(new.shape)} {new.dtype}"
        wide = torch.complex128 if old.is_complex() else torch.float64
        a, b = old.to(wide), new.to(wide)
        same = (a == b) | (a.isnan() & b.isnan())  # infinities too
        difference = (a - b)[~same].abs()
        # A few hundred roundings of the largest number, and no more than some percent of it.
        bound = 0.0
        if old.is_floating_point() or old.is_complex():
            share = min(512 * torch.finfo(old.dtype).eps, 1 / 16)
            bound = share * max(_largest(old), floor if "gradient" in name else 0.0)
        if not (difference <= bound).all():
            return f"{name} differs by {difference.max().item():.2e}, more than {bound:.2e}"
    return None


def _largest(t: Tensor) -> float:
    """Of the finite numbers, the largest."""
    finite = t[t.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0
