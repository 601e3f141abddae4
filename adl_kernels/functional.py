"""Recurrent layers for those who hold the weights themselves: layers, directions, dropout.

Each function is one call of ``torch.ops.adl_kernels.<cell>`` per layer, both directions at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import _VF, Tensor
from torch.utils.checkpoint import checkpoint

from . import reference
from ._build_info import CUDA_ARCHS
from ._cells import CELLS, Cell

# What the ops run on; meta tensors have no numbers. Elsewhere torch's own layer runs.
DEVICES = ("cpu", "meta", "cuda") if CUDA_ARCHS else ("cpu", "meta")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# num_layers, bidirectional, batch_first, dropout, training, batch_sizes of `recurrent`.
ONE_LAYER = (1, False, False, 0.0, False, None)


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
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """LSTM (Hochreiter & Schmidhuber 1997), with a forget gate and optionally a projection.

    Equivalent to ``torch._VF.lstm(input, hx, weights, has_biases, num_layers, dropout, training,
    bidirectional, batch_first)``, which is what ``torch.nn.LSTM`` calls.

    Args:
        input: [T, B, I]; [B, T, I] with batch_first; [N, I] with batch_sizes.
        hx: (h_0 [L D, B, P], c_0 [L D, B, H]); None for zeros. L layers, D directions, P the
            width of h: the hidden size H, or that of the projection.
        weights: for every layer and direction weight_ih [4 H, I], weight_hh [4 H, P], then
            bias_ih [4 H] and bias_hh [4 H], then weight_hr [P, H] with a projection. Gates i f g o.
        num_layers: L; layer k > 0 reads the output of layer k - 1.
        bidirectional: D = 2 if true; outputs are concatenated along the features.
        batch_first: whether input and output are [B, T, ...]; states never are.
        dropout: probability of zeroing an output between layers, while training.
        training: whether to drop out.
        batch_sizes: those of a PackedSequence, [T] int64 on the CPU.
        recompute: keep no gates for backward, which runs the layer once more instead
            (torch.utils.checkpoint): less memory, a third more time in training.
        dropout_seed: one int64, on the CPU or on the device of input: masks of dropout depend on
            it alone, and are the same on every device. None: torch's generator draws them.

    Returns:
        output [T, B, D P] (or as the input is laid out), (h_n [L D, B, P], c_n [L D, B, H]).

    Raises:
        RuntimeError: an argument has a wrong shape, dtype or device; the message names it.
    """
    options = (num_layers, bidirectional, batch_first, dropout, training, batch_sizes, recompute)
    output, h_n, c_n = recurrent(CELLS["lstm"], input, hx, weights, *options, dropout_seed)
    return output, (h_n, c_n)


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
) -> tuple[Tensor, Tensor]:
    """GRU (Cho et al. 2014), the reset gate applied after the product.

    Equivalent to ``torch._VF.gru(input, hx, weights, has_biases, num_layers, dropout, training,
    bidirectional, batch_first)``, which is what ``torch.nn.GRU`` calls.

    Args, Returns, Raises: as :func:`lstm`, with three gates r z n and one state h.
    """
    options = (num_layers, bidirectional, batch_first, dropout, training, batch_sizes, recompute)
    output, h_n = recurrent(
        CELLS["gru"], input, None if hx is None else (hx,), weights, *options, dropout_seed
    )
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
) -> tuple[Tensor, Tensor]:
    """Elman RNN (Elman 1990), nonlinearity "tanh" or "relu".

    Equivalent to ``torch._VF.rnn_tanh`` or ``torch._VF.rnn_relu`` of the same arguments, which is
    what ``torch.nn.RNN`` calls.

    Args, Returns, Raises: as :func:`lstm`, with one block of weights and one state h; ValueError
    for another nonlinearity.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    options = (num_layers, bidirectional, batch_first, dropout, training, batch_sizes, recompute)
    cell = CELLS[f"rnn_{nonlinearity}"]
    output, h_n = recurrent(
        cell, input, None if hx is None else (hx,), weights, *options, dropout_seed
    )
    return output, h_n


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
    if reference.wanted():
        return reference.seeded_dropout(input, p, seed, stream)
    return torch.ops.adl_kernels.dropout(input, p, seed, stream)


