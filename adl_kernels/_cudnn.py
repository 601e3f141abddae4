"""Layers that torch.nn has too, computed by torch's own cuDNN layer.

cuDNN is chosen where no kernel of this package is faster by its model (csrc/recurrent/cuda/tiers.h). A stack
of layers is one call, because cuDNN begins a layer before the one below it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import reference
from ._build_info import CUDA_ARCHS
from ._cells import Cell

# Where the op prefers_cudnn has a kernel: only in a build for CUDA.
DEVICES: set[str] = {"cuda"} if CUDA_ARCHS else set()


@dataclass(frozen=True)
class Stack:
    """Layers of a cell, called by `_autograd.Layer` like a `Cell`; extras are batch_sizes alone."""

    cell: Cell
    directions: int

    @property
    def states(self) -> int:
        return self.cell.states

    def op(self, x: Tensor, hx: list[Tensor], weights: list[Tensor], *extras: Any) -> list[Tensor]:
        index, ops = self.cell.index, torch.ops.adl_kernels
        return ops.cudnn(index, self.directions, x, hx, weights, extras[0])

    def forward_op(
        self, x: Tensor, hx: list[Tensor], weights: list[Tensor], *extras: Any
    ) -> list[Tensor]:
        index, ops = self.cell.index, torch.ops.adl_kernels
        return ops.cudnn_forward(index, self.directions, x, hx, weights, extras[0])

    def backward_op(self, grads: Any, x: Any, hx: Any, weights: Any, *rest: Any) -> list[Tensor]:
        *extras, y, (reserve,), needs = rest
        arguments = (self.cell.index, self.directions, grads, x, hx, weights, extras[0], y, reserve)
        return torch.ops.adl_kernels.cudnn_backward(*arguments, needs)

    def definition(
        self, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], *extras: Any
    ) -> list[Tensor]:
        layers = hx[0].size(0) // self.directions
        each = len(weights) // layers
        finals = []
        for k in range(layers):
            states = [h[k * self.directions : (k + 1) * self.directions] for h in hx]
            own = weights[k * each : (k + 1) * each]
            x, *final = reference.layer(self.cell.name, x, states, own, *extras)
            finals.append(final)
        return [x, *(torch.cat(h) for h in zip(*finals, strict=True))]


def prefers(
    cell: Cell,
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    directions: int,
    training: bool,
    dtype: torch.dtype | None = None,
) -> bool:
    """Whether these layers are computed by cuDNN.

    False for arguments that do not fit each other: the cell's own op reports what is wrong.
    """
    if x.device.type not in DEVICES or len(hx) != cell.states or len(weights) < 2:
        return False
    if torch._C._get_tracing_state() is not None:  # the op in the trace chooses when it runs
        return False
    if x.dim() != (3 if batch_sizes is None else 2) or any(t.dim() != 3 for t in hx):
        return False
    steps = x.size(0) if batch_sizes is None else batch_sizes.numel()
    layers = hx[0].size(0) // directions
    each = len(weights) // (layers * directions) if layers else 0
    H, P = weights[0].size(0) // cell.gates, hx[0].size(2)
    if each not in ((2, 3, 4, 5) if cell.has_c else (2, 4)) or (each % 2 == 0 and H != P):
        return False
    sizes = [_hint(n) for n in (steps, hx[0].size(1), x.size(-1), H, P, layers, directions)]
    device = 0 if x.device.index is None else x.device.index
    with _disable_current_modes():
        return bool(
            torch.ops.adl_kernels.prefers_cudnn(
                cell.index, device, dtype or x.dtype, sizes, batch_sizes is not None, training
            )
        )


def _hint(n: int | torch.SymInt) -> int:
    """The size as a number; for a symbolic size, the one it was traced with.

    The choice needs no guard: both ways compute every size correctly.
    """
    if isinstance(n, int):
        return n
    hint = n.node.hint
    return hint if isinstance(hint, int) else 0
