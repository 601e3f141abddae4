"""What the ops return, without computing it: for torch.compile, torch.export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ._cells import CELLS, Cell


def _states(x: Tensor, hx: list[Tensor]) -> list[Tensor]:
    directions, _, width = hx[0].shape
    y = x.new_empty((*x.shape[:-1], directions * width))
    return [y, *(x.new_empty(h.shape) for h in hx)]


def _saved(cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """The shapes of csrc/ops/layer.h: J blocks of U units, N rows."""
    directions = hx[0].shape[0]
    rows = x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]
    units = cell.unit_block
    hidden_size = weights[0].shape[0] // cell.gates
    count = (hidden_size + units - 1) // units
    shapes: list[tuple[int, ...]] = []
    if cell.saves_gates:
        shapes.append((directions, count, rows, cell.pre_activations, units))
    if cell.has_c:
        shapes.append((directions, count, rows, units))
    if len(weights) // directions % 2:  # a projection
        shapes.append((directions, rows, hidden_size))
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    return [x.new_empty(shape, dtype=dtype) for shape in shapes]


def _register(cell: Cell) -> None:
    @torch.library.register_fake(f"adl_kernels::{cell.name}")
    def _(
        x: Tensor, hx: list[Tensor], weights: list[Tensor], batch_sizes: Tensor | None = None
    ) -> list[Tensor]:
        return _states(x, hx)

    @torch.library.register_fake(f"adl_kernels::{cell.name}_forward")
    def _(
        x: Tensor, hx: list[Tensor], weights: list[Tensor], batch_sizes: Tensor | None = None
    ) -> list[Tensor]:
        return _states(x, hx) + _saved(cell, x, hx, weights)

    @torch.library.register_fake(f"adl_kernels::{cell.name}_backward")
    def _(
        grads: list[Tensor | None],
        x: Tensor,
        hx: list[Tensor],
        weights: list[Tensor],
        batch_sizes: Tensor | None,
        y: Tensor,
        saved: list[Tensor],
        needs: list[bool],
    ) -> list[Tensor]:
        dx, *dweights = (
            t.new_empty(t.shape if need else (0,))
            for t, need in zip([x, *weights], needs, strict=True)
        )
        return [dx, *(h.new_empty(h.shape) for h in hx), *dweights]


for _cell in CELLS.values():
    _register(_cell)
