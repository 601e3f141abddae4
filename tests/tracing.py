"""A module traced by torch.jit.trace, or exported, at one size, and run at others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def assert_traced(module: nn.Module, make: Callable[..., tuple], sizes: Sequence[tuple]) -> None:
    """Outputs and gradients as in eager mode; `make` makes the arguments of a size.

    Traced with gradients and without, each run with and without; and torch has nothing to warn of.
    """
    for traced_with in (True, False):
        with warnings.catch_warnings(), torch.set_grad_enabled(traced_with):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("error", category=torch.jit.TracerWarning)
            # As torch.jit.trace has it of what lies in torch itself.
            warnings.filterwarnings(
                "ignore", category=torch.jit.TracerWarning, module="torch.(?!jit)"
            )
            traced = torch.jit.trace(module, make(*sizes[0]), check_trace=False)
        for size in sizes[1:]:
            for wanted in (True, False):
                args = make(*size)
                for t in args:
                    t.requires_grad_(wanted and t.is_floating_point())
                with torch.set_grad_enabled(wanted):
                    assert_same(traced, module, args)


def assert_exported(
    module: nn.Module, make: Callable[..., tuple], sizes: Sequence[tuple], dynamic: Any
) -> None:
    """The same of torch.export with dynamic sizes, outputs alone."""
    for strict in (False, True):
        program = torch.export.export(
            module, make(*sizes[0]), dynamic_shapes=dynamic, strict=strict
        )
        for size in sizes:
            with torch.no_grad():
                assert_same(program.module(), module, make(*size))


def assert_same(run: Callable, module: nn.Module, args: tuple) -> None:
    found, expected = tensors(run(*args)), tensors(module(*args))
    torch.testing.assert_close(found, expected)
    if not torch.is_grad_enabled():  # where TorchScript's own torch.cat claims a gradient
        return
    assert [t.requires_grad for t in found] == [t.requires_grad for t in expected]
    inputs = [t for t in (*args, *module.parameters()) if t.requires_grad]
    losses = [sum(t.square().sum() for t in ts if t.requires_grad) for ts in (found, expected)]
    if isinstance(losses[0], Tensor):
        how = {"allow_unused": True}
        torch.testing.assert_close(*(torch.autograd.grad(loss, inputs, **how) for loss in losses))


def tensors(result: Any) -> list[Tensor]:
    return [t for t in tree_leaves(result) if isinstance(t, Tensor)]