def recurrent(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    batch_sizes: Tensor | None,
    recompute: bool = False,
    dropout_seed: Tensor | None = None,
) -> list[Tensor]:
    """Output and final states of any cell; arguments as in :func:`lstm`, hx a sequence."""
    directions = 2 if bidirectional else 1
    count = num_layers * directions
    if not weights or len(weights) % count:
        raise RuntimeError(
            f"{cell.name}: weights must hold equally many tensors for each of {num_layers} layers "
            f"x {directions} directions, got {len(weights)}"
        )
    transpose = batch_first and batch_sizes is None
    x = input.transpose(0, 1) if transpose else input
    states = _zeros(cell, x, weights, count, batch_sizes) if hx is None else list(hx)
    if states[0].size(0) != count:
        raise RuntimeError(
            f"{cell.name}: h_0 must be [{count}, ...] (layers x directions, batch, hidden), got "
            f"{list(states[0].shape)}"
        )
    if x.device.type in DEVICES and x.dtype in DTYPES:
        output, *finals = _layers(
            cell,
            x,
            states,
            list(weights),
            num_layers,
            dropout,
            training,
            batch_sizes,
            recompute,
            dropout_seed,
        )
    else:
        options = (len(weights) // count >= 4, num_layers, dropout, training, bidirectional)
        output, *finals = _torch_layers(cell, x, states, list(weights), options, batch_sizes)
    return [output.transpose(0, 1) if transpose else output, *finals]


def _layers(
    cell: Cell,
    x: Tensor,
    hx: list[Tensor],
    weights: list[Tensor],
    num_layers: int,
    dropout: float,
    training: bool,
    batch_sizes: Tensor | None,
    recompute: bool,
    dropout_seed: Tensor | None,
) -> list[Tensor]:
    """One op per layer, dropout between them; hx [L D, B, ...] as the final states returned."""
    layer = functools.partial(_definition, cell) if reference.wanted() else cell.op
    if recompute and torch.is_grad_enabled():
        layer = functools.partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
    if num_layers == 1:
        return layer(x, hx, weights, batch_sizes)
    finals: list[list[Tensor]] = []
    per_layer, directions = len(weights) // num_layers, hx[0].size(0) // num_layers
    for k in range(num_layers):
        if k > 0 and training and dropout != 0:
            if dropout_seed is None:
                x = torch.dropout(x, dropout, training)
            else:
                x = seeded_dropout(x, dropout, dropout_seed, k - 1)
        states = [h[k * directions : (k + 1) * directions] for h in hx]
        x, *final = layer(x, states, weights[k * per_layer : (k + 1) * per_layer], batch_sizes)
        finals.append(final)
    return [x, *(torch.cat(h) for h in zip(*finals, strict=True))]


def _definition(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], batch_sizes: Tensor | None
) -> list[Tensor]:
    """The layer without its op; autocast as the op has it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return reference.layer(cell.name, x, hx, weights, batch_sizes)
    dtype = torch.get_autocast_dtype(kind)
    x, *rest = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *hx, *weights))
    with torch.autocast(kind, enabled=False):
        return reference.layer(cell.name, x, rest[: cell.states], rest[cell.states :], batch_sizes)


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
    cell: Cell,
    x: Tensor,
    hx: list[Tensor],
    weights: list[Tensor],
    options: tuple[bool, int, float, bool, bool],
    batch_sizes: Tensor | None,
) -> tuple[Tensor, ...]:
    run, state = getattr(_VF, cell.name), tuple(hx) if cell.has_c else hx[0]
    if batch_sizes is not None:
        return run(x, batch_sizes, state, weights, *options)
    return run(x, state, weights, *options, False)
