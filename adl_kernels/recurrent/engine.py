"""Runs stacks of layers: one op per layer, dropout between them.

Each op is ``torch.ops.adl_kernels.<cell>``, both directions at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.utils.checkpoint import checkpoint

from .. import _C
from .._devices import has_kernels
from .._dropout import seeded_dropout, seeded_mask
from .._transforms import is_traced, needs_reference_path, untraced
from . import reference
from .cell_facts import CELLS, Cell
from .options import LayerOptions, StackOptions

# What a seed's streams of random numbers are for; layers and directions count on from each.
STREAM = {"dropout": 0, "recurrent": 1 << 32, "zoneout": 2 << 32, "weight": 3 << 32}

LSTM_CELLS = {"learned": "lstm_general", "coupled": "lstm_coupled", "none": "lstm_no_forget"}


def lstm_cell(
    forget_gate: str, peephole: bool, cell_activation: str, hidden_activation: str
) -> Cell:
    """The row of the list of cells that serves an LSTM."""
    is_torchs = forget_gate == "learned" and not peephole
    if is_torchs and cell_activation == hidden_activation == "tanh":
        return CELLS["lstm"]
    return CELLS[LSTM_CELLS[forget_gate]]


def run(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    options: StackOptions,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Output and final states of any cell, then c of every step if asked; hx is a sequence.

    seed: of masks, if it is drawn already.
    """
    count = options.num_layers * options.directions
    if not weights or len(weights) % count:
        raise RuntimeError(
            f"{cell.name}: weights must hold equally many tensors for each of {options.num_layers} "
            f"layers x {options.directions} directions, got {len(weights)}"
        )
    layer = options.layer
    transpose = options.batch_first and layer.batch_sizes is None
    x = input.transpose(0, 1) if transpose else input
    if transpose and x.is_cuda:
        x = x.contiguous()  # once: forward and backward read it
    if transpose and layer.reset is not None:
        options = options._replace(layer=layer._replace(reset=layer.reset.transpose(0, 1)))
    states = _zeros(cell, x, weights, count, layer.batch_sizes) if hx is None else list(hx)
    _check_count(cell, states[0], count)
    if has_kernels(x) or options.beyond_torch or not hasattr(_VF, cell.name):
        output, *rest = _layers(cell, x, states, list(weights), options, seed)
    else:
        output, *rest = _torch_layers(cell, x, states, list(weights), options)
    if transpose:
        output = output.transpose(0, 1)
        rest[cell.states :] = [c.transpose(0, 1) for c in rest[cell.states :]]
    return [output, *rest]


@untraced
def _check_count(cell: Cell, h_0: Tensor, count: int) -> None:
    if h_0.size(0) != count:
        raise RuntimeError(
            f"{cell.name}: h_0 must be [{count}, ...] (layers x directions, batch, hidden), got "
            f"{list(h_0.shape)}"
        )


def _layers(
    cell: Cell,
    x: Tensor,
    hx: list[Tensor],
    weights: list[Tensor],
    options: StackOptions,
    seed: Tensor | None,
) -> list[Tensor]:
    """hx [L D, B, ...], as the final states that come back."""
    defined = needs_reference_path() or not has_kernels(x)
    layer = functools.partial(_definition, cell) if defined else cell.op
    if options.recompute and torch.is_grad_enabled():
        layer = functools.partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
    if not defined and _is_one_call_of_cudnn(cell, x, hx, weights, options):
        return _cudnn_layers(cell, x, hx, weights, options)
    if options.num_layers == 1 and not options.beyond_torch:
        return layer(x, hx, weights, options.layer.batch_sizes)
    seed = draw_seed(options) if seed is None else seed
    finals: list[list[Tensor]] = []
    all_c: list[Tensor] = []
    per_layer, directions = len(weights) // options.num_layers, options.directions
    for k in range(options.num_layers):
        if k > 0 and options.training and options.dropout != 0:
            if options.dropout_seed is None:
                x = torch.dropout(x, options.dropout, options.training)
            else:
                stream = STREAM["dropout"] + k - 1
                x = seeded_dropout(x, options.dropout, options.dropout_seed, stream)
        states = [h[k * directions : (k + 1) * directions] for h in hx]
        own = weights[k * per_layer : (k + 1) * per_layer]
        of_layer = options.layer
        if k < options.num_layers - 1:
            of_layer = of_layer._replace(all_states=False)
        if seed is not None:
            sizes = [h.shape for h in states]
            of_layer = draw_masks(x, sizes, of_layer, options.recurrent_dropout, k, seed)
            own = drop_weights(own, options.weight_dropout, k, directions, seed)
        x, *rest = layer(x, states, own, *of_layer)
        finals.append(rest[: cell.states])
        all_c = rest[cell.states :]
    if options.num_layers == 1:
        return [x, *finals[0], *all_c]
    return [x, *(torch.cat(h) for h in zip(*finals, strict=True)), *all_c]


