"""LSTM, GRU and RNN for those who hold the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from . import engine
from .cell_facts import CELLS
from .options import check_nonlinearity, check_option, stack_options


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
    dropout_seed: Tensor | None = None,
    forget_gate: str = "learned",
    peephole: bool = False,
    cell_activation: str = "tanh",
    hidden_activation: str = "tanh",
    layer_norm: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] | tuple[()] = (),
    weight_dropout: float = 0.0,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    bptt_steps: int = 0,
    return_all_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """LSTM (Hochreiter & Schmidhuber 1997) and its relatives.

    With default options equivalent to ``torch._VF.lstm(input, hx, weights,
    has_biases, num_layers, dropout, training, bidirectional, batch_first)``, which is what
    ``torch.nn.LSTM`` calls.

    Args:
        input: [T, B, I]; [B, T, I] with batch_first; [N, I] with batch_sizes.
        hx: (h_0 [L D, B, P], c_0 [L D, B, H]); None for zeros. L layers, D directions, P the
            width of h: the hidden size H, or that of the projection.
        weights: for every layer and direction weight_ih [G H, I], weight_hh [G H, P], then
            bias_ih [G H] and bias_hh [G H], then weight_hr [P, H] with a projection, weight_ch
            [G - 1, H] with peepholes, and with layer_norm weight_ln_ih [G H], weight_ln_hh [G H],
            weight_ln_c [H], bias_ln_c [H]. G gates i f g o, or i g o without a gate for f.
        num_layers: L; layer k > 0 reads the output of layer k - 1.
        bidirectional: D = 2 if true; outputs are concatenated along the features.
        batch_first: whether input and output are [B, T, ...]; states never are.
        dropout: probability of zeroing an output between layers, while training.
        training: whether to drop out.
        batch_sizes: those of a PackedSequence, [T] int64 on the CPU.
        recompute: keep no gates for backward, which runs the layer once more instead
            (torch.utils.checkpoint): less memory, a third more time in training.
        dropout_seed: one int64, on the CPU or on the device of input: masks of dropout depend on
            it alone, and are the same on every device. None: torch's generator draws the masks of
            dropout, and on the CPU a seed for the others.

        forget_gate: "learned"; "coupled", f = 1 - i; "none", f = 1.
        peephole: whether i and f see c_{t-1}, and o c_t, times weight_ch.
        cell_activation, hidden_activation: of g and of c where it makes h: "tanh", "sigmoid",
            "relu" or "identity".
        layer_norm: of W_ih x, W_hh h and of c where it makes h (Ba et al. 2016).
        recurrent_dropout: probability of zeroing what W_hh sees of h, one mask per sequence (Gal &
            Ghahramani 2016).
        zoneout: probability, or a pair (of h, of c), that a unit keeps its state at a step;
            without training the expectation (Krueger et al. 2017).
        weight_dropout: probability of zeroing an element of weight_hh (Merity et al. 2018).
        lengths: [B] integers, steps of each sequence: past its end outputs are zero.
        reset: bool, as input without features: true where a new sequence begins.
        bptt_steps: gradients do not pass from a step that is a multiple of it to the step before.
        return_all_states: whether to return c of the last layer at every step too.

    Returns:
        output [T, B, D P] (or as the input is laid out), (h_n [L D, B, P], c_n [L D, B, H]);
        with return_all_states c [T, B, D H] as a third.

    Raises:
        RuntimeError, TypeError, ValueError: an argument has a wrong shape, dtype, device, type or
            value; the message names it.
    """
    check_option("LSTM", "forget_gate", forget_gate)
    options = stack_options(
        "LSTM",
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        recompute=recompute,
        dropout_seed=dropout_seed,
        peephole=peephole,
        cell_activation=cell_activation,
        hidden_activation=hidden_activation,
        layer_norm=layer_norm,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        weight_dropout=weight_dropout,
        lengths=lengths,
        reset=reset,
        bptt_steps=bptt_steps,
        all_states=check_option("LSTM", "return_all_states", return_all_states),
    )
    cell = engine.lstm_cell(forget_gate, peephole, cell_activation, hidden_activation)
    output, h_n, c_n, *all_c = engine.run(cell, input, hx, weights, options)
    return (output, (h_n, c_n), *all_c)  # type: ignore[return-value]


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
    dropout_seed: Tensor | None = None,
    reset_after: bool = True,
    layer_norm: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float] | tuple[()] = (),
    weight_dropout: float = 0.0,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    bptt_steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """GRU (Cho et al. 2014), the reset gate applied after the product with U_n or before it.

    With reset_after equivalent to ``torch._VF.gru(input, hx, weights, has_biases, num_layers,
    dropout, training, bidirectional, batch_first)``, which is what ``torch.nn.GRU`` calls. Without
    it ``n = tanh(W_n x + b_in + U_n (r h) + b_hn)``.

    Args:
        input: [T, B, I]; [B, T, I] with batch_first; [N, I] with batch_sizes.
        hx: h_0 [L D, B, H]; None for zeros.
        weights: for every layer and direction weight_ih [3 H, I], weight_hh [3 H, H], then
            bias_ih [3 H] and bias_hh [3 H], and with layer_norm weight_ln_ih and weight_ln_hh
            [3 H]; gates r z n.
        reset_after: whether r multiplies ``U_n h + b_hn``, as in torch; else it multiplies h.
        The others: as :func:`lstm`; zoneout is one probability.

    Returns:
        output [T, B, D H] (or as the input is laid out), h_n [L D, B, H].

    Raises:
        RuntimeError, TypeError, ValueError: an argument has a wrong shape, dtype, device, type or
            value; the message names it.
    """
    check_option("GRU", "reset_after", reset_after)
    options = stack_options(
        "GRU",
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        recompute=recompute,
        dropout_seed=dropout_seed,
        layer_norm=layer_norm,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        weight_dropout=weight_dropout,
        lengths=lengths,
        reset=reset,
        bptt_steps=bptt_steps,
    )
    cell, states = (
        CELLS["gru" if reset_after else "gru_reset_before"],
        None if hx is None else (hx,),
    )
    output, h_n = engine.run(cell, input, states, weights, options)
    return output, h_n


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
    dropout_seed: Tensor | None = None,
    layer_norm: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float] | tuple[()] = (),
    weight_dropout: float = 0.0,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    bptt_steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """Elman RNN (Elman 1990): ``h_t = phi(W x_t + b_i + U h_{t-1} + b_h)``.

    With "tanh" or "relu" equivalent to ``torch._VF.rnn_tanh`` or ``torch._VF.rnn_relu`` of the same
    arguments, which is what ``torch.nn.RNN`` calls.

    Args:
        input: [T, B, I]; [B, T, I] with batch_first; [N, I] with batch_sizes.
        hx: h_0 [L D, B, H]; None for zeros.
        weights: for every layer and direction weight_ih [H, I], weight_hh [H, H], then bias_ih [H]
            and bias_hh [H], and with layer_norm weight_ln_ih and weight_ln_hh [H].
        nonlinearity: phi, "tanh", "relu" or "sigmoid".
        The others: as :func:`lstm`; zoneout is one probability.

    Returns:
        output [T, B, D H] (or as the input is laid out), h_n [L D, B, H].

    Raises:
        RuntimeError, TypeError, ValueError: an argument has a wrong shape, dtype, device, type or
            value; the message names it.
    """
    check_nonlinearity(nonlinearity)
    options = stack_options(
        "RNN",
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        recompute=recompute,
        dropout_seed=dropout_seed,
        layer_norm=layer_norm,
        recurrent_dropout=recurrent_dropout,
        zoneout=zoneout,
        weight_dropout=weight_dropout,
        lengths=lengths,
        reset=reset,
        bptt_steps=bptt_steps,
    )
    states = None if hx is None else (hx,)
    output, h_n = engine.run(CELLS[f"rnn_{nonlinearity}"], input, states, weights, options)
    return output, h_n


GateWeights = TypeVar("GateWeights", Tensor, Mapping[str, Tensor])


def flip_update_gate(weights: GateWeights) -> GateWeights:
    """Weights of a GRU between the lectures' convention and torch's; it undoes itself.

    Lectures write ``h_t = i n + (1 - i) h_{t-1}``; here and in torch it is
    ``h_t = (1 - z) n + z h_{t-1}``.
    So ``z = 1 - i``, and as ``1 - sigmoid(a) = sigmoid(-a)`` the rows of that gate change sign.

    Args:
        weights: a tensor whose first dimension is the gates [3 H, ...], or a state_dict of a GRU.

    Returns:
        The same with the second block of H rows negated; of a state_dict all weights and biases.

    Raises:
        ValueError: the first dimension is not a multiple of three.
    """
    if isinstance(weights, Mapping):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return {
            name: flip_update_gate(w) if name.rpartition(".")[2].startswith(names) else w
            for name, w in weights.items()
        }
    if weights.dim() == 0 or weights.size(0) % 3:
        raise ValueError(
            f"flip_update_gate: weights must be [3 H, ...] (gates r z n), got {list(weights.shape)}"
        )
    r, z, n = weights.chunk(3)
    return torch.cat([r, -z, n])
