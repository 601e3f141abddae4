"""LSTM, GRU and RNN: torch.nn's layers, run by the ops of this package.

They subclass torch.nn.RNNBase, not torch.nn.LSTM and the others: torch.compile refuses every
subclass of those under fullgraph=True. Parameters, initialisation, state_dict, pickling and the
bookkeeping of weights are RNNBase's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _C, _errors, functional
from ._cells import CELLS

Hidden = Tensor | tuple[Tensor, Tensor]

CELL_OF_MODE = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class Recurrent(nn.RNNBase):
    """What LSTM, GRU and RNN have in common: the argument contract of torch.nn's layers."""

    # Set to True on a layer to keep no gates for backward, which runs the layer once more instead:
    # less memory, a third more time in training.
    recompute = False

    # One int64 from which the masks of dropout are made, the same on every device; new masks need
    # a new number. None: torch's generator, with the masks of torch.nn on the CPU.
    dropout_seed: Tensor | None = None

    def forward(
        self, input: Tensor | PackedSequence, hx: Hidden | None = None
    ) -> tuple[Tensor | PackedSequence, Hidden]:
        """Runs the layer; see the class for the shapes."""
        if self.num_layers == 1 and not (self.recompute or torch.compiler.is_compiling()):
            result = _C.eager(
                CELLS[CELL_OF_MODE[self.mode]].index,
                self._parameters,
                self._flat_weights_names,
                input,
                hx,
                2 if self.bidirectional else 1,
                self.batch_first,
                False,
            )
            if result is not None:
                return result
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        name = self._name()
        _errors.check_input(name, input, 3, self._layout())
        is_batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        states = None
        if hx is not None:
            states = _errors.check_states(name, hx, self.mode == "LSTM")
            _errors.check_state_dims(name, states, is_batched)
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            states = None if states is None else tuple(h.unsqueeze(1) for h in states)
        output, *finals = self._run(input, states, None)
        if not is_batched:
            output = output.squeeze(batch_dim)
            finals = [h.squeeze(1) for h in finals]
        return output, self._hidden(finals)

    def _forward_packed(
        self, input: PackedSequence, hx: Hidden | None
    ) -> tuple[PackedSequence, Hidden]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        states = None
        if hx is not None:
            states = _errors.check_states(self._name(), hx, self.mode == "LSTM")
            self._check_state_sizes(states, int(batch_sizes[0]))
            if sorted_indices is not None:
                states = tuple(h.index_select(1, sorted_indices) for h in states)
        output, *finals = self._run(data, states, batch_sizes)
        if unsorted_indices is not None:
            finals = [h.index_select(1, unsorted_indices) for h in finals]
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self._hidden(finals)

    def _run(
        self, input: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None
    ) -> list[Tensor]:
        # Read anew every time: no way to change a weight can go unnoticed.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        _errors.check_weights(self._name(), self._flat_weights_names, weights)
        name, packed = self._name(), batch_sizes is not None
        _errors.check_sequence(name, input, weights[0], self.input_size, packed, self._layout())
        if states is not None and not packed:
            self._check_state_sizes(states, input.size(0 if self.batch_first else 1))
        _errors.check_layer_tensors(name, input, states or (), weights)
        _errors.check_length(name, input.size(1 if self.batch_first and not packed else 0))
        return functional.recurrent(
            CELLS[CELL_OF_MODE[self.mode]],
            input,
            states,
            weights,
            self.num_layers,
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            batch_sizes,
            self.recompute,
            self.dropout_seed,
        )

    def _check_state_sizes(self, states: tuple[Tensor, ...], batch: int) -> None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        sizes = tuple((count, batch, width) for width in widths[: len(states)])
        _errors.check_state_sizes(self._name(), states, sizes)

    def _hidden(self, states: list[Tensor]) -> Hidden:
        return (states[0], states[1]) if self.mode == "LSTM" else states[0]

    def _layout(self) -> str:
        order = "[B, T, {0}] (batch_first)" if self.batch_first else "[T, B, {0}]"
        return f"{order} or, unbatched, [T, {{0}}]".format(self.input_size)

    def _name(self) -> str:
        # Of torch's class, as in its messages; a subclass or a parametrized module has another.
        return "RNN" if self.mode.startswith("RNN") else self.mode

    def flatten_parameters(self) -> None:
        """Does nothing: the ops take every weight as it is. Kept for code that calls it."""


class LSTM(Recurrent):
    """A multi-layer LSTM. Same arguments, parameters and results as :class:`torch.nn.LSTM`.

    ``i, f, o = sigmoid(W x_t + b_i + U h_{t-1} + b_h)``, ``g = tanh(...)``,
    ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)``
    (Hochreiter & Schmidhuber 1997; projections: Sak et al. 2014).

    Args:
        input_size: features I of the input.
        hidden_size: features H of the state.
        num_layers: layers L, each reading the output of the one below.
        bias: whether there are biases bias_ih and bias_hh.
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...].
        dropout: probability of zeroing outputs between layers, in training.
        bidirectional: whether a second scan runs from the end; then D = 2, else D = 1.
        proj_size: width P of h if it is projected to fewer features than H; 0 for none, P = H.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

    Attributes:
        recompute: False. Set to True to keep no gates for backward, which then runs the layer once
            more: less memory, a third more time in training.
        dropout_seed: None. Set to one int64, before each step anew, to have masks of dropout that
            depend on it alone, on the CPU and on a GPU.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, P] and c_0, c_n [L D, B, H], or without B; output [T, B, D P].
        ``forward(input, (h_0, c_0) = zeros) -> output, (h_n, c_n)``.

    Raises:
        RuntimeError, ValueError: as torch.nn.LSTM does and with its text, then what was expected.

    Equivalent to:
        ``torch.nn.LSTM(...)`` with the same state_dict.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]


class GRU(Recurrent):
    """A multi-layer GRU. Same arguments, parameters and results as :class:`torch.nn.GRU`.

    ``r, z = sigmoid(W x_t + b_i + U h_{t-1} + b_h)``,
    ``n = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))``, ``h_t = (1 - z) n + z h_{t-1}``
    (Cho et al. 2014, the reset gate applied after the product).

    Arguments, shapes and errors: as :class:`LSTM`, without proj_size and with one state h.
    ``forward(input, h_0 = zeros) -> output, h_n``.

    Equivalent to:
        ``torch.nn.GRU(...)`` with the same state_dict.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)


class RNN(Recurrent):
    """A multi-layer Elman RNN. Same arguments, parameters and results as :class:`torch.nn.RNN`.

    ``h_t = phi(W x_t + b_i + U h_{t-1} + b_h)``, phi tanh or, with nonlinearity="relu", the
    positive part (Elman 1990).

    Arguments, shapes and errors: as :class:`GRU`, with ``nonlinearity="tanh"`` as fourth argument.
    ``forward(input, h_0 = zeros) -> output, h_n``.

    Equivalent to:
        ``torch.nn.RNN(...)`` with the same state_dict.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)


def _refuse_projection(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


__all__ = ["GRU", "LSTM", "RNN"]
