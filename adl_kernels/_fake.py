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
    """What the forward op keeps for backward, in the layout of x's device."""
    directions = hx[0].shape[0]
    rows = x.shape[0] * x.shape[1] if x.dim() == 3 else x.shape[0]
    hidden_size = weights[0].shape[0] // cell.gates
    layout = LAYOUTS.get(x.device.type, _cpu_layout)
    shapes, dtype = layout(cell, rows, hidden_size, x.dtype)
    if len(weights) // directions % 2:  # a projection
        shapes.append((rows, hidden_size))
    return [x.new_empty((directions, *shape), dtype=dtype) for shape in shapes]


Shapes = list[tuple[int, ...]]


def _cpu_layout(
    cell: Cell, rows: int, hidden_size: int, dtype: torch.dtype
) -> tuple[Shapes, torch.dtype]:
    """csrc/ops/cpu.cpp: blocks of units; float16 is computed in float32."""
    units = cell.unit_block
    count = (hidden_size + units - 1) // units
    gates: Shapes = [(count, rows, cell.pre_activations, units)] if cell.saves_gates else []
    c: Shapes = [(count, rows, units)] if cell.has_c else []
    return gates + c, torch.float32 if dtype == torch.float16 else dtype


def _cuda_layout(
    cell: Cell, rows: int, hidden_size: int, dtype: torch.dtype
) -> tuple[Shapes, torch.dtype]:
    """csrc/ops/cuda.cpp."""
    gates: Shapes = [(rows, cell.pre_activations, hidden_size)] if cell.saves_gates else []
    c: Shapes = [(rows, hidden_size)] if cell.has_c else []
    return gates + c, dtype


LAYOUTS = {"cpu": _cpu_layout, "cuda": _cuda_layout}


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


@torch.library.register_fake("adl_kernels::dropout")
def _(x: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    return x.new_empty(x.shape)
