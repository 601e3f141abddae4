"""LSTM, GRU and RNN: torch.nn's layers, run by the ops of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .base import OF_EVERY_LAYER, Pair, Recurrent
from .options import BEYOND_TORCH, check_nonlinearity


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

        Not in torch.nn, by keyword:

        forget_gate: "learned"; "coupled", f = 1 - i; "none", f = 1. The latter two have three
            blocks of weights, i g o.
        peephole: i and f also see ``p c_{t-1}``, o sees ``p c_t`` (Gers & Schmidhuber 2000), with
            a parameter weight_ch_l{k} [gates that see, H], in the order i f o or i o.
        cell_activation: phi in ``g = phi(...)``: "tanh", "sigmoid", "relu" or "identity".
        hidden_activation: phi in ``h_t = o phi(c_t)``, of the same.
        layer_norm: normalises W x, U h and, for h_t, c_t, each over its features (Ba et al. 2016):
            gains weight_ln_ih, weight_ln_hh [4 H], weight_ln_c [H], shift bias_ln_c [H].
        zoneout: probability, or a pair (of h, of c), that a unit keeps its state at a step
            (Krueger et al. 2017); the expectation in eval.
        recurrent_dropout: probability of zeroing what U sees of h, one mask per sequence, in
            training (Gal & Ghahramani 2016).
        weight_dropout: probability of zeroing an element of U, in training (Merity et al. 2018).
        bptt_steps: truncated BPTT: gradients do not pass from a step that is a multiple of it to
            the step before, as if chunks of so many steps were fed with the state detached.
        return_all_states: whether forward returns a third value c [T, B, D H], the last layer's
            cell state at every step (a PackedSequence if the input is one).

    Attributes:
        bptt_steps, zoneout, recurrent_dropout, weight_dropout, return_all_states: may be set at
            any time.
        recompute: False. Set to True to keep no gates for backward, which then runs the layer once
            more: less memory, a third more time in training.
        dropout_seed: None. Set to one int64, before each step anew, to have masks of dropout that
            depend on it alone, on the CPU and on a GPU. Without it the seed of the masks of
            zoneout, recurrent and weight dropout comes from torch's generator on the CPU, so they
            too are the same on every device.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, P] and c_0, c_n [L D, B, H], or without B; output [T, B, D P].
        ``forward(input, (h_0, c_0) = zeros, *, lengths=None, reset=None, mask=None) -> output,
        (h_n, c_n)``.
        lengths [B], integers from 0 to T in any order, on any device: outputs past a sequence's end
        are zero, h_n and c_n come from its last step, the reverse direction starts there.
        reset bool [T, B] ([B, T] with batch_first): true where a new sequence begins; the state is
        zero there, in the reverse direction it is so for the step before, and no gradient crosses.
        mask bool, as reset: true up to the end of each sequence; another way to give lengths.

    Raises:
        RuntimeError, ValueError: as torch.nn.LSTM does and with its text, then what was expected.

    Equivalent to:
        ``torch.nn.LSTM(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = tuple(name for name in BEYOND_TORCH if name != "reset_after")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_gate: str = "learned",
        peephole: bool = False,
        cell_activation: str = "tanh",
        hidden_activation: str = "tanh",
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        return_all_states: bool = False,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            {
                "forget_gate": forget_gate,
                "peephole": peephole,
                "cell_activation": cell_activation,
                "hidden_activation": hidden_activation,
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
                "return_all_states": return_all_states,
            },
        )

    if TYPE_CHECKING:  # with return_all_states a third value comes back

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Pair | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
            mask: Tensor | None = None,
        ) -> tuple[Tensor, Pair]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Pair | None = None
        ) -> tuple[PackedSequence, Pair]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]


class GRU(Recurrent):
    """A multi-layer GRU. Same arguments, parameters and results as :class:`torch.nn.GRU`.

    ``r, z = sigmoid(W x_t + b_i + U h_{t-1} + b_h)``,
    ``n = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))``, ``h_t = (1 - z) n + z h_{t-1}``
    (Cho et al. 2014, the reset gate applied after the product).

    Arguments, shapes and errors: as :class:`LSTM`, without proj_size and with one state h. By
    keyword also layer_norm, zoneout, recurrent_dropout, weight_dropout and bptt_steps of
    :class:`LSTM`, and

        reset_after: False for the form of Cho et al. 2014 and of most lectures,
            ``n = tanh(W_n x_t + b_in + U_n (r h_{t-1}) + b_hn)``. Lectures often write the update
            gate the other way round: see :func:`adl_kernels.functional.flip_update_gate`.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, H], or without B; output [T, B, D H]; lengths, reset,
        mask as :class:`LSTM`.
        ``forward(input, h_0 = zeros, *, lengths=None, reset=None, mask=None) -> output, h_n``.

    Equivalent to:
        ``torch.nn.GRU(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = ("reset_after", *OF_EVERY_LAYER)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            {
                "reset_after": reset_after,
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
            },
        )

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
            mask: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Tensor | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...


class RNN(Recurrent):
    """A multi-layer Elman RNN. Same arguments, parameters and results as :class:`torch.nn.RNN`.

    ``h_t = phi(W x_t + b_i + U h_{t-1} + b_h)``, phi tanh, with nonlinearity="relu" the positive
    part, with nonlinearity="sigmoid" the logistic function, not in torch.nn (Elman 1990).

    Arguments, shapes and errors: as :class:`GRU` without reset_after, and with
    ``nonlinearity="tanh"`` as fourth argument.

    Shapes:
        input [T, B, I], [B, T, I] with batch_first, unbatched [T, I], or a PackedSequence;
        h_0, h_n [L D, B, H], or without B; output [T, B, D H]; lengths, reset,
        mask as :class:`LSTM`.
        ``forward(input, h_0 = zeros, *, lengths=None, reset=None, mask=None) -> output, h_n``.

    Equivalent to:
        ``torch.nn.RNN(...)`` with the same state_dict and without the keywords not in torch.nn.
    """

    _options = OF_EVERY_LAYER

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt_steps: int = 0,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            {
                "layer_norm": layer_norm,
                "zoneout": zoneout,
                "recurrent_dropout": recurrent_dropout,
                "weight_dropout": weight_dropout,
                "bptt_steps": bptt_steps,
            },
        )

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def forward(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            reset: Tensor | None = None,
            mask: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def forward(
            self, input: PackedSequence, hx: Tensor | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...


def _refuse_projection(proj_size: object) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


__all__ = ["GRU", "LSTM", "RNN"]
