"""Every op in plain PyTorch: the definition that kernels are tested against.

Also the slow, differentiable road for what the kernels do not do themselves: second derivatives,
forward-mode AD and functorch transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from .._transforms import recording
from .options import LayerOptions

State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """Of one direction, in the order of the op's list; G gates, P the width of h."""

    ih: Tensor  # [G H, I]
    hh: Tensor  # [G H, P]
    b_ih: Tensor | None = None  # [G H]
    b_hh: Tensor | None = None
    hr: Tensor | None = None  # [P, H] projection
    ch: Tensor | None = None  # [G - 1, H] peepholes, i [f] o
    ln_ih: Tensor | None = None  # [G H] gains of the layer norms
    ln_hh: Tensor | None = None
    ln_c: Tensor | None = None  # [H]
    b_ln_c: Tensor | None = None

    @classmethod
    def of(cls, given: Sequence[Tensor], has_c: bool, options: LayerOptions) -> Weights:
        """From the list, which leaves out what there is not."""
        rest = list(given[2:])
        norm = [rest.pop() for _ in range((4 if has_c else 2) * options.layer_norm)][::-1]
        ch = rest.pop() if options.peephole else None
        hr = rest.pop() if len(rest) % 2 else None
        found = [*given[:2], *(rest or (None, None)), hr, ch, *norm]
        return cls._make([*found, *[None] * (len(cls._fields) - len(found))])


