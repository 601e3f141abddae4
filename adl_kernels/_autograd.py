"""Autograd of the ops. The first derivative is fused; further ones go through reference.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from . import _C, reference
from ._cells import CELLS, Cell
from ._cudnn import DEVICES, Stack, prefers
from ._extras import PLAIN, Extras

_below_autograd = torch._C._AutoDispatchBelowAutograd


class Layer(torch.autograd.Function):
    """The forward op that keeps what backward needs. Tensors are x, hx, weights in a row."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell | Stack, extras: Extras, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        hx, weights = tensors[: cell.states], tensors[cell.states :]
        with _below_autograd():
            outputs = cell.forward_op(x, list(hx), list(weights), *extras)
        y, saved = outputs[0], outputs[_outputs(cell, extras) :]
        ctx.cell, ctx.extras = cell, _Kept(ctx, extras, y, x, *tensors, *saved)
        ctx.inputs = 1 + len(tensors)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cell, needs = ctx.cell, ctx.needs_input_grad[2:]
        extras, (y, *tensors) = ctx.extras.again(ctx)
        x, *inputs = tensors[: ctx.inputs]
        given = grads[: _outputs(cell, extras)]
        if reference.wanted(*grads):
            return None, None, *_gradients(cell, tensors[: ctx.inputs], extras, given, needs)
        # Which has a derivative of its own, if one is wanted.
        with nullcontext() if torch.is_grad_enabled() else _below_autograd():
            hx, weights, saved = inputs[: cell.states], inputs[cell.states :], tensors[ctx.inputs :]
            wanted = [needs[0], *needs[1 + cell.states :]]
            gradients = cell.backward_op(list(given), x, hx, weights, *extras, y, saved, wanted)
        return None, None, *(g if need else None for g, need in zip(gradients, needs, strict=True))


class LayerBackward(torch.autograd.Function):
    """The backward op; its own derivative is taken through the definition of the layer.

    Tensors are the gradients of the outputs, then x, hx and weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell | Stack,
        extras: Extras,
        y: Tensor,
        saved: list[Tensor],
        needs: list[bool],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.cell, ctx.extras = cell, _Kept(ctx, extras, *tensors)
        ctx.set_materialize_grads(False)
        outputs = _outputs(cell, extras)
        grads, (x, *inputs) = tensors[:outputs], tensors[outputs:]
        hx, weights = inputs[: cell.states], inputs[cell.states :]
        gradients = cell.backward_op(list(grads), x, hx, weights, *extras, y, saved, needs)
        unwanted = [
            g for g, need in zip(gradients, _with_states(cell, needs), strict=True) if not need
        ]
        ctx.mark_non_differentiable(*unwanted)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        cell, create_graph = ctx.cell, torch.is_grad_enabled()
        extras, tensors = ctx.extras.again(ctx)
        needs, outputs = ctx.needs_input_grad[5:], _outputs(cell, extras)
        with torch.enable_grad():
            tensors = _views(tensors)
            grads, inputs = tensors[:outputs], tensors[outputs:]
            inputs = [t if t.requires_grad else t.requires_grad_() for t in inputs]
            first = _grad(_reference(cell, inputs, extras), inputs, grads, create_graph=True)
            wanted = [t for t, need in zip(grads + inputs, needs, strict=True) if need]
            second = iter(_grad(first, wanted, cotangents, create_graph=create_graph))
        return *[None] * 5, *(next(second) if need else None for need in needs)


class _Kept:
    """Extras whose tensors ctx has saved, before other tensors."""

    def __init__(self, ctx: Any, extras: Extras, *others: Tensor | None) -> None:
        self.rest = extras.with_tensors((None,) * len(extras.tensors))
        ctx.save_for_backward(*extras.tensors, *others)

    def again(self, ctx: Any) -> tuple[Extras, list[Tensor]]:
        tensors = ctx.saved_tensors
        count = len(self.rest.tensors)
        return self.rest.with_tensors(tensors[:count]), list(tensors[count:])


def _outputs(cell: Cell | Stack, extras: Extras) -> int:
    return 1 + cell.states + extras.all_states


def _gradients(
    cell: Cell | Stack,
    tensors: list[Tensor],
    extras: Extras,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of a layer through its definition, for gradients that are batched by vmap."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = _views(tensors)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        outputs = _reference(cell, inputs, extras)
        found = iter(_grad(outputs, wanted, grads, create_graph=create_graph))
    return [next(found) if need else None for need in needs]


def _reference(cell: Cell | Stack, inputs: list[Tensor], extras: Extras) -> list[Tensor]:
    hx, weights = inputs[1 : 1 + cell.states], inputs[1 + cell.states :]
    return cell.definition(inputs[0], hx, weights, *extras)


def _views(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Keeps tensors that depend on each other apart, so that each derivative is partial."""
    return [None if t is None else t.view_as(t) if t.requires_grad else t.detach() for t in tensors]


