"""Recurrent layers for those who hold the weights themselves: layers, directions, dropout.

Each function is one call of ``torch.ops.adl_kernels.<cell>`` per layer, both directions at once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor
from torch.utils.checkpoint import checkpoint

from . import _autograd, _cudnn, reference
from ._cells import CELLS, Cell
from ._devices import DEVICES, DTYPES
from ._extras import ACTIVATIONS, Extras
from .causal import causal_conv1d, causal_conv1d_step
from .convolution import (
    depthwise_conv1d,
    depthwise_conv2d,
    depthwise_conv3d,
    separable_conv1d,
    separable_conv2d,
)
from .separate import separate_kernel

__all__ = [
    "DEVICES",
    "DTYPES",
    "Options",
    "causal_conv1d",
    "causal_conv1d_step",
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_conv3d",
    "flip_update_gate",
    "gru",
    "lstm",
    "rnn",
    "seeded_dropout",
    "separable_conv1d",
    "separable_conv2d",
    "separate_kernel",
]


class Options(NamedTuple):
    """How :func:`recurrent` runs a cell: the keyword arguments of :func:`lstm`, for any cell."""

    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    batch_sizes: Tensor | None = None
    recompute: bool = False
    dropout_seed: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    recurrent_dropout: float = 0.0
    zoneout: tuple[float, ...] = ()
    weight_dropout: float = 0.0
    cell_activation: str = "tanh"
    hidden_activation: str = "tanh"
    peephole: bool = False
    layer_norm: bool = False
    all_states: bool = False
    bptt_steps: int = 0

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def beyond_torch(self) -> bool:
        """Whether anything is asked for that torch.nn's layers have not."""
        return self[7:] != Options()[7:]


# What a seed's streams of random numbers are for; layers and directions count on from each.
STREAM = {"dropout": 0, "recurrent": 1 << 32, "zoneout": 2 << 32, "weight": 3 << 32}

LSTM_CELLS = {"learned": "lstm_general", "coupled": "lstm_coupled", "none": "lstm_no_forget"}


