"""What torch runs a call under."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")

# Where layers leave a record of each direction, in the order in which they run (`Record` of
# recurrent/reference.py). While it is set they run by their definitions.
recording: ContextVar[list[Any] | None] = ContextVar("recording", default=None)


def needs_reference_path(*tensors: Tensor | None) -> bool:
    """Whether vmap, another functorch transform, forward-mode AD or a recording is at work.

    The ops know none of them, the definitions all. `tensors` are looked at for the older vmap of
    ``torch.autograd.grad(..., is_grads_batched=True)``, which shows in nothing else.
    """
    if torch.compiler.is_compiling():
        return False
    if recording.get() is not None:
        return True
    if any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors):
        return True
    dual = torch.autograd.forward_ad._current_level >= 0
    return dual or torch._C._are_functorch_transforms_active()


def is_symbolic(input: Any, module: nn.Module) -> bool:
    """Whether torch.fx.symbolic_trace runs the forward of a module in a model."""
    return isinstance(input, Proxy) and getattr(input.tracer, "root", None) is not module


def as_leaf(module: nn.Module, input: Any, hx: Any = None, **given: Any) -> Any:
    """The module as one node of a symbolic trace, which is what torch.nn's modules are."""
    args = (input,) if hx is None else (input, hx)
    given = {name: value for name, value in given.items() if value is not None}
    tracer = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)


def is_traced() -> bool:
    """Whether torch.jit.trace runs, for which sizes of tensors are tensors."""
    return torch._C._get_tracing_state() is not None


def untraced(check: Callable[P, R]) -> Callable[P, R]:
    """`check` with tracing paused: sizes are numbers in it, and none is written into the graph.

    What it computes must not depend on sizes that may be others when the trace runs.
    """

    @functools.wraps(check)
    def paused(*args: P.args, **kwargs: P.kwargs) -> R:
        state = torch._C._get_tracing_state()
        if state is None:
            return check(*args, **kwargs)
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return check(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]

    return paused