def _products(x: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """W_ih x + b_ih and W_hh h + b_hh, normalised before the bias (Ba et al. 2016)."""
    gx, gh = linear(x, w.ih), linear(h, w.hh)
    if w.ln_ih is not None:
        gx, gh = _norm(gx, w.ln_ih), _norm(gh, w.ln_hh)
    return _biased(gx, w.b_ih), _biased(gh, w.b_hh)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    return layer_norm(x, x.shape[-1:], weight, bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


SQUASH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda x: x,
}


Step = Callable[[Tensor, Tensor, State, Weights, LayerOptions], State]

# Steps. x [B, I]; h [B, P] what W_hh multiplies; state: what stood before the step. They return the
# state after it, h before a projection.


def lstm_step(x: Tensor, h: Tensor, state: State, w: Weights, options: LayerOptions) -> State:
    """i, f, o = sigmoid(...), which see p c; g = phi(...); c = f c + i g; h = o phi(c)."""
    c = state[-1]
    gx, gh = _products(x, h, w)
    i, f, g, o = (gx + gh).chunk(4, 1)
    p_i, p_f, p_o = (0, 0, 0) if w.ch is None else w.ch
    i, f, g = (
        torch.sigmoid(i + p_i * c),
        torch.sigmoid(f + p_f * c),
        SQUASH[options.cell_activation](g),
    )
    return _emit(f * c + i * g, o, p_o, w, options)


def lstm_step_without_f(f: Callable[[Tensor], Tensor | int]) -> Step:
    """An LSTM whose f is made of i: 1 - i, or 1."""

    def step(x: Tensor, h: Tensor, state: State, w: Weights, options: LayerOptions) -> State:
        c = state[-1]
        gx, gh = _products(x, h, w)
        i, g, o = (gx + gh).chunk(3, 1)
        p_i, p_o = (0, 0) if w.ch is None else w.ch
        i, g = torch.sigmoid(i + p_i * c), SQUASH[options.cell_activation](g)
        return _emit(f(i) * c + i * g, o, p_o, w, options)

    return step


def _emit(c: Tensor, o: Tensor, p_o: Tensor | int, w: Weights, options: LayerOptions) -> State:
    o = torch.sigmoid(o + p_o * c)
    normed = c if w.ln_c is None else _norm(c, w.ln_c, w.b_ln_c)
    return o * SQUASH[options.hidden_activation](normed), c


def gru_step(x: Tensor, h: Tensor, state: State, w: Weights, options: LayerOptions) -> State:
    """r, z = sigmoid(...); n = tanh(W_n x + b_in + r (U_n h + b_hn)); h = (1 - z) n + z h."""
    gx, gh = _products(x, h, w)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = gx.chunk(3, 1), gh.chunk(3, 1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * state[0],)


def gru_reset_before_step(
    x: Tensor, h: Tensor, state: State, w: Weights, options: LayerOptions
) -> State:
    """r, z = sigmoid(...); n = tanh(W_n x + b_in + U_n (r h) + b_hn); h = (1 - z) n + z h."""
    units = w.hh.size(0) // 3

    def of_h(part: slice) -> Weights:
        ln, b = (None if t is None else t[part] for t in (w.ln_hh, w.b_hh))
        return w._replace(hh=w.hh[part], ln_hh=ln, b_hh=b)

    first, last = of_h(slice(2 * units)), of_h(slice(2 * units, None))
    gx, gh = _products(x, h, first)
    r_x, z_x, n_x = gx.chunk(3, 1)
    r_h, z_h = gh.chunk(2, 1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n_h = linear(r * h, last.hh)
    n_h = _biased(n_h if last.ln_hh is None else _norm(n_h, last.ln_hh), last.b_hh)
    return ((1 - z) * torch.tanh(n_x + n_h) + z * state[0],)


def rnn_step(phi: str) -> Step:
    """h = phi(W x + b_ih + U h + b_hh)."""

    def step(x: Tensor, h: Tensor, state: State, w: Weights, options: LayerOptions) -> State:
        gx, gh = _products(x, h, w)
        return (SQUASH[phi](gx + gh),)

    return step


STEPS = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_step("tanh"),
    "rnn_relu": rnn_step("relu"),
    "rnn_sigmoid": rnn_step("sigmoid"),
    "lstm_general": lstm_step,
    "lstm_coupled": lstm_step_without_f(lambda i: 1 - i),
    "lstm_no_forget": lstm_step_without_f(lambda i: 1),
    "gru_reset_before": gru_reset_before_step,
}


def layer(
    cell: str,
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    *values: object,
) -> list[Tensor]:
    """What ``torch.ops.adl_kernels.<cell>`` computes: one layer, all its directions.

    Args:
        cell: a name of the list of cells, such as "lstm".
        x: [T, B, I], or [N, I] with batch_sizes.
        hx: h_0 [D, B, P] and, for cells that have one, c_0 [D, B, H].
        weights: per direction those of :class:`Weights` that there are.
        values: those of :class:`LayerOptions`, in order.

    Returns:
        y [T, B, D P] or [N, D P], h_n, c_n for cells that have it; with all_states c of every step,
        [T, B, D H] or [N, D H].
    """
    options = LayerOptions(*values)
    directions = hx[0].size(0)
    per_direction = len(weights) // directions
    found = [
        _direction(
            cell,
            x,
            tuple(h[d] for h in hx),
            Weights.of(weights[d * per_direction : (d + 1) * per_direction], len(hx) == 2, options),
            options,
            d,
        )
        for d in range(directions)
    ]
    y = torch.cat([rows[0] for rows, _ in found], -1)
    states = [torch.stack(state) for state in zip(*(final for _, final in found), strict=True)]
    cs = [torch.cat([rows[1] for rows, _ in found], -1)] if options.all_states else []
    return [y, *states, *cs]


def _direction(
    cell: str, x: Tensor, state: State, w: Weights, options: LayerOptions, d: int
) -> tuple[State, State]:
    """Every step's h [and c] in the rows of x, and the final state."""
    scan = Scan.of(cell, x, w, options, d)
    record = Record(scan, [()] * len(scan.xs), [()] * len(scan.xs))
    for t in scan.steps:
        record.before[t] = state
        record.new[t], state = scan.advance(t, state)
    seen = recording.get()
    if seen is not None:
        seen.append(record)
    if not scan.xs:
        return tuple(x.new_empty(*x.shape[:-1], s.size(1)) for s in state), state
    join = torch.stack if options.batch_sizes is None else torch.cat
    outputs = (scan.output(t, new) for t, new in enumerate(record.new))
    return tuple(join(list(h)) for h in zip(*outputs, strict=True)), state


@dataclass(frozen=True)
class Scan:
    """One direction of a layer, step by step; rows of a step: sequences that have it."""

    cell: str
    w: Weights
    options: LayerOptions
    d: int  # 1: the reverse direction
    xs: list[Tensor]  # T of [rows, I]
    zones: list[list[Tensor]]  # T of the zoneout masks [rows, P] and [rows, H], where there are any

    @classmethod
    def of(cls, cell: str, x: Tensor, w: Weights, options: LayerOptions, d: int) -> Scan:
        masks = [mask[d] for mask in (options.zoneout_h, options.zoneout_c) if mask is not None]
        sizes = None if options.batch_sizes is None else options.batch_sizes.tolist()
        xs, *zones = (list(t) if sizes is None else list(t.split(sizes)) for t in (x, *masks))
        xs = xs if sizes is None or sizes else []  # split() leaves one piece of nothing
        return cls(cell, w, options, d, xs, [[zone[t] for zone in zones] for t in range(len(xs))])

    @property
    def steps(self) -> range:
        return range(len(self.xs) - 1, -1, -1) if self.d else range(len(self.xs))

    def first(self, count: int) -> Scan:
        """The same of the first `count` sequences."""
        lengths, reset, mask = self.options.lengths, self.options.reset, self.options.recurrent_mask
        options = self.options._replace(
            lengths=None if lengths is None else lengths[:count],
            reset=None if reset is None else reset[:, :count],
            recurrent_mask=None if mask is None else mask[:, :count],
        )
        zones = [[zone[:count] for zone in masks] for masks in self.zones]
        return replace(self, options=options, xs=[x[:count] for x in self.xs], zones=zones)

    def advance(self, t: int, state: State) -> tuple[State, State]:
        """What step t makes of its rows, and with it the state of every sequence."""
        size = self.xs[t].size(0)
        new = made = self._step(t, self._found(t, tuple(s[:size] for s in state)))
        runs = self.lasts(t)
        if runs is not None:
            new = tuple(torch.where(runs, n, s) for n, s in zip(made, state, strict=True))
        # Sequences that have ended, or in reverse have not begun, keep their state.
        return made, tuple(torch.cat([n, s[size:]]) for n, s in zip(new, state, strict=True))

    def output(self, t: int, made: State) -> State:
        """Zero past the end of a sequence."""
        runs = self.lasts(t)
        return made if runs is None else tuple(torch.where(runs, n, 0) for n in made)

    def lasts(self, t: int, rows: int | None = None) -> Tensor | None:
        """Which sequences have a step t, [B, 1], of so many rows of another step; None for all."""
        lengths, here = self.options.lengths, self.xs[t]
        if lengths is not None:
            return t < lengths.to(here.device)[:, None]
        if rows is None or rows == here.size(0):
            return None
        return (torch.arange(rows, device=here.device) < here.size(0))[:, None]

    def _found(self, t: int, old: State) -> State:
        """The state as step t finds it: zero where a sequence begins, cut off by truncated BPTT."""
        boundary = t + self.d  # between this step and the one before it in the scan
        if boundary == len(self.xs):
            return old
        begun = self.lasts(boundary, old[0].size(0))
        if self.options.reset is not None:
            fresh = self.options.reset[boundary][:, None]
            fresh = fresh if begun is None else fresh & begun
            old = tuple(torch.where(fresh, 0, s) for s in old)
        if self.options.bptt_steps and boundary and boundary % self.options.bptt_steps == 0:
            cut = tuple(s.detach() for s in old)
            if begun is not None:
                cut = tuple(torch.where(begun, a, b) for a, b in zip(cut, old, strict=True))
            old = cut
        return old

    def _step(self, t: int, old: State) -> State:
        x, mask = self.xs[t], self.options.recurrent_mask
        h = old[0] if mask is None else old[0] * mask[self.d, : x.size(0)]
        new = STEPS[self.cell](x, h, old, self.w, self.options)
        if self.w.hr is not None:
            new = (linear(new[0], self.w.hr), *new[1:])
        masks = tuple(zone.to(x.dtype) for zone in self.zones[t])
        shares: tuple[Tensor | float, ...] = masks or self.options.zoneout
        if shares:
            new = tuple(k * s + (1 - k) * n for n, s, k in zip(new, old, shares, strict=False))
        return new


class Record(NamedTuple):
    """What a scan did, as nodes of the autograd graph."""

    scan: Scan
    before: list[State]  # T states of all sequences, before the step
    new: list[State]  # T states of the rows of the step, after it