def _with_states(cell: Cell | Stack, needs: list[bool]) -> list[bool]:
    return [needs[0], *[True] * cell.states, *needs[1:]]


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


def _wants_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def run(
    cell: Cell | Stack, x: Tensor, hx: list[Tensor], weights: list[Tensor], extras: Extras
) -> list[Tensor]:
    """The outputs of a layer, or of a stack of them."""
    if len(hx) == cell.states and _wants_graph(x, *hx, *weights):
        outputs = Layer.apply(cell, extras, x, *hx, *weights)
        return list(outputs[: _outputs(cell, extras)])
    with _below_autograd():
        return cell.op(x, hx, weights, *extras)


def _register(library: torch.library.Library, cell: Cell) -> None:
    def layer(x: Tensor, hx: list[Tensor], weights: list[Tensor], *extras: Any) -> list[Tensor]:
        asked = Extras(*extras)
        if x.device.type in DEVICES and asked.is_plain and hx and hx[0].dim() == 3:
            D, graph = hx[0].size(0), _wants_graph(x, *hx, *weights)
            if prefers(cell, x, hx, weights, asked.batch_sizes, D, graph):
                return run(Stack(cell, D), x, hx, weights, asked)
        return run(cell, x, hx, weights, asked)

    def layer_forward(
        x: Tensor, hx: list[Tensor], weights: list[Tensor], *extras: Any
    ) -> list[Tensor]:
        if len(hx) == cell.states and _wants_graph(x, *hx, *weights):
            return list(Layer.apply(cell, Extras(*extras), x, *hx, *weights))
        with _below_autograd():
            return cell.forward_op(x, hx, weights, *extras)

    def layer_backward(
        grads: list[Tensor | None], x: Tensor, hx: list[Tensor], weights: list[Tensor], *rest: Any
    ) -> list[Tensor]:
        if len(hx) == cell.states and _wants_graph(*grads, x, *hx, *weights):
            *extras, y, saved, needs = rest
            asked = Extras(*extras)
            return list(LayerBackward.apply(cell, asked, y, saved, needs, *grads, x, *hx, *weights))
        with _below_autograd():
            return cell.backward_op(grads, x, hx, weights, *rest)

    library.impl(cell.name, layer, "Autograd")
    library.impl(f"{cell.name}_forward", layer_forward, "Autograd")
    library.impl(f"{cell.name}_backward", layer_backward, "Autograd")


def _cudnn(
    cell: int, directions: int, x: Tensor, hx: Any, weights: Any, sizes: Any
) -> list[Tensor]:
    return run(_stack(cell, directions), x, hx, weights, Extras(sizes))


def _cudnn_forward(
    cell: int, directions: int, x: Tensor, hx: Any, weights: Any, sizes: Any
) -> list[Tensor]:
    stack, extras = _stack(cell, directions), Extras(sizes)
    if _wants_graph(x, *hx, *weights):
        return list(Layer.apply(stack, extras, x, *hx, *weights))
    with _below_autograd():
        return stack.forward_op(x, hx, weights, *extras)


def _cudnn_backward(
    cell: int, directions: int, grads: Any, x: Tensor, hx: Any, weights: Any, sizes: Any, *rest: Any
) -> list[Tensor]:
    stack, extras, (y, reserve, needs) = _stack(cell, directions), Extras(sizes), rest
    if _wants_graph(*grads, x, *hx, *weights):
        inputs = (*grads, x, *hx, *weights)
        return list(LayerBackward.apply(stack, extras, y, [reserve], needs, *inputs))
    with _below_autograd():
        return stack.backward_op(grads, x, hx, weights, *extras, y, [reserve], needs)


def _stack(cell: int, directions: int) -> Stack:
    return Stack(list(CELLS.values())[cell], directions)


def _batched(
    name: str, inputs: list[Tensor], grads: list[Tensor | None], needs: list[bool]
) -> list[Tensor | None]:
    """What csrc/recurrent/eager.cpp asks for when gradients are batched."""
    return _gradients(CELLS[name], inputs, PLAIN, grads, needs)


def _keep_seed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, seed, ctx.stream = inputs
    ctx.save_for_backward(seed)


def _seeded_dropout_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (seed,) = ctx.saved_tensors
    return torch.ops.adl_kernels.dropout(grad, ctx.p, seed, ctx.stream), None, None, None


torch.library.register_autograd(
    "adl_kernels::dropout", _seeded_dropout_backward, setup_context=_keep_seed
)
_C.set_definition(_batched)
_library = torch.library.Library("adl_kernels", "IMPL")
for _cell in CELLS.values():
    _register(_library, _cell)
_library.impl("cudnn", _cudnn, "Autograd")
_library.impl("cudnn_forward", _cudnn_forward, "Autograd")
_library.impl("cudnn_backward", _cudnn_backward, "Autograd")