def draw_seed(options: StackOptions) -> Tensor | None:
    """That of all masks of a call but those between layers; None where there are none."""
    if not options.is_random:
        return None
    if options.dropout_seed is not None:
        return options.dropout_seed
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")


def draw_masks(
    x: Tensor,
    sizes: Sequence[Sequence[int]],
    options: LayerOptions,
    recurrent_dropout: float,
    k: int,
    seed: Tensor,
) -> LayerOptions:
    """The options of layer k with its masks; sizes of h_0 and c_0, x [T, B, I] or [N, I]."""
    drawn: dict[str, Any] = {}
    if recurrent_dropout:
        ones = x.new_ones(sizes[0])
        stream = STREAM["recurrent"] + k
        drawn["recurrent_mask"] = seeded_dropout(ones, recurrent_dropout, seed, stream)
    if any(options.zoneout):
        for n, (name, size) in enumerate(zip(("zoneout_h", "zoneout_c"), sizes, strict=False)):
            stream = STREAM["zoneout"] + len(sizes) * k + n
            of_rows = (size[0], *x.shape[:-1], size[2])
            drawn[name] = seeded_mask(x, of_rows, options.zoneout[n], seed, stream)
        drawn["zoneout"] = ()
    return options._replace(**drawn)


def drop_weights(
    weights: list[Tensor], p: float, k: int, directions: int, seed: Tensor
) -> list[Tensor]:
    """Those of layer k, with elements of every weight_hh dropped."""
    if not p:
        return weights
    weights, each = list(weights), len(weights) // directions
    for d in range(directions):
        stream, at = STREAM["weight"] + directions * k + d, d * each + 1
        weights[at] = seeded_dropout(weights[at], p, seed, stream)
    return weights


def _is_one_call_of_cudnn(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], options: StackOptions
) -> bool:
    """Whether cuDNN computes all layers in one call. A graph that is traced has an op per layer."""
    if torch.compiler.is_compiling() or is_traced():
        return False
    if options.num_layers == 1 and not torch.is_inference_mode_enabled():
        return False  # the op of a single layer asks for itself, above its autograd
    between = options.training and options.dropout != 0
    if options.beyond_torch or options.recompute or between:
        return False
    kind = x.device.type
    if kind not in ("cpu", "cuda"):
        return False
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _C.prefers_cudnn(
        cell.index, options.directions, x, hx, weights, options.layer.batch_sizes, dtype
    )


def _cudnn_layers(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], options: StackOptions
) -> list[Tensor]:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, *rest = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *hx, *weights))
        hx, weights = rest[: cell.states], rest[cell.states :]
    sizes = options.layer.batch_sizes
    return torch.ops.adl_kernels.cudnn(cell.index, options.directions, x, hx, weights, sizes)


def _definition(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], *options: Any
) -> list[Tensor]:
    """The layer without its op; autocast as the op has it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return reference.layer(cell.name, x, hx, weights, *options)
    dtype = torch.get_autocast_dtype(kind)
    x, *rest = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *hx, *weights))
    with torch.autocast(kind, enabled=False):
        return reference.layer(cell.name, x, rest[: cell.states], rest[cell.states :], *options)


def _zeros(
    cell: Cell, x: Tensor, weights: Sequence[Tensor], count: int, batch_sizes: Tensor | None
) -> list[Tensor]:
    if batch_sizes is None:
        batch = x.size(1)
    else:  # an int would be a constant of a trace
        batch = batch_sizes[0] if is_traced() else int(batch_sizes[0])  # type: ignore[assignment]
    widths = [weights[1].size(1), weights[0].size(0) // cell.gates]
    return [x.new_zeros(count, batch, width) for width in widths[: cell.states]]


def _torch_layers(
    cell: Cell, x: Tensor, hx: list[Tensor], weights: list[Tensor], options: StackOptions
) -> tuple[Tensor, ...]:
    run, state = getattr(_VF, cell.name), tuple(hx) if cell.has_c else hx[0]
    has_biases = len(weights) // (options.num_layers * options.directions) >= 4
    rest = (
        has_biases,
        options.num_layers,
        options.dropout,
        options.training,
        options.bidirectional,
    )
    if options.layer.batch_sizes is not None:
        return run(x, options.layer.batch_sizes, state, weights, *rest)
    return run(x, state, weights, *rest, False)
