"""What a researcher writes in torch today for a cell that torch.nn has not: a loop over time.

One layer, one direction, the products with x all at once before the loop; the weights are those of
one of our modules, read anew in every call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm, linear

from adl_kernels.recurrent.base import Recurrent
from adl_kernels.recurrent.reference import SQUASH

State = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, State], State]


class Loop(torch.nn.Module):
    """The same as `module`, which it holds. `compiled`: its step goes through torch.compile."""

    def __init__(self, module: Recurrent, compiled: bool = False) -> None:
        super().__init__()
        self.module = module
        self.step = torch.compile(self._step, dynamic=False) if compiled else self._step

    def forward(
        self, x: Tensor, *, lengths: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        m = self.module
        gx = self._normed(linear(x, m.weight_ih_l0), "ih") + m.bias_ih_l0
        zeros = x.new_zeros(x.size(1), m.hidden_size)
        state: State = (zeros, zeros) if m.mode == "LSTM" else (zeros,)
        mask = dropout(torch.ones_like(zeros), m.recurrent_dropout)
        w_hh = dropout(m.weight_hh_l0, m.weight_dropout)
        outputs = []
        for t in range(x.size(0)):
            if reset is not None:
                state = tuple(s.masked_fill(reset[t][:, None], 0) for s in state)
            if m.bptt_steps and t and t % m.bptt_steps == 0:
                state = tuple(s.detach() for s in state)
            h = state[0] * mask if m.recurrent_dropout else state[0]
            new = self.step(gx[t], h, w_hh, state)
            if lengths is not None:
                runs = (t < lengths)[:, None]
                outputs.append(torch.where(runs, new[0], 0))
                new = tuple(torch.where(runs, n, s) for n, s in zip(new, state, strict=True))
            else:
                outputs.append(new[0])
            state = new
        return torch.stack(outputs), state

    def _normed(self, gates: Tensor, which: str) -> Tensor:
        if not self.module.layer_norm:
            return gates
        return layer_norm(gates, gates.shape[-1:], getattr(self.module, f"weight_ln_{which}_l0"))

    def _step(self, gx: Tensor, h: Tensor, w_hh: Tensor, state: State) -> State:
        m = self.module
        if m.mode == "LSTM":
            new = self._lstm(gx, h, w_hh, state[1])
        elif m.mode == "GRU":
            new = (self._gru(gx, h, w_hh, state[0]),)
        else:
            gh = self._normed(linear(h, w_hh), "hh") + m.bias_hh_l0
            new = (SQUASH[m.mode.removeprefix("RNN_").lower()](gx + gh),)
        share = m.zoneout
        if share:
            new = tuple(
                torch.where(torch.rand_like(n) < share, s, n)
                for n, s in zip(new, state, strict=True)
            )
        return new

    def _lstm(self, gx: Tensor, h: Tensor, w_hh: Tensor, c: Tensor) -> State:
        m = self.module
        gates = gx + self._normed(linear(h, w_hh), "hh") + m.bias_hh_l0
        learned = m.forget_gate == "learned"
        i, *rest = gates.chunk(4 if learned else 3, 1)
        f, (g, o) = (rest[0], rest[1:]) if learned else (None, rest)
        p = m.weight_ch_l0 if m.peephole else None
        i = torch.sigmoid(i if p is None else i + p[0] * c)
        if f is not None:
            f = torch.sigmoid(f if p is None else f + p[1] * c)
        elif m.forget_gate == "coupled":
            f = 1 - i
        g = SQUASH[m.cell_activation](g)
        c = i * g + (c if f is None else f * c)
        o = torch.sigmoid(o if p is None else o + p[-1] * c)
        seen = c
        if m.layer_norm:
            seen = layer_norm(c, c.shape[-1:], m.weight_ln_c_l0, m.bias_ln_c_l0)
        return o * SQUASH[m.hidden_activation](seen), c

    def _gru(self, gx: Tensor, h: Tensor, w_hh: Tensor, old: Tensor) -> Tensor:
        m, units = self.module, old.size(1)
        r_x, z_x, n_x = gx.chunk(3, 1)
        if m.reset_after:
            gh = self._normed(linear(h, w_hh), "hh") + m.bias_hh_l0
            r_h, z_h, n_h = gh.chunk(3, 1)
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + r * n_h)
        else:
            gh = linear(h, w_hh[: 2 * units], m.bias_hh_l0[: 2 * units])
            r_h, z_h = gh.chunk(2, 1)
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + linear(r * h, w_hh[2 * units :], m.bias_hh_l0[2 * units :]))
        return n + z * (old - n)
