"""Finds depthwise-separable chains in an nn.Sequential, and runs each as one operator in eval.

A chain is dw -[BN]-[activation]- 1x1 -[BN]-[activation]. What an nn.Sequential does is known from
its modules alone, at every call: nothing is traced, and whatever is exchanged, patched or hooked
runs as it would.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from .fold import (
    ACTIVATIONS,
    NORMS,
    NOTHING_IN_EVAL,
    Chain,
    Folder,
    is_depthwise,
    is_known,
    is_one_op,
    is_plain,
    is_pointwise,
    is_untouched,
)


class FusedSequential(nn.Sequential):
    """An nn.Sequential that runs each chain of its modules as one operator where that is the same.

    That is in eval without gradients, for modules of torch's and this package's own classes.

    Equivalent to:
        ``torch.nn.Sequential`` with the same modules.
    """

    def forward(self, input: Any) -> Any:
        if self.training or torch.compiler.is_compiling():
            return super().forward(input)
        folders: dict[int, Folder] = self.__dict__.setdefault("_folders", {})
        modules = flattened(self)
        k = 0
        while k < len(modules):
            found = chain_at(modules, k)
            if found is not None and is_one_op(found.chain, input):
                folder = folders.setdefault(k, Folder())
                input, k = folder.run("convert", found.chain, input), found.end
            else:
                input, k = modules[k](input), k + 1
        return input


class Found(NamedTuple):
    """A chain in a list of modules, and the place after it."""

    chain: Chain
    end: int


def chain_at(modules: list[nn.Module], k: int) -> Found | None:
    """The chain that begins at modules[k], if one does."""
    if not is_depthwise(modules[k]):
        return None
    depthwise: Any = modules[k]
    dw_norm, dw_activation, k = _norm_and_activation(modules, k + 1)
    if k == len(modules) or not is_pointwise(modules[k], len(depthwise.kernel_size)):
        return None
    pointwise = modules[k]
    norm, activation, k = _norm_and_activation(modules, k + 1)
    return Found(Chain(depthwise, dw_norm, dw_activation, pointwise, norm, activation), k)


def _norm_and_activation(modules: list[nn.Module], k: int) -> tuple[Any, str, int]:
    """What of both lies at modules[k] and after it, and the place after them."""
    norm, activation = None, "none"
    for module in modules[k:]:
        cls = type(module)
        if cls in NORMS and norm is None and activation == "none":
            if module._buffers.get("running_mean") is None:
                break
            norm = module
        elif cls in ACTIVATIONS and activation == "none" and is_plain(module):
            if _is_changed(module):
                break
            activation = ACTIVATIONS[cls]
        elif cls not in NOTHING_IN_EVAL or module.training or not is_plain(module):
            break
        k += 1
    return norm, activation, k


def _is_changed(activation: Any) -> bool:
    """Whether an nn.ReLU6 has other bounds by now."""
    return isinstance(activation, nn.ReLU6) and (activation.min_val, activation.max_val) != (0, 6)


def flattened(sequential: Any) -> list[nn.Module]:
    """Its modules in the order in which they run, with those of each nn.Sequential inside."""
    modules: list[nn.Module] = []
    for module in sequential:
        modules += flattened(module) if _runs_in_order(module) else [module]
    return modules


def _runs_in_order(module: Any) -> bool:
    orders = (nn.Sequential.forward, FusedSequential.forward)
    if not isinstance(module, nn.Sequential) or not is_untouched(module):
        return False
    cls = type(module)
    names = ("__iter__", "__call__", "_call_impl")
    is_torchs = all(getattr(cls, name) is getattr(nn.Sequential, name) for name in names)
    return is_torchs and cls.forward in orders


def fuse(
    model: nn.Module, kept: Iterable[str] = ()
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Makes each nn.Sequential of `model` with a chain a FusedSequential.

    Not where a module of a chain is one of those to be kept, at these paths.

    Returns:
        Paths of depthwise convolutions: with the chain of each, and of the others with what
        stands against one.
    """
    fused: dict[int, str] = {}
    reasons: dict[int, str] = {}
    left_alone = {id(model.get_submodule(path)) for path in kept}
    module: Any
    for module in model.modules():
        if type(module) not in (nn.Sequential, FusedSequential):
            continue
        modules = flattened(module)
        for one, after in itertools.zip_longest(modules, modules[1:]):
            reasons[id(one)] = f"is followed by {type(after).__name__ if after else 'nothing'}"
        found: dict[int, str] = {}
        has_kept = False
        for k, first in enumerate(modules):
            chain = chain_at(modules, k)
            if chain is None:
                continue
            if not is_known(chain.chain):
                reasons[id(first)] = "has hooks, methods or an activation of its own in its chain"
                continue
            found[id(first)] = str(chain.chain)
            has_kept |= any(id(m) in left_alone for m in modules[k : chain.end])
        if has_kept:
            reasons |= dict.fromkeys(found, "is in an nn.Sequential with a chain to be kept")
        elif found:
            fused |= found
            module.__class__ = FusedSequential
    paths = {path or "(model)": id(m) for path, m in model.named_modules() if is_depthwise(m)}
    return (
        [(path, fused[key]) for path, key in paths.items() if key in fused],
        [
            (path, reasons.get(key, "is not in an nn.Sequential, whose order is known"))
            for path, key in paths.items()
            if key not in fused
        ],
    )


def unfuse(model: nn.Module) -> list[str]:
    """Gives every FusedSequential its class of torch's back; their paths."""
    found: dict[str, Any] = {
        path: m for path, m in model.named_modules() if type(m) is FusedSequential
    }
    for module in found.values():
        module.__dict__.pop("_folders", None)
        module.__class__ = nn.Sequential
    return list(found)
