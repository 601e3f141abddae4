"""The cells of this build, as the C++ list has them, each with its three ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _C
from . import reference


@dataclass(frozen=True)
class Cell:
    """What Python needs to know of a row of csrc/recurrent/cells/cells.h."""

    index: int  # in that list
    name: str
    gates: int  # blocks of weight_ih and weight_hh
    pre_activations: int  # values kept per unit while a step is computed
    unit_block: int  # units per block in saved tensors
    has_c: bool  # hx is (h_0, c_0), not h_0 alone
    saves_gates: bool  # even where the output tells what the cell made
    peepholes: int  # gates that can see c
    chooses: bool  # whether activations and peepholes can be asked for

    @property
    def op(self) -> torch._ops.OpOverload:
        """y, h_n [, c_n] [, all c]; keeps nothing."""
        return getattr(torch.ops.adl_kernels, self.name).default

    @property
    def forward_op(self) -> torch._ops.OpOverload:
        """As `op`, and then what the backward op needs."""
        return getattr(torch.ops.adl_kernels, f"{self.name}_forward").default

    @property
    def backward_op(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.adl_kernels, f"{self.name}_backward").default

    @property
    def states(self) -> int:
        return 2 if self.has_c else 1

    def definition(
        self, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
    ) -> list[Tensor]:
        """What `op` computes, in plain PyTorch."""
        return reference.layer(self.name, x, hx, weights, *options)


CELLS = {facts["name"]: Cell(k, **facts) for k, facts in enumerate(_C.cells())}
