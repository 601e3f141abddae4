"""What the ops count for where floating point operations are counted: by torch, fvcore, ptflops.

torch.utils.flop_counter knows by itself. The others are told, and then count a converted model as
they count torch's layers, and the recurrent ones too where they would count 0::

    FlopCountAnalysis(model, x).set_op_handle(**adl_kernels.flops.fvcore_handles())
    get_model_complexity_info(model, size, custom_modules_hooks=adl_kernels.flops.ptflops_hooks())

Only matrix products and convolutions count, as with torch; those of an LSTM as those of a GRU.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._late import when_imported
from .conversion import TORCHS
from .depthwise.layers import CausalConv1d
from .recurrent.cell_facts import CELLS, Cell
from .recurrent.options import LayerOptions
from .recurrent.reference import Weights

_ops, aten = torch.ops.adl_kernels, torch.ops.aten
CELL_LIST = list(CELLS.values())
NAME = "torch.utils.flop_counter"


# Recurrent layers: every matrix is multiplied once a row, which is a sequence at a step.


def _directions(cell: Cell, count: int, weights: Sequence[Any], options: Any) -> list[Weights]:
    """Of a layer after the other; count of them."""
    each = len(weights) // count
    return [
        Weights.of(weights[k : k + each], cell.has_c, options) for k in range(0, len(weights), each)
    ]


def _rows(x: Tensor, hx: Sequence[Tensor], options: LayerOptions) -> tuple[Any, list[Any]]:
    """How many there are, and how many of the first step that each direction computes."""
    sizes, lengths = options.batch_sizes, options.lengths
    if sizes is not None:
        known = _has_numbers(sizes)
        return x.shape[0], [int(sizes[k]) if known else hx[0].shape[1] for k in (0, -1)]
    if lengths is not None and _has_numbers(lengths):
        longest = lengths.max()
        firsts = [int((lengths > 0).sum()), int((lengths == longest).sum())]
        return int(lengths.sum()), firsts
    return math.prod(x.shape[:-1]), [x.shape[1]] * 2


def _has_numbers(t: Tensor) -> bool:
    return type(t) is Tensor and t.device.type != "meta"


def _forward(
    cell: Cell, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], options: LayerOptions
) -> int:
    rows, _ = _rows(x, hx, options)
    return 2 * rows * _matrices(cell, hx[0].shape[0], weights, options)


def _matrices(cell: Cell, count: int, weights: Sequence[Any], options: LayerOptions) -> int:
    """Elements of all."""
    found = _directions(cell, count, weights, options)
    return sum(_numel(t) for w in found for t in (w.ih, w.hh, w.hr) if t is not None)


def _numel(t: Any) -> int:
    return t.numel() if isinstance(t, Tensor) else math.prod(_sizes(t))


def _backward(
    cell: Cell,
    directions: int,
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    options: LayerOptions,
    needs: Sequence[bool],
) -> int:
    """A product for each gradient of a matrix that is needed, and one for what it multiplied."""
    rows, firsts = _rows(x, hx, options)
    found: Any = _directions(cell, hx[0].shape[0], weights, options)
    needed: Any = _directions(cell, hx[0].shape[0], needs[1:], options)
    total = 0
    for k, (w, need) in enumerate(zip(found, needed, strict=True)):
        first = 0 if hx[0].requires_grad else firsts[k % directions]
        dx = needs[0] or k >= directions
        total += rows * w.ih.numel() * (need.ih + dx)
        total += w.hh.numel() * (rows * need.hh + rows - first)
        if w.hr is not None:
            total += rows * w.hr.numel() * (need.hr + 1)
    return 2 * total


def _of_cell(cell: Cell) -> dict[Any, Callable[..., int]]:
    def forward(x: Tensor, hx: Any, weights: Any, *rest: Any, out_val: Any, **more: Any) -> int:
        return _forward(cell, x, hx, weights, LayerOptions(*rest, **more))

    def backward(grads: Any, x: Tensor, hx: Any, weights: Any, *rest: Any, out_val: Any) -> int:
        *values, _, _, needs = rest
        return _backward(cell, hx[0].shape[0], x, hx, weights, LayerOptions(*values), needs)

    names: dict[str, Any] = {
        cell.name: forward,
        f"{cell.name}_forward": forward,
        f"{cell.name}_backward": backward,
    }
    return {getattr(_ops, name): formula for name, formula in names.items()}


def _cudnn(
    index: int, directions: int, x: Tensor, hx: Any, weights: Any, sizes: Any, *, out_val: Any
) -> int:
    return _forward(CELL_LIST[index], x, hx, weights, LayerOptions(sizes))


def _cudnn_backward(
    index: int,
    directions: int,
    grads: Any,
    x: Tensor,
    hx: Any,
    weights: Any,
    sizes: Any,
    y: Any,
    reserve: Any,
    needs: Any,
    *,
    out_val: Any,
) -> int:
    return _backward(CELL_LIST[index], directions, x, hx, weights, LayerOptions(sizes), needs)


# Convolutions: as torch counts its own of the same tensors.


def _torchs(op: Any, *args: Any, out_val: Any) -> int:
    return sys.modules[NAME].flop_registry[op](*args, out_val=out_val)


def _conv(x: Any, weight: Any, bias: Any, how: Sequence[Any], groups: int, out: Any) -> int:
    """how: stride, padding, dilation."""
    return _torchs(aten.convolution, x, weight, bias, *how[:3], False, [0], groups, out_val=out)


def _depthwise(x: Tensor, weight: Tensor, bias: Any, *how: Any, out_val: Any, **more: Any) -> int:
    return _conv(x, weight, bias, how, x.shape[1], out_val)


def _gradient(
    grad: Any, x: Any, weight: Any, how: Sequence[Any], groups: int, of_input: bool
) -> int:
    mask, results = [of_input, not of_input, False], (x, weight, None)
    args = (grad, x, weight, None, *how[:3], False, [0], groups, mask)
    return _torchs(aten.convolution_backward, *args, out_val=results)


def _input_grad(
    grad: Tensor, weight: Tensor, size: Any, *how: Any, out_val: Any, **more: Any
) -> int:
    return _gradient(grad, out_val, weight, how, size[1], True)


def _weight_grad(grad: Tensor, x: Tensor, size: Any, *how: Any, out_val: Any, **more: Any) -> int:
    return _gradient(grad, x, out_val[0], how, x.shape[1], False)


def _separable(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Any,
    pw_weight: Tensor,
    pw_bias: Any,
    packed: Any,
    *how: Any,
    out_val: Tensor,
    **more: Any,
) -> int:
    mid = [x.shape[0], dw_weight.shape[0], *out_val.shape[2:]]
    first = _conv(x, dw_weight, dw_bias, how, x.shape[1], mid)
    return first + _conv(mid, pw_weight, pw_bias, how, 1, out_val)


FORMULAS: dict[Any, Callable[..., int]] = {
    _ops.depthwise_conv: _depthwise,
    _ops.depthwise_conv_input_grad: _input_grad,
    _ops.depthwise_conv_weight_grad: _weight_grad,
    _ops.separable_conv: _separable,
    _ops.cudnn: _cudnn,
    _ops.cudnn_forward: _cudnn,
    _ops.cudnn_backward: _cudnn_backward,
}
for _cell in CELL_LIST:
    FORMULAS |= _of_cell(_cell)


def _register() -> None:
    for op, formula in FORMULAS.items():
        sys.modules[NAME].register_flop_formula(op, get_raw=True)(formula)


# Not at once: it imports triton where there is one, which takes longer than all of ours.
when_imported(NAME, _register)


# fvcore reads the graph of a trace, and calls a multiply-add one operation.


def _sizes(value: Any) -> list[int]:
    return value.type().sizes()


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], Any]]:
    """For ``fvcore.nn.FlopCountAnalysis.set_op_handle(**...)``."""

    def conv(inputs: list[Any], outputs: list[Any]) -> Any:
        rows, _, *places = _sizes(outputs[0])
        return Counter(conv=rows * math.prod(places) * _numel(inputs[1]))

    def separable(inputs: list[Any], outputs: list[Any]) -> Any:
        rows, _, *places = _sizes(outputs[0])
        weights = _numel(inputs[1]) + _numel(inputs[3])
        return Counter(conv=rows * math.prod(places) * weights)

    def layer(cell: Cell) -> Callable[[list[Any], list[Any]], int]:
        def count(inputs: list[Any], outputs: list[Any]) -> int:
            x, hx, weights, *rest = inputs
            options = LayerOptions(*(value.toIValue() for value in rest))
            h_0, own = next(hx.node().inputs()), list(weights.node().inputs())
            rows = math.prod(_sizes(x)[:-1])
            return rows * _matrices(cell, _sizes(h_0)[0], own, options)

        return count

    convs = {"depthwise_conv": conv, "separable_conv": separable}
    handles = convs | {cell.name: layer(cell) for cell in CELL_LIST}
    return {f"adl_kernels::{name}": handle for name, handle in handles.items()}


def ptflops_hooks() -> dict[Any, Callable[..., Any]]:
    """For ``custom_modules_hooks`` of ptflops, for both of its backends: of modules and of ops."""
    from ptflops.aten_ops import ATEN_OPS_MAPPING
    from ptflops.pytorch_ops import MODULES_MAPPING

    classes = TORCHS | {CausalConv1d: nn.Conv1d}

    def as_torchs(module: nn.Module, args: Any, output: Any) -> None:
        torchs = classes[type(module)]
        same = torchs.__new__(torchs)  # ptflops asks for the class
        object.__setattr__(same, "__dict__", module.__dict__)
        MODULES_MAPPING[torchs](same, args, output)

    def conv(args: Any, outputs: Any) -> int:
        x, weight, bias, *how = args
        return ATEN_OPS_MAPPING[aten.convolution](
            (x, weight, bias, *how[:3], False, [0], x.shape[1]), outputs
        )

    def separable(args: Any, outputs: Any) -> int:
        x, dw_weight, dw_bias, pw_weight, pw_bias = args[:5]
        mid = x.new_empty([x.shape[0], dw_weight.shape[0], *outputs[0].shape[2:]], device="meta")
        first = conv((x, dw_weight, dw_bias, *args[6:9]), (mid,))
        return first + conv((mid, pw_weight, pw_bias, *args[6:9]), outputs)

    def layer(cell: Cell) -> Callable[[Any, Any], int]:
        def count(args: Any, outputs: Any) -> int:
            x, hx, weights, *rest = args
            options = LayerOptions(*rest)
            rows, _ = _rows(x, hx, options)
            found = _directions(cell, hx[0].shape[0], weights, options)
            # As an addmm has it, which torch's layer calls for x only if that is contiguous.
            added = [w.b_hh for w in found] + [w.b_ih for w in found] * x.is_contiguous()
            matrices = _matrices(cell, hx[0].shape[0], weights, options)
            return rows * (matrices + sum(b.numel() for b in added if b is not None))

        return count

    def cudnn(args: Any, outputs: Any) -> int:
        index, _, *rest = args
        return layer(CELL_LIST[index])(rest, outputs)

    hooks: dict[Any, Callable[..., Any]] = dict.fromkeys(classes, as_torchs)
    hooks |= dict.fromkeys((_ops.cudnn, _ops.cudnn_forward), cudnn)
    hooks |= {_ops.depthwise_conv: conv, _ops.separable_conv: separable}
    for cell in CELL_LIST:
        for name in (cell.name, f"{cell.name}_forward"):
            hooks[getattr(_ops, name)] = layer(cell)
    return hooks


__all__ = ["fvcore_handles", "ptflops_hooks"]
