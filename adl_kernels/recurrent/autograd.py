"""Second derivatives of the ops, and gradients batched by vmap: both through reference.py.

The first derivative is csrc/recurrent/autograd.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from .cell_facts import CELLS, Cell
from .options import LayerOptions

_below_autograd = torch._C._AutoDispatchBelowAutograd


class Backward(torch.autograd.Function):
    """A backward op, whose own derivative is taken through the definition of the layers.

    Tensors are the gradients of the outputs, then x, hx and weights. directions: 0 for one layer,
    else those of a stack by cuDNN.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: Any,
        cell: Cell,
        directions: int,
        options: LayerOptions,
        needs: list[bool],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.cell, ctx.directions = cell, directions
        ctx.options = options.with_tensors((None,) * len(options.tensors))
        ctx.save_for_backward(*options.tensors, *tensors)
        ctx.set_materialize_grads(False)
        gradients = op()
        wanted = [needs[0], *[True] * cell.states, *needs[1:]]
        unwanted = [g for g, need in zip(gradients, wanted, strict=True) if not need]
        ctx.mark_non_differentiable(*unwanted)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        count, create_graph = len(ctx.options.tensors), torch.is_grad_enabled()
        options = ctx.options.with_tensors(ctx.saved_tensors[:count])
        needs, outputs = ctx.needs_input_grad[5:], 1 + ctx.cell.states + options.all_states
        with torch.enable_grad():
            tensors = _views(ctx.saved_tensors[count:])
            grads, inputs = tensors[:outputs], tensors[outputs:]
            inputs = [t if t.requires_grad else t.requires_grad_() for t in inputs]
            found = _definition(ctx.cell, ctx.directions, inputs, options)
            first = _grad(found, inputs, grads, create_graph=True)
            wanted = [t for t, need in zip(grads + inputs, needs, strict=True) if need]
            second = iter(_grad(first, wanted, cotangents, create_graph=create_graph))
        return *[None] * 5, *(next(second) if need else None for need in needs)


def batched_gradients(
    name: str,
    directions: int,
    tensors: list[Tensor],
    values: tuple[Any, ...],
    grads: list[Tensor | None],
    needs: list[bool],
) -> list[Tensor | None]:
    """The gradients of x, hx and weights, where those of the outputs are batched by vmap."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = _views(tensors)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        outputs = _definition(CELLS[name], directions, inputs, LayerOptions(*values))
        found = iter(_grad(outputs, wanted, grads, create_graph=create_graph))
    return [next(found) if need else None for need in needs]


def _definition(
    cell: Cell, directions: int, inputs: list[Tensor], options: LayerOptions
) -> list[Tensor]:
    """What the op of a layer, or of a stack, makes of x, hx and weights."""
    x, hx, weights = inputs[0], inputs[1 : 1 + cell.states], inputs[1 + cell.states :]
    if not directions:
        return cell.definition(x, hx, weights, *options)
    layers = hx[0].size(0) // directions
    each = len(weights) // layers
    finals = []
    for k in range(layers):
        states = [h[k * directions : (k + 1) * directions] for h in hx]
        x, *final = cell.definition(x, states, weights[k * each : (k + 1) * each], *options)
        finals.append(final)
    return [x, *(torch.cat(h) for h in zip(*finals, strict=True))]


def _views(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Keeps tensors that depend on each other apart, so that each derivative is partial."""
    return [None if t is None else t.view_as(t) if t.requires_grad else t.detach() for t in tensors]


def _grad(
    outputs: Sequence[Tensor | None],
    inputs: list[Tensor],
    cotangents: Sequence[Tensor | None],
    create_graph: bool,
) -> Sequence[Tensor | None]:
    """torch.autograd.grad, where an output may lack a graph and a cotangent may be missing."""
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and cotangent is not None and output.requires_grad
    ]
    if not pairs:
        return [None] * len(inputs)
    used, given = zip(*pairs, strict=True)
    return torch.autograd.grad(used, inputs, given, create_graph=create_graph, allow_unused=True)


def _run(
    op: Any, cell: Cell, directions: int, options: LayerOptions, needs: list[bool], tensors: Any
) -> list[Tensor]:
    def below() -> list[Tensor]:
        with _below_autograd():
            return op()

    wants_graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in tensors
    )
    if not wants_graph:
        return below()
    return list(Backward.apply(below, cell, directions, options, needs, *tensors))


def _register(library: torch.library.Library, cell: Cell) -> None:
    def backward(grads: Any, x: Tensor, hx: Any, weights: Any, *rest: Any) -> list[Tensor]:
        *values, _, _, needs = rest

        def op() -> list[Tensor]:
            return cell.backward_op(grads, x, hx, weights, *rest)

        return _run(op, cell, 0, LayerOptions(*values), needs, (*grads, x, *hx, *weights))

    library.impl(f"{cell.name}_backward", backward, "Autograd")


def _cudnn_backward(
    index: int, directions: int, grads: Any, x: Tensor, hx: Any, weights: Any, *rest: Any
) -> list[Tensor]:
    cell, (batch_sizes, _, _, needs) = list(CELLS.values())[index], rest

    def op() -> list[Tensor]:
        return torch.ops.adl_kernels.cudnn_backward(index, directions, grads, x, hx, weights, *rest)

    options, tensors = LayerOptions(batch_sizes), (*grads, x, *hx, *weights)
    return _run(op, cell, directions, options, needs, tensors)


_C.set_batched_grad_fallback(batched_gradients)
_library = torch.library.Library("adl_kernels", "IMPL")
for _cell in CELLS.values():
    _register(_library, _cell)
_library.impl("cudnn_backward", _cudnn_backward, "Autograd")
