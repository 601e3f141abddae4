"""convert(model) puts this package's layers where torch.nn's stood, revert(model) undoes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._devices import DEVICES, DTYPES
from .depthwise.fuse import fuse as fuse_chains
from .depthwise.fuse import unfuse
from .depthwise.layers import Depthwise, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d
from .recurrent.base import Recurrent
from .recurrent.cells import GRUCell, LSTMCell, RNNCell
from .recurrent.layers import GRU, LSTM, RNN

OURS: dict[type[nn.Module], type[nn.Module]] = {
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
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TORCHS = {ours: torchs for torchs, ours in OURS.items()}


@dataclass
class Report:
    """What convert or revert did, module by module. Prints as a table."""

    replaced: list[tuple[str, str, str]] = field(default_factory=list)  # path, before, after
    left: list[tuple[str, str, str]] = field(default_factory=list)  # path, class, why
    # Path of the depthwise convolution, what is one operator with it, when.
    fused: list[tuple[str, str, str]] = field(default_factory=list)
    # What runs for a replaced module, by its path.
    kernels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [(path, old, f"-> {new}{self._kernel(path)}") for path, old, new in self.replaced]
        rows += [(path, cls, f"left: {why}") for path, cls, why in self.left]
        rows += [(path, what, f"fused: {when}") for path, what, when in self.fused]
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
        return "\n".join([*lines, counts])

    def _kernel(self, path: str) -> str:
        return f": {self.kernels[path]}" if path in self.kernels else ""


def convert(model: nn.Module, *, fuse: str = "none", verify: Any = None) -> Report:
    """Replaces supported torch.nn layers in `model`, in place.

    These are recurrent layers and cells, and convolutions of each channel by itself (``groups`` as
    many as ``in_channels``).

    Each module stays the same object with another class: its parameters, hooks, training flag,
    device, and whatever else refers to it go on working, such as an optimizer made before.

    Args:
        model: any module; may itself be such a layer.
        fuse: "inference" also makes one operator of each depthwise convolution and the 1x1
            convolution after it, with the batch norms, activations and addition around them, for
            eval without gradients. The model must be in eval. Its submodules and state_dict stay as
            they are, and in training it runs as before.
        verify: an example input (a tensor, or a tuple of arguments) on which the model is run
            before and after, in eval mode without gradients. Where the outputs differ by more
            than rounding, everything is undone.

    Returns:
        A report that prints as a table: what was replaced, what was left and why.

    Raises:
        RuntimeError: the outputs differ on `verify`; the model is as before.
        ValueError: `fuse` is neither "none" nor "inference", or the model is in training.

    Equivalent to:
        replacing ``nn.LSTM(...)`` by ``adl_kernels.LSTM(...)`` and loading the same state_dict.
    """
    if fuse not in ("none", "inference"):
        raise ValueError(f"convert: fuse must be 'none' or 'inference', got {fuse!r}")
    if fuse == "inference" and model.training:
        raise ValueError("convert: fuse='inference' needs a model in eval; call model.eval() first")
    before = None if verify is None else _run(model, verify)
    report = _swap(model, OURS)
    if fuse == "inference":
        report.fused = fuse_chains(model)
    if verify is not None:
        problem = _difference(before, _run(model, verify))
        if problem:
            revert(model)
            raise RuntimeError(f"convert: {problem}; all layers are torch.nn's again")
    return report


def revert(model: nn.Module) -> Report:
    """Gives every layer that `convert` or a constructor made ours its class of torch.nn back.

    For what knows torch.nn's own classes only: quantization, ONNX export, TorchScript.
    """
    blocks = unfuse(model)
    report = _swap(model, TORCHS)
    report.fused = [(path or "(model)", "block", "no longer") for path in blocks]
    return report


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> Report:
    report = Report()
    for path, module in model.named_modules():
        cls = type(module)
        parametrized = nn.utils.parametrize.is_parametrized(module)
        original = cls.__mro__[1] if parametrized else cls
        beyond = isinstance(module, (Recurrent, Depthwise))
        extras = module._beyond_torch() if beyond else {}
        if isinstance(module, nn.modules.conv._ConvNd) and not _is_depthwise(module):
            continue
        if extras and (original in classes or (classes is TORCHS and original not in OURS)):
            why = f"torch.nn has no {', '.join(extras)}"
            report.left.append((path or "(model)", _name(original), why))
        elif original in classes:
            new = classes[original]
            if isinstance(module, Recurrent):
                module.unfreeze()  # a layer of torch's would not end the promise
            # Parametrized modules are of a class of their own, made from the one below.
            module.__class__ = type(cls.__name__, (new,), _namespace(cls)) if parametrized else new
            report.replaced.append((path or "(model)", _name(original), _name(new)))
            if classes is OURS and isinstance(module, Depthwise):
                report.kernels[path or "(model)"] = _kernel(module)
        elif isinstance(module, KNOWN) and not _is_ours(module, original, classes):
            why = "a subclass may compute something else; convert it by hand if it does not"
            report.left.append((path or "(model)", _name(original), why))
        elif isinstance(module, torch.jit.ScriptModule) and hasattr(module, "hidden_size"):
            report.left.append(
                (path or "(model)", _name(original), "TorchScript is compiled already")
            )
    return report


def _is_depthwise(conv: Any) -> bool:
    return conv.groups == conv.in_channels > 1 and not conv.transposed


def _is_ours(module: nn.Module, cls: type, classes: dict[type[nn.Module], type[nn.Module]]) -> bool:
    return cls in classes.values() or (classes is OURS and isinstance(module, Depthwise))


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
    module = "torch.nn" if cls.__module__.startswith("torch.nn.") else cls.__module__.split(".")[0]
    return f"{module}.{cls.__qualname__}"


def _run(model: nn.Module, example: Any) -> list[Tensor]:
    args = example if isinstance(example, tuple) else (example,)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            leaves, _ = torch.utils._pytree.tree_flatten(model(*args))
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    finally:
        for module, training in modes:
            module.training = training


def _difference(before: list[Tensor] | None, after: list[Tensor]) -> str | None:
    """Says where two lists of outputs differ by more than rounding, or None."""
    for k, (old, new) in enumerate(zip(before or [], after, strict=True)):
        if old.shape != new.shape or old.dtype != new.dtype:
            return (
                f"output {k} was {list(old.shape)} {old.dtype} and is {list(new.shape)} {new.dtype}"
            )
        if not old.is_floating_point():
            continue
        # A few hundred roundings of the dtype, relative to the largest output.
        bound = (
            512
            * torch.finfo(old.dtype).eps
            * max(1.0, old.abs().max().item() if old.numel() else 0.0)
        )
        difference = (old.double() - new.double()).abs().max().item() if old.numel() else 0.0
        if not difference <= bound:
            return f"output {k} differs by {difference:.2e}, more than {bound:.2e}"
    return None