def lstm_cell(
    forget_gate: str, peephole: bool, cell_activation: str, hidden_activation: str
) -> Cell:
    """The row of the list of cells that serves an LSTM; ValueError for a name that is none."""
    if forget_gate not in LSTM_CELLS:
        raise ValueError(
            f"LSTM: forget_gate must be 'learned', 'coupled' or 'none', got {forget_gate!r}"
        )
    for name, given in (
        ("cell_activation", cell_activation),
        ("hidden_activation", hidden_activation),
    ):
        if given not in ACTIVATIONS:
            raise ValueError(f"LSTM: {name} must be one of {', '.join(ACTIVATIONS)}, got {given!r}")
    is_torchs = (forget_gate, peephole, cell_activation, hidden_activation) == (
        "learned",
        False,
        "tanh",
        "tanh",
    )
    return CELLS["lstm" if is_torchs else LSTM_CELLS[forget_gate]]


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    forget_gate: str = "learned",
    return_all_states: bool = False,
    **options: Any,
) -> Any:
    """LSTM (Hochreiter & Schmidhuber 1997) and its relatives.

    Without the options below the line equivalent to ``torch._VF.lstm(input, hx, weights,
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
        zoneout: probabilities (of h, of c) that a unit keeps its state at a step; without training
            the expectation (Krueger et al. 2017).
        weight_dropout: probability of zeroing an element of weight_hh (Merity et al. 2018).
        lengths: [B] integers, steps of each sequence: past its end outputs are zero.
        reset: bool, as input without features: true where a new sequence begins.
        bptt_steps: gradients do not pass from a step that is a multiple of it to the step before.
        return_all_states: whether to return c of the last layer at every step too.

    Returns:
        output [T, B, D P] (or as the input is laid out), (h_n [L D, B, P], c_n [L D, B, H]);
        with return_all_states c [T, B, D H] as a third.

    Raises:
        RuntimeError, ValueError: an argument has a wrong shape, dtype, device or value; the
            message names it.
    """
    how = Options(all_states=return_all_states, **options)
    cell = lstm_cell(forget_gate, how.peephole, how.cell_activation, how.hidden_activation)
    output, h_n, c_n, *all_c = recurrent(cell, input, hx, weights, how)
    return (output, (h_n, c_n), *all_c)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    reset_after: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """GRU (Cho et al. 2014), the reset gate applied after the product with U_n or before it.

    With reset_after equivalent to ``torch._VF.gru(input, hx, weights, has_biases, num_layers,
    dropout, training, bidirectional, batch_first)``, which is what ``torch.nn.GRU`` calls. Without
    it ``n = tanh(W_n x + b_in + U_n (r h) + b_hn)``.

    Args, Returns, Raises: as :func:`lstm`, with three gates r z n and one state h, without
    projection, peepholes, activations and return_all_states.
    """
    cell = CELLS["gru" if reset_after else "gru_reset_before"]
    how = Options(**options)
    output, h_n = recurrent(cell, input, None if hx is None else (hx,), weights, how)
    return output, h_n


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Elman RNN (Elman 1990), nonlinearity "tanh", "relu" or "sigmoid".

    For the first two equivalent to ``torch._VF.rnn_tanh`` or ``torch._VF.rnn_relu`` of the same
    arguments, which is what ``torch.nn.RNN`` calls.

    Args, Returns, Raises: as :func:`gru`, with one block of weights; ValueError for another
    nonlinearity.
    """
    check_nonlinearity(nonlinearity)
    how, states = Options(**options), None if hx is None else (hx,)
    output, h_n = recurrent(CELLS[f"rnn_{nonlinearity}"], input, states, weights, how)
    return output, h_n


def check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu", "sigmoid"):
        raise ValueError(
            f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'. adl_kernels has "
            "'sigmoid' too."
        )


def flip_update_gate(weights: Any) -> Any:
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


def seeded_dropout(input: Tensor, p: float, seed: Tensor, stream: int = 0) -> Tensor:
    """Dropout whose mask depends on a seed and the place of an element alone.

    The same on every device, from call to call and for any number of threads: word i of
    Philox4x32-10 (Salmon et al. 2011) decides on element i. Equivalent to
    ``torch.nn.functional.dropout(input, p)`` with another generator.

    Args:
        input: of any shape, float64, float32, bfloat16 or float16.
        p: probability of zeroing an element; the others are multiplied by 1 / (1 - p).
        seed: one int64 on the CPU, or on the device of input: there a CUDA graph reads it anew.
        stream: tells masks of one seed apart.

    Raises:
        RuntimeError: p is not between 0 and 1, or an argument has a wrong dtype, size or device.
    """
    if reference.wanted() or input.device.type not in DEVICES:
        return reference.seeded_dropout(input, p, seed, stream)
    return torch.ops.adl_kernels.dropout(input, p, seed, stream)


def seeded_mask(like: Tensor, sizes: Sequence[int], p: float, seed: Tensor, stream: int) -> Tensor:
    """uint8 of these sizes on the device of `like`, 1 where seeded_dropout with p drops."""
    if reference.wanted() or like.device.type not in DEVICES:
        return reference.seeded_mask(like, sizes, p, seed, stream)
    return torch.ops.adl_kernels.mask(like, sizes, p, seed, stream)


def recurrent(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    how: Options,
) -> list[Tensor]:
    """Output and final states of any cell, then c of every step if asked; hx is a sequence."""
    count = how.num_layers * how.directions
    if not weights or len(weights) % count:
        raise RuntimeError(
            f"{cell.name}: weights must hold equally many tensors for each of {how.num_layers} "
            f"layers x {how.directions} directions, got {len(weights)}"
        )
    transpose = how.batch_first and how.batch_sizes is None
    x = input.transpose(0, 1) if transpose else input
    if transpose and x.is_cuda:
        x = x.contiguous()  # once: forward and backward read it
    if transpose and how.reset is not None:
        how = how._replace(reset=how.reset.transpose(0, 1))
    states = _zeros(cell, x, weights, count, how.batch_sizes) if hx is None else list(hx)
    if states[0].size(0) != count:
        raise RuntimeError(
            f"{cell.name}: h_0 must be [{count}, ...] (layers x directions, batch, hidden), got "
            f"{list(states[0].shape)}"
        )
    served = x.device.type in DEVICES and x.dtype in DTYPES
    if served or how.beyond_torch or not hasattr(_VF, cell.name):
        output, *rest = _layers(cell, x, states, list(weights), how, served)
    else:
        output, *rest = _torch_layers(cell, x, states, list(weights), how)
    if transpose:
        output = output.transpose(0, 1)
        rest[cell.states :] = [c.transpose(0, 1) for c in rest[cell.states :]]
    return [output, *rest]


def _layers(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], how: Options, served: bool
) -> list[Tensor]:
    """One op per layer, dropout between them; hx [L D, B, ...] as the final states returned."""
    defined = reference.wanted() or not served
    layer = functools.partial(_definition, cell) if defined else cell.op
    if how.recompute and torch.is_grad_enabled():
        layer = functools.partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
    if not defined and _whole_stack(cell, x, hx, weights, how):
        return _cudnn_layers(cell, x, hx, weights, how)
    if how.num_layers == 1 and not how.beyond_torch:
        return layer(x, hx, weights, how.batch_sizes)
    seed = _seed(how)
    finals: list[list[Tensor]] = []
    all_c: list[Tensor] = []
    per_layer, directions = len(weights) // how.num_layers, how.directions
    for k in range(how.num_layers):
        if k > 0 and how.training and how.dropout != 0:
            if how.dropout_seed is None:
                x = torch.dropout(x, how.dropout, how.training)
            else:
                x = seeded_dropout(x, how.dropout, how.dropout_seed, STREAM["dropout"] + k - 1)
        states = [h[k * directions : (k + 1) * directions] for h in hx]
        own = weights[k * per_layer : (k + 1) * per_layer]
        extras = _extras(x, states, how, k, seed)
        own = _drop_weights(own, how, k, seed)
        x, *rest = layer(x, states, own, *extras)
        finals.append(rest[: cell.states])
        all_c = rest[cell.states :]
    if how.num_layers == 1:
        return [x, *finals[0], *all_c]
    return [x, *(torch.cat(h) for h in zip(*finals, strict=True)), *all_c]


def _whole_stack(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], how: Options
) -> bool:
    """Whether cuDNN computes all layers in one call. A graph that is traced has an op per layer."""
    between = how.training and how.dropout != 0
    if x.device.type not in _cudnn.DEVICES or torch.compiler.is_compiling():
        return False
    if how.num_layers == 1 and not torch.is_inference_mode_enabled():
        return False  # the op of a single layer asks for itself, above its autograd
    if how.beyond_torch or how.recompute or between:
        return False
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *hx, *weights))
    return _cudnn.prefers(cell, x, hx, weights, how.batch_sizes, how.directions, graph, dtype)


def _cudnn_layers(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], how: Options
) -> list[Tensor]:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, *rest = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *hx, *weights))
        hx, weights = rest[: cell.states], rest[cell.states :]
    stack = _cudnn.Stack(cell, how.directions)
    return _autograd.run(stack, x, hx, weights, Extras(how.batch_sizes))


def _seed(how: Options) -> Tensor | None:
    """That of all masks of a call but those between layers; None where there are none."""
    random = how.recurrent_dropout or how.weight_dropout or any(how.zoneout)
    if not (how.training and random):
        return None
    if how.dropout_seed is not None:
        return how.dropout_seed
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)


def _extras(x: Tensor, hx: list[Tensor], how: Options, k: int, seed: Tensor | None) -> Extras:
    """What layer k is asked for, masks drawn."""
    mask: Tensor | None = None
    zones: list[Tensor | None] = [None, None]
    zoneout = how.zoneout if any(how.zoneout) else ()
    if seed is not None and how.recurrent_dropout:
        ones = torch.ones(hx[0].shape, dtype=x.dtype, device=x.device)
        mask = seeded_dropout(ones, how.recurrent_dropout, seed, STREAM["recurrent"] + k)
    if seed is not None and zoneout:
        for n, (h, share) in enumerate(zip(hx, zoneout, strict=True)):
            sizes = (h.size(0), *x.shape[:-1], h.size(2))
            zones[n] = seeded_mask(x, sizes, share, seed, STREAM["zoneout"] + len(hx) * k + n)
        zoneout = ()
    return Extras(
        how.batch_sizes,
        how.lengths,
        how.reset,
        mask,
        zones[0],
        zones[1],
        zoneout,
        how.cell_activation,
        how.hidden_activation,
        how.peephole,
        how.layer_norm,
        how.all_states and k == how.num_layers - 1,
        how.bptt_steps,
    )


def _drop_weights(weights: list[Tensor], how: Options, k: int, seed: Tensor | None) -> list[Tensor]:
    """Those of layer k, with elements of every weight_hh dropped."""
    if seed is None or not how.weight_dropout:
        return weights
    weights, each = list(weights), len(weights) // how.directions
    for d in range(how.directions):
        stream = STREAM["weight"] + how.directions * k + d
        at = d * each + 1
        weights[at] = seeded_dropout(weights[at], how.weight_dropout, seed, stream)
    return weights


def _definition(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], *extras: Any
) -> list[Tensor]:
    """The layer without its op; autocast as the op has it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return reference.layer(cell.name, x, hx, weights, *extras)
    dtype = torch.get_autocast_dtype(kind)
    x, *rest = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *hx, *weights))
    with torch.autocast(kind, enabled=False):
        return reference.layer(cell.name, x, rest[: cell.states], rest[cell.states :], *extras)


def _zeros(
    cell: Cell, x: Tensor, weights: Sequence[Tensor], count: int, batch_sizes: Tensor | None
) -> list[Tensor]:
    batch = x.size(1) if batch_sizes is None else int(batch_sizes[0])
    widths = [weights[1].size(1), weights[0].size(0) // cell.gates]
    return [
        torch.zeros(count, batch, width, dtype=x.dtype, device=x.device)
        for width in widths[: cell.states]
    ]


def _torch_layers(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], how: Options
) -> tuple[Tensor, ...]:
    run, state = getattr(_VF, cell.name), tuple(hx) if cell.has_c else hx[0]
    has_biases = len(weights) // (how.num_layers * how.directions) >= 4
    options = (has_biases, how.num_layers, how.dropout, how.training, how.bidirectional)
    if how.batch_sizes is not None:
        return run(x, how.batch_sizes, state, weights, *options)
    return run(x, state, weights, *options, False)
