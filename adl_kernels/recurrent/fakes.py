"""What the ops return, without computing it: for torch.compile, torch.export and meta tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cell_facts import CELLS, Cell
from .options import LayerOptions
from .reference import Weights


def _states(cell: Cell, x: Tensor, hx: list[Tensor], options: LayerOptions) -> list[Tensor]:
    widths = [hx[0].shape[2]] + [hx[-1].shape[2]] * options.all_states
    y, *all_c = (x.new_empty((*x.shape[:-1], hx[0].shape[0] * width)) for width in widths)
    return [y, *(x.new_empty(h.shape) for h in hx), *all_c]


def _saved(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], options: LayerOptions
) -> list[Tensor]:
    """What the forward op keeps for backward, in the layout of x's device."""
    directions = hx[0].shape[0]
    rows = x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]
    hidden_size = weights[0].shape[0] // cell.gates
    per_unit = 2 * cell.gates if options.layer_norm else cell.pre_activations
    if not (cell.saves_gates or options.has_zoneout or options.layer_norm):
        per_unit = 0
    layout = LAYOUTS.get(x.device.type, _cpu_layout)
    shapes, dtype = layout(cell, rows, hidden_size, per_unit, x.dtype)
    own = weights[: len(weights) // directions]
    if Weights.of(own, cell.has_c, options).hr is not None:
        shapes.append((rows, hidden_size))
    return [x.new_empty((directions, *shape), dtype=dtype) for shape in shapes]


Shapes = list[tuple[int, ...]]


def _cpu_layout(
    cell: Cell, rows: int, hidden_size: int, per_unit: int, dtype: torch.dtype
) -> tuple[Shapes, torch.dtype]:
    """csrc/recurrent/cpu.cpp: blocks of units; float16 is computed in float32."""
    units = cell.unit_block
    count = (hidden_size + units - 1) // units
    gates: Shapes = [(count, rows, per_unit, units)] if per_unit else []
    c: Shapes = [(count, rows, units)] if cell.has_c else []
    return gates + c, torch.float32 if dtype == torch.float16 else dtype


def _cuda_layout(
    cell: Cell, rows: int, hidden_size: int, per_unit: int, dtype: torch.dtype
) -> tuple[Shapes, torch.dtype]:
    """csrc/recurrent/cuda.cpp."""
    gates: Shapes = [(rows, per_unit, hidden_size)] if per_unit else []
    c: Shapes = [(rows, hidden_size)] if cell.has_c else []
    return gates + c, dtype


LAYOUTS = {"cpu": _cpu_layout, "cuda": _cuda_layout}


def _register(cell: Cell) -> None:
    @torch.library.register_fake(f"adl_kernels::{cell.name}")
    def _(x: Tensor, hx: list[Tensor], weights: list[Tensor], *values: Any) -> list[Tensor]:
        return _states(cell, x, hx, LayerOptions(*values))

    @torch.library.register_fake(f"adl_kernels::{cell.name}_forward")
    def _(x: Tensor, hx: list[Tensor], weights: list[Tensor], *values: Any) -> list[Tensor]:
        options = LayerOptions(*values)
        return _states(cell, x, hx, options) + _saved(cell, x, hx, weights, options)

    @torch.library.register_fake(f"adl_kernels::{cell.name}_backward")
    def _(
        grads: list[Tensor | None], x: Tensor, hx: list[Tensor], weights: list[Tensor], *rest: Any
    ) -> list[Tensor]:
        return _gradients(x, hx, weights, rest[-1])


def _gradients(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    dx, *dweights = (
        t.new_empty(t.shape if need else (0,)) for t, need in zip([x, *weights], needs, strict=True)
    )
    return [dx, *(h.new_empty(h.shape) for h in hx), *dweights]


for _cell in CELLS.values():
    _register(_cell)


@torch.library.register_fake("adl_kernels::cudnn")
def _cudnn(
    cell: int, directions: int, x: Tensor, hx: Any, weights: Any, sizes: Any
) -> list[Tensor]:
    y = x.new_empty((*x.shape[:-1], directions * hx[0].shape[2]))
    return [y, *(x.new_empty(h.shape) for h in hx)]


@torch.library.register_fake("adl_kernels::cudnn_forward")
def _(cell: int, directions: int, x: Tensor, hx: Any, weights: Any, sizes: Any) -> list[Tensor]:
    outputs = _cudnn(cell, directions, x, hx, weights, sizes)
    return [*outputs, x.new_empty((0,), dtype=torch.uint8)]


@torch.library.register_fake("adl_kernels::cudnn_backward")
def _(
    cell: int, directions: int, grads: Any, x: Tensor, hx: Any, weights: Any, sizes: Any, *rest: Any
) -> list[Tensor]:
    return _gradients(x, hx, weights, rest[-1])
