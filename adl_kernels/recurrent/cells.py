"""LSTMCell, GRUCell and RNNCell: one step of torch.nn's cells, run by the ops of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _C
from .._transforms import as_leaf, is_symbolic
from . import engine, errors
from .cell_facts import CELLS, Cell
from .options import StackOptions

# Inductor's code for torch's cells may not compile in these (seen in torch 2.13).
HALF = (torch.bfloat16, torch.float16)
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(name: str, module: nn.RNNCellBase, cell: Cell, input: Tensor, hx: Any) -> Any:
    """The new state of `module`, whose class in torch is `name`; hx as the user gave it."""
    if not torch.compiler.is_compiling():
        state = _C.eager(cell.index, module._parameters, WEIGHTS, input, hx, 1, False, True, None)
        if state is not None:
            return state
    if is_symbolic(input, module):
        return as_leaf(module, input, hx)
    errors.check_input(name, input, 2, f"[B, {module.input_size}] or [{module.input_size}]")
    is_batched = input.dim() == 2
    states = None if hx is None else errors.check_cell_states(name, hx, cell.has_c)
    if not is_batched:
        input = input.unsqueeze(0)
        states = None if states is None else tuple(h.unsqueeze(0) for h in states)
    errors.check_cell_sizes(name, input, states or (), module.input_size, module.hidden_size)
    weights = _weights(name, module)
    errors.check_cell_tensors(name, input, states or (), weights)
    if states is None:
        zeros = input.new_zeros(input.size(0), module.hidden_size)
        states = (zeros,) * cell.states
    _, *new = engine.run(
        cell, input.unsqueeze(0), [h.unsqueeze(0) for h in states], weights, StackOptions()
    )
    new = [h.squeeze(0) if is_batched else h.view(-1) for h in new]
    return tuple(new) if cell.has_c else new[0]


def _is_torchs(module: nn.RNNCellBase, input: Tensor) -> bool:
    """Whether torch.compile gets torch's own cell on the CPU.

    That is in training and for few rows, where one product and what Inductor fuses with it take
    less time than an op that it does not know. torch.export gets the op: it runs at any size.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if not isinstance(input, Tensor) or input.device.type != "cpu" or input.dtype in HALF:
        return False
    if torch.is_grad_enabled() and (input.requires_grad or module.weight_hh.requires_grad):
        return True
    rows = input.size(0) if input.dim() == 2 else 1
    return rows < 64 or rows * module.hidden_size < 16384


def _weights(name: str, module: nn.RNNCellBase) -> list[Tensor]:
    """Both weights and, if either is there, both biases."""
    weights = [module.weight_ih, module.weight_hh]
    errors.check_weights(name, ["weight_ih", "weight_hh"], weights)
    biases = [module.bias_ih, module.bias_hh]
    for bias, other in zip(biases, reversed(biases), strict=True):
        if bias is not None:
            weights.append(bias)
        elif other is not None:
            weights.append(torch.zeros_like(other))
    return weights


class LSTMCell(nn.LSTMCell):
    """One step of an LSTM. Same arguments, parameters and results as :class:`torch.nn.LSTMCell`.

    ``forward(input [B, I], (h [B, H], c [B, H]) = zeros) -> (h', c')``, or all without B.

    Equivalent to:
        ``torch.nn.LSTMCell(...)`` with the same state_dict.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if _is_torchs(self, input):
            return super().forward(input, hx)
        return _step("LSTMCell", self, CELLS["lstm"], input, hx)


class GRUCell(nn.GRUCell):
    """One step of a GRU. Same arguments, parameters and results as :class:`torch.nn.GRUCell`.

    ``forward(input [B, I], h [B, H] = zeros) -> h'``, or both without B.

    Equivalent to:
        ``torch.nn.GRUCell(...)`` with the same state_dict.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if _is_torchs(self, input):
            return super().forward(input, hx)
        return _step("GRUCell", self, CELLS["gru"], input, hx)


class RNNCell(nn.RNNCell):
    """One step of an Elman RNN. Same arguments and results as :class:`torch.nn.RNNCell`.

    ``forward(input [B, I], h [B, H] = zeros) -> h'``, or both without B.

    Equivalent to:
        ``torch.nn.RNNCell(...)`` with the same state_dict.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        if _is_torchs(self, input):
            return super().forward(input, hx)
        return _step("RNNCell", self, CELLS[f"rnn_{self.nonlinearity}"], input, hx)


__all__ = ["GRUCell", "LSTMCell", "RNNCell"]
